"""`attend serve --standalone` with the default model, used by real clients."""

import concurrent.futures
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.bundle import Bundle
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]
README = Path(__file__).parents[2] / "README.md"
MAX_RESIDENT_MB = 900

pytestmark = [pytest.mark.model, pytest.mark.alone]


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server for the tests that leave it as they found it."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client, with only its base URL changed."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that the server brings about."""
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        time.sleep(0.02)


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_the_openai_client_gets_the_capital_of_france(client: openai.OpenAI) -> None:
    """Not streamed: text, finish reason, usage."""
    answer = client.chat.completions.create(model=MODEL_ID, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 36
    assert answer.usage.completion_tokens == 8


def test_the_openai_client_streams_the_same_answer_token_by_token(client: openai.OpenAI) -> None:
    """Several chunks, the same text, the usage last."""
    stream: Any = client.chat.completions.create(
        model=MODEL_ID, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(texts) == "The capital of France is Paris."
    assert len(texts) == 7
    assert chunks[-1].usage.completion_tokens == 8


def test_the_openai_client_completes_text_and_raises_its_own_errors(client: openai.OpenAI) -> None:
    """Completions work; an unknown model and a bad value are the client's typed exceptions."""
    answer = client.completions.create(model=MODEL_ID, prompt="One, two, three,", temperature=0, max_tokens=4)
    assert answer.choices[0].text.startswith(" four")
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model=MODEL_ID, prompt="x", temperature=9)
    assert [model.id for model in client.models.list()] == [MODEL_ID]


def test_the_readmes_request_gives_the_readmes_answer(server: Server) -> None:
    """What a stranger types first: the curl command's body, sent as it is printed."""
    text = README.read_text(encoding="utf-8")
    command = re.search(r"curl -s (\S+) .*?-d '(.*?)'", text, re.DOTALL)
    assert command, "README has no curl command"
    path = command.group(1).split(":8000")[1]
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + path, content=command.group(2), headers=headers, timeout=60).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["message"]["content"] in text


PROMPTS = [f"Write about the number {number}: {'it is a number. ' * (number % 5)}" for number in range(16)]


def completion(server: Server, index: int) -> str:
    """Stream one completion and join it; odd ones are sampled with a seed, even ones greedy. None ends early."""
    body = {
        "model": MODEL_ID,
        "prompt": PROMPTS[index],
        "max_tokens": 64,
        "ignore_eos": True,
        "temperature": 0.9 if index % 2 else 0,
        "top_p": 0.95,
        "seed": index,
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


def test_sixteen_concurrent_streams_run_in_one_batch_and_each_equals_its_answer_alone(server: Server) -> None:
    """Batch invariance end to end, greedy and seeded; the gauge shows all sixteen in a step."""
    alone = [completion(server, index) for index in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(completion, server, index) for index in range(16)]
        rows = 0.0
        while not all(future.done() for future in futures):
            rows = max(rows, metric(server.url, "attend_batch_rows"))
        together = [future.result() for future in futures]
    assert together == alone
    assert rows == 16
    assert len(set(alone)) == 16


def test_a_client_that_leaves_frees_its_row(server: Server) -> None:
    """Streamed or not: closing the connection ends the work."""
    before = metric(server.url, "attend_requests_total", finish_reason="cancelled")
    body = {"model": MODEL_ID, "prompt": "Once upon a time", "max_tokens": 4000}
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=1.0)
    wait_for(lambda: metric(server.url, "attend_requests_running") == 0, "both rows are free")
    assert metric(server.url, "attend_requests_total", finish_reason="cancelled") == before + 2


def test_a_replica_stays_under_900_mb(server: Server) -> None:
    """Resident memory of the serving process after the tests so far, and after bodies of the largest size."""
    for _ in range(8):
        body = {"prompt": "word and " * 400_000}
        assert httpx.post(f"{server.url}/v1/generate", json=body, timeout=60).status_code == 400
    fitting = {"prompt": "word and " * 70_000}  # few enough characters to be tokenised, too many tokens
    for _ in range(4):
        assert httpx.post(f"{server.url}/v1/generate", json=fitting, timeout=60).status_code == 400
    resident_mb = psutil.Process(server.process.pid).memory_info().rss / 1e6
    assert resident_mb < MAX_RESIDENT_MB


@pytest.mark.parametrize("is_timeout", [True, False])
def test_what_a_drain_cannot_finish_ends_with_an_error_its_client_reads(
    default_bundle: Bundle, is_timeout: bool
) -> None:
    """At the drain timeout, and at a second signal: an error event for a stream, the error body for the others."""
    timeout_s = "0.5" if is_timeout else "60"
    with running_server("--standalone", "--bundle", default_bundle.path, "--drain-timeout-s", timeout_s) as server:
        body = {"prompt": "Once upon a time", "max_tokens": 8000}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            whole = pool.submit(httpx.post, f"{server.url}/v1/generate", json=body, timeout=60)
            with httpx.stream(
                "POST", f"{server.url}/v1/generate", json={**body, "stream": True}, timeout=60
            ) as response:
                lines = response.iter_lines()
                next(lines)
                wait_for(lambda: metric(server.url, "attend_requests_running") == 2, "both run")
                server.signal(signal.SIGTERM)
                if not is_timeout:
                    wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "the drain begins")
                    server.signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert whole.result().status_code == 500
            assert whole.result().json()["error"]["code"] == "engine_failed"
        assert "the service stopped" in json.loads(rest[-1].removeprefix("data: "))["error"]["message"]
        assert server.wait() == (0 if is_timeout else 128 + signal.SIGTERM)
        assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_streams_finish_and_refuses_new_ones(default_bundle: Bundle, number: int) -> None:
    """Nothing is lost at shutdown, the exit status is 0, and the terminal stays clean."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server:
        body = {"prompt": "Once upon a time", "max_tokens": 150, "stream": True, "temperature": 0.5, "seed": 1}
        with httpx.stream("POST", f"{server.url}/v1/generate", json=body, timeout=60) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.signal(number)
            wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, "the drain begins")
            refused = httpx.post(f"{server.url}/v1/generate", json={"prompt": "x"})
            rest = [line for line in [first, *lines] if line]
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["finish_reason"] in ("length", "stop")
        assert server.wait() == 0
        assert "Traceback" not in server.output
