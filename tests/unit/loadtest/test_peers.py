"""The comparison with other servers: what is computed from what the client saw, without any server."""

import asyncio
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.load_steps import percentile
from loadtest.peers.answer import Answer, Observation
from loadtest.peers.benchmark import Plan, shell_line
from loadtest.peers.client import Job, LoadClient
from loadtest.peers.contestants import UNCACHED, Contestant, Launch
from loadtest.peers.installation import PeerError
from loadtest.peers.measurement import load_of
from loadtest.peers.plot import svg
from loadtest.peers.process_tree import ProcessTree
from loadtest.peers.prompts import SCENARIOS, PromptWriter
from loadtest.peers.quality import perplexity
from loadtest.peers.report import grids, markdown
from loadtest.peers.results import Cell, Results
from loadtest.peers.server import running_server
from loadtest.peers.shims.token_bytes import TextStream, token_bytes
from loadtest.peers.summary import Spread, ratios_of, rows_of
from loadtest.peers.weights import write_hugging_face
from model.checkpoint import Checkpoint, read_checkpoint
from model.config import ModelConfig
from tests.support.tiny_checkpoint import tiny_config_json, tiny_tensors


def answer(begun_s: float, pieces_s: list[float], tokens: int | None = None, **more: Any) -> Answer:
    """An answer whose last piece ended it, unless said otherwise."""
    ended_s = pieces_s[-1] if pieces_s and tokens is not None else None
    return Answer(begun_s, pieces_s, **{"ended_s": ended_s, "completion_tokens": tokens, **more})


def cell(contestant: str, tokens_per_s: float, round_number: int = 0, **more: Any) -> Cell:
    """A cell with a rate and times that follow from it."""
    load = {
        "window_s": 10.0, "tokens_per_s": tokens_per_s, "ttft_p50_s": 10 / tokens_per_s, "ttft_p95_s": 1.0,
        "inter_token_p50_s": 1 / tokens_per_s, "inter_token_p95_s": 1.0, "num_answers": 3, "num_errors": 0,
        "first_error": None, "prompt_tokens": 33.0, "answer_tokens": 64.0,
    }  # fmt: skip
    return Cell(
        contestant, **{"scenario": "short", "num_streams": 1, "round_number": round_number, "load": load, **more}
    )


def results(cells: list[Cell]) -> Results:
    """A run on no machine in particular."""
    hardware = {
        "cpu": "a CPU", "num_cores": 2, "notable_flags": ["avx2"], "missing_flags": ["avx512f"],
        "memory_bytes": 1 << 34, "load_average": 0.1,
    }  # fmt: skip
    options = {"num_threads": 2, "max_tokens": 64, "window_s": 20.0, "num_rounds": 2}
    run = Results("2026-01-02T03:04:05+00:00", hardware, options, cells=cells)
    run.commands["attend"] = "attend serve"
    run.precisions = {"attend": "int8", "away": "int4"}
    run.failures["away"] = "not installed"
    run.perplexities = {"attend": 15.1, "away": "not offered: HTTP 400"}
    return run


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: half of four values do not exceed the second."""
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0], 0.95) == 3.0
    assert percentile([7.0], 0.0) == 7.0
    assert percentile([], 0.5) is None


def test_only_tokens_that_arrive_in_the_window_count() -> None:
    """Two of three pieces lie in [10, 20), each worth two tokens."""
    load = load_of(Observation(10.0, 20.0, 20.0, [answer(8.0, [9.0, 11.0, 19.0], tokens=6)]))
    assert load.tokens_per_s == pytest.approx(4 / 10)
    assert load.inter_token_p50_s == pytest.approx(2 / 2)  # gaps of 2 and 8 s, over two tokens each
    assert load.ttft_p50_s is None  # begun before the window


def test_an_answer_without_usage_counts_as_the_others_do() -> None:
    """Cut off at the end of the window: two tokens a piece, as in the answer that is complete."""
    complete, cut = answer(10.0, [11.0, 12.0], tokens=4), answer(12.0, [13.0, 14.0])
    assert load_of(Observation(10.0, 20.0, 20.0, [complete, cut])).tokens_per_s == pytest.approx(8 / 10)


def test_a_request_that_never_got_text_waited_at_least_until_the_end() -> None:
    """Leaving it out would flatter a server that keeps clients waiting."""
    load = load_of(Observation(10.0, 20.0, 30.0, [answer(12.0, []), answer(11.0, [12.0], tokens=1)]))
    assert (load.ttft_p50_s, load.ttft_p95_s) == (1.0, 18.0)


def test_failures_are_counted_and_not_timed() -> None:
    """Only those that ended in the window; the first message is kept."""
    failed = [Answer(10.0, ended_s=at_s, failure=f"HTTP 500 at {at_s}") for at_s in (11.0, 12.0, 25.0)]
    load = load_of(Observation(10.0, 20.0, 30.0, failed))
    assert (load.num_errors, load.first_error, load.num_answers, load.ttft_p50_s) == (2, "HTTP 500 at 11.0", 0, None)


@pytest.mark.parametrize("name", ["short", "medium", "long"])
def test_prompts_have_their_length_and_share_no_beginning(name: str) -> None:
    """Streams, rounds and requests all differ within the first words; the same seed repeats them."""
    seeds = [("0/0", 0), ("0/0", 1), ("0/1", 0)]
    writers = [PromptWriter(SCENARIOS[name], seed, stream) for seed, stream in seeds]
    prompts = [writer.next_prompt() for writer in writers for _ in range(3)]
    assert {len(prompt.split()) for prompt in prompts} == {SCENARIOS[name].own_words}
    assert len({" ".join(prompt.split()[:8]) for prompt in prompts}) == len(prompts)
    assert PromptWriter(SCENARIOS[name], "0/0", 0).next_prompt() == prompts[0]


def test_a_shared_prefix_is_shared_within_a_cell_only() -> None:
    """600 words in common, then a question of one's own; the next round has another prefix."""
    scenario = SCENARIOS["shared-prefix"]
    one, other, later = (PromptWriter(scenario, seed, n).next_prompt() for seed, n in (("a", 0), ("a", 1), ("b", 0)))
    prefix, _, question = one.partition("\n\nQuestion: ")
    assert len(prefix.split()) == 600
    assert other.startswith(prefix)
    assert not other.endswith(question)
    assert later.split()[:8] != one.split()[:8]


