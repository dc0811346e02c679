"""Perplexity of the weights that each server really runs, through its own computation.

The same windows of the same text as `attend bench quality`, as token ids. Most servers give the log-probabilities of a
prompt (`echo` with `logprobs`). llama.cpp's does not: there every token is asked for as the next one after those
before, with the distribution (`n_probs`) over the whole vocabulary where the likeliest few do not hold it.
"""

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.peers.contestants import Contestant
from loadtest.peers.installation import PeerError, peer_python
from loadtest.peers.server import RunningServer, running_server
from loadtest.peers.weights import hugging_face_dir

FEW_PROBABILITIES = 50
LIBRARY_SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folder, dtype, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
windows = json.load(sys.stdin)
with torch.no_grad():
    for window in windows:
        ids = torch.tensor([window])
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
        print(json.dumps([None, *scores.gather(-1, ids[0, 1:, None])[:, 0].tolist()]))
"""

Logprobs = list[float | None]


def perplexity(windows: Sequence[Logprobs]) -> float:
    """Exponential of the mean negative log-probability (natural) of all tokens but each window's first."""
    values = [value for window in windows for value in window[1:] if value is not None]
    expected = sum(len(window) - 1 for window in windows)
    if len(values) != expected:
        raise PeerError(f"{expected - len(values)} of {expected} tokens have no log-probability")
    return math.exp(-sum(values) / expected)


def text_windows(tokenizer_json: Path, num_windows: int) -> list[list[int]]:
    """The first windows of the text that `attend bench quality` reads, as token ids."""
    from model.tokenizer import Tokenizer
    from service.bench.quality import WINDOW_TOKENS, default_text

    ids = Tokenizer(tokenizer_json.read_text(encoding="utf-8")).encode(default_text(), add_special_tokens=False)
    return [list(ids[n * WINDOW_TOKENS : (n + 1) * WINDOW_TOKENS]) for n in range(num_windows)]


def measure_perplexity(
    contestant: Contestant, cache_dir: Path, windows: Sequence[Sequence[int]], log: Path, timeout_s: float, threads: int
) -> float | str:
    """The contestant's perplexity, or why there is none."""
    if contestant.missing is not None:
        return contestant.missing
    if contestant.scoring == "none":
        return "same weights as with the cache"
    try:
        if contestant.scoring == "library":
            return perplexity(_score_in_library(cache_dir, contestant.precision, windows, threads))
        score: Callable[[RunningServer, Sequence[int]], Logprobs] = SCORERS[contestant.scoring]
        with running_server(contestant, threads, 1, log, timeout_s) as server:
            return perplexity([score(server, window) for window in windows])
    except PeerError as error:
        return f"not offered: {error}"


def _score_by_echo(server: RunningServer, ids: Sequence[int]) -> Logprobs:
    body = {"model": server.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    status, reply = server.request("POST", "/v1/completions", body)
    if status != 200:
        raise PeerError(f"HTTP {status}: {reply[:200].decode(errors='replace')}")
    return list(json.loads(reply)["choices"][0]["logprobs"]["token_logprobs"][: len(ids)])


def _score_by_n_probs(server: RunningServer, ids: Sequence[int]) -> Logprobs:
    return [None, *(_next_logprob(server, ids[:n], ids[n]) for n in range(1, len(ids)))]


def _next_logprob(server: RunningServer, before: Sequence[int], token_id: int) -> float | None:
    """llama.cpp's log-probability of a token after others: among the likeliest, else in the whole distribution."""
    for num_probabilities in (FEW_PROBABILITIES, 1 << 20):
        body = {"prompt": list(before), "n_predict": 1, "temperature": 0, "n_probs": num_probabilities}
        status, reply = server.request("POST", "/completion", {**body, "cache_prompt": True})
        if status != 200:
            raise PeerError(f"HTTP {status}: {reply[:200].decode(errors='replace')}")
        candidates = json.loads(reply)["completion_probabilities"][0]["top_logprobs"]
        for candidate in candidates:
            if candidate["id"] == token_id:
                return float(candidate["logprob"])
    return None


def _score_in_library(cache_dir: Path, dtype: str, windows: Sequence[Sequence[int]], threads: int) -> list[Logprobs]:
    """`transformers serve` returns no log-probabilities: the same library, dtype and weights without its server."""
    python = peer_python(cache_dir, "transformers")
    command = [str(python), "-c", LIBRARY_SCRIPT, str(hugging_face_dir(cache_dir)), dtype, str(threads)]
    content = json.dumps([list(window) for window in windows])
    result = subprocess.run(command, input=content, capture_output=True, text=True, check=False)
    if result.returncode:
        raise PeerError((result.stderr.strip() or "no output").splitlines()[-1])
    return [json.loads(line) for line in result.stdout.splitlines()]


SCORERS: dict[str, Callable[[RunningServer, Sequence[int]], Logprobs]] = {
    "echo": _score_by_echo,
    "n_probs": _score_by_n_probs,
}