def test_a_ratio_compares_with_the_best_peer_of_the_same_round() -> None:
    """A slow minute that hits all servers of a round leaves the ratio alone."""
    cells = [cell("attend", 30), cell("a", 10), cell("b", 5), cell("attend", 20, 1), cell("a", 4, 1), cell("b", 5, 1)]
    by_metric = {ratio.metric: ratio for ratio in ratios_of(cells, "short", 1)}
    assert by_metric["output tok/s"].spread == Spread(3.5, 3.0, 4.0)
    assert by_metric["output tok/s"].best_peers == ("a", "b")
    assert by_metric["TTFT p50"].spread.least == pytest.approx(1 / 4)


def test_peers_without_a_prefix_cache_are_compared_apart() -> None:
    """They do not stand in for the best peer."""
    cells = [cell("attend", 40), cell("a", 20), cell("a" + UNCACHED, 10)]
    ratios = [(r.against, r.spread.median) for r in ratios_of(cells, "short", 1) if r.metric == "output tok/s"]
    assert ratios == [("best peer", 2.0), ("best peer without a prefix cache", 4.0)]


def test_a_failed_round_leaves_the_others_and_is_named() -> None:
    """The row has what was measured and the reason for what was not."""
    failed = cell("a", 1, 1, load=None, failure="ended with status 1")
    (row,) = rows_of([cell("a", 10, cpu_s=5.0), failed], "short", 1)
    assert row.tokens_per_s == Spread(10.0, 10.0, 10.0)
    assert row.cpu_s_per_1000_tokens == Spread(50.0, 50.0, 50.0)
    assert row.failure == "ended with status 1"


def test_tables_hold_every_server_and_every_reason(tmp_path: Path) -> None:
    """Results survive the file; what failed or is missing has its line in Markdown; the picture has a bar each."""
    cells = [cell("attend", 30), cell("a", 10), cell("b|c", 1, load=None, failure="HTTP 500")]
    results(cells).save(tmp_path / "run.json")
    run = Results.load(tmp_path / "run.json")
    text = markdown(run)
    for expected in ("| attend | 30.0 |", "failed: HTTP 500", "not installed", "not offered: HTTP 400", "3.00", "b/c"):
        assert expected in text
    assert [len(grid.columns) for grid in grids(run)] == [len(row) for grid in grids(run) for row in grid.rows[:1]]
    assert svg(run).count("<title>") == 2


def test_a_command_line_can_be_typed_anywhere() -> None:
    """Settings first, quoted where a shell needs it; the working folder is `$PWD`."""
    line = shell_line({"CACHE": f"{Path.cwd()}/cache"}, ["serve", "--note", "two words"])
    assert line == "CACHE=$PWD/cache serve --note 'two words'"


def test_a_file_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "other.json").write_text('{"cells": []}')
    with pytest.raises(ValueError, match=r"other\.json holds no results"):
        Results.load(tmp_path / "other.json")


def test_perplexity_is_over_all_tokens_but_each_first() -> None:
    """A uniform choice among eight has perplexity eight; a token without a value is an error, not a gift."""
    assert perplexity([[None, -math.log(8)], [None, -math.log(8), -math.log(8)]]) == pytest.approx(8)
    with pytest.raises(PeerError, match="1 of 2 tokens"):
        perplexity([[None, -1.0, None]])


def test_a_plan_keeps_cells_of_equally_many_streams_together() -> None:
    """Shared prefixes have their own number of streams; a contestant may take part in some scenarios only."""
    plan = Plan(("short", "shared-prefix"), (1, 64), 1, 2, 64, 1.0, 1.0, 0.0, 1.0, 1.0, "0")
    everything = Contestant("a", "int8", lambda _: Launch(()), dict)
    assert plan.cells(everything) == [("short", 1), ("shared-prefix", 16), ("short", 64)]
    one = Contestant("a", "int8", lambda _: Launch(()), dict, scenarios=("shared-prefix",))
    assert plan.cells(one) == [("shared-prefix", 16)]


def test_text_waits_for_the_rest_of_a_character(tmp_path: Path) -> None:
    """An e with an accent is two bytes, here in two tokens; special tokens have no text."""
    tokenizer = {
        "added_tokens": [{"id": 0, "special": True}],
        "model": {"vocab": {"<end>": 0, "Ġhi": 1, "Ã": 2, "©": 3}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    stream = TextStream(token_bytes(tmp_path / "tokenizer.json"))
    assert [stream.add([1]), stream.add([2]), stream.add([3, 0])] == [" hi", "", "é"]


def test_a_checkpoint_survives_the_hugging_face_folder(tmp_path: Path) -> None:
    """What peers read has the same tensors, configuration and template as what Attend exports from."""
    config = ModelConfig(
        model_id="tiny", vocab_size=8, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
        head_dim=16, context_tokens=64, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        eos_token_ids=(2,), bos_token_id=1,
    )  # fmt: skip
    tokenizer: dict[str, Any] = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }  # fmt: skip
    sizes = {
        "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    named = tiny_tensors(tiny_config_json(**sizes))
    tensors = {name.removeprefix("model."): tensor for name, tensor in named.items()}
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    write_hugging_face(Checkpoint(config, tensors, json.dumps(tokenizer), "{{ messages }}", special, ""), tmp_path)
    read = read_checkpoint(tmp_path, "tiny")
    assert read.config == config
    assert (read.chat_template, read.special_tokens) == ("{{ messages }}", special)
    assert read.tensors.keys() == tensors.keys()
    np.testing.assert_array_equal(read.tensors["embed_tokens.weight"], tensors["embed_tokens.weight"])


def test_a_server_that_dies_while_starting_is_one_line(tmp_path: Path) -> None:
    """The message holds the end of its log; nothing is left running."""
    command = (sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)")
    contestant = Contestant("a", "int8", lambda _: Launch(command), dict)
    with (
        pytest.raises(PeerError, match="ended with status 3 while starting: no such model"),
        running_server(contestant, 1, 1, tmp_path / "log", 30.0),
    ):
        pass


def test_a_tree_is_stopped_with_children_whose_parent_has_died() -> None:
    """As Ray's and vLLM's workers can outlive what started them."""
    child = "import time; time.sleep(600)"
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); print(1); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tree = ProcessTree(process.pid)
        tree.refresh()
        process.kill()
        process.wait()
        assert tree.num_alive == 1
        tree.stop()
        assert tree.num_alive == 0


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def observe(reply: Reply, **job: Any) -> Observation:
    """Run the client against a server that answers each connection with `reply`, then closes it."""

    async def run() -> Observation:
        handlers: set[asyncio.Task[Any]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reply(reader, writer)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            seen = await LoadClient(Job(port=port, model="m", scenario="short", seed="0", max_tokens=5, **job)).run()
        await asyncio.gather(*handlers)
        return seen

    return asyncio.run(run())


def test_the_client_times_pieces_and_reads_usage() -> None:
    """Two pieces, one of them several tokens, in a reply that does not say where it ends."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": ""}]},
        {"choices": [{"text": "b"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}},
    ]

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["ignore_eos"] is True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for chunk in chunks:
            writer.write(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n")
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")

    seen = observe(
        reply,
        num_streams=2,
        warm_up_s=0.0,
        window_s=0.1,
        longest_window_s=5.0,
        drain_s=5.0,
        extra={"ignore_eos": True},
    )
    complete = [answer for answer in seen.answers if answer.completion_tokens is not None]
    assert len(complete) >= 2
    assert all(answer.failure is None and len(answer.pieces_s) == 2 for answer in complete)
    assert {(answer.prompt_tokens, answer.completion_tokens) for answer in complete} == {(7, 5)}


def test_the_client_reports_refusals_and_lost_connections() -> None:
    """Each is a failure with its reason, and the stream goes on."""
    replies = [b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nfull", b"HTTP/1.1 200 OK\r\n\r\ndata: {"]

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(replies.pop(0) if replies else b"")

    seen = observe(reply, num_streams=1, warm_up_s=0.0, window_s=0.6, longest_window_s=2.0, drain_s=1.0, extra={})
    failures = [answer.failure for answer in seen.answers]
    assert failures[0] == "HTTP 503: full"
    assert str(failures[1]).startswith("connection lost")
