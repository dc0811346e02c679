"""`attend bench quality`: what each bundle's precision costs: perplexity, agreement with the first one, memory, time.

The text is cut into windows of 512 tokens; every token but a window's first is scored given those before it.
Perplexity is exp of the mean negative log-likelihood (Jelinek et al. 1977). Times are taken in turns, one bundle after
the other, and given as ratios: single times say little on a shared machine.
"""

import multiprocessing
import pydoc_data.topics
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from model.bundle import open_bundle
from model.decoder import Decoder
from model.errors import UserError
from model.kv_cache import KVCache
from model.tokenizer import Tokenizer

WINDOW_TOKENS = 512
GREEDY_TOKENS = 64  # of each answer that is compared
GREEDY_PROMPTS = 8
GREEDY_PROMPT_TOKENS = 32
PREFILL_TOKENS = 256
DECODE_ROWS = (1, 16)
DECODE_PAST_TOKENS = 256
TIMED_ROUNDS = 9
DECODES_A_ROUND = 4


class BenchError(UserError, ValueError):
    """A measurement that cannot be made; the message is one line."""


@dataclass(frozen=True)
class Score:
    """One bundle on one text. `log_likelihoods` and `choices` (the likeliest next token) are [N], N scored tokens."""

    name: str
    precision: str
    size_bytes: int
    log_likelihoods: npt.NDArray[np.float64]
    choices: npt.NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log-likelihood per token."""
        return float(np.exp(-self.log_likelihoods.mean()))

    def agreement(self, reference: "Score") -> float:
        """Share of positions at which both would choose the same token."""
        return float((self.choices == reference.choices).mean())


def score_bundle(path: Path, text: str, max_tokens: int) -> Score:
    """Run a bundle over whole windows of a text.

    Raises:
        BundleError, DecoderError: it cannot be used.
        BenchError: the text is shorter than one window.
    """
    bundle = open_bundle(path)
    ids = np.array(Tokenizer(bundle.tokenizer_json).encode(text, add_special_tokens=False)[:max_tokens], np.int64)
    windows = ids[: len(ids) // WINDOW_TOKENS * WINDOW_TOKENS].reshape(-1, WINDOW_TOKENS)
    if not len(windows):
        raise BenchError(f"the text has {len(ids)} tokens; at least {WINDOW_TOKENS} are needed")
    decoder = Decoder(bundle, KVCache(bundle.config, 1, WINDOW_TOKENS))
    scores = [_score_window(decoder, window) for window in windows]
    return Score(
        name=path.name,
        precision=bundle.manifest.precision,
        size_bytes=sum(file.stat().st_size for file in path.iterdir()),
        log_likelihoods=np.concatenate([likelihoods for likelihoods, _ in scores]),
        choices=np.concatenate([choices for _, choices in scores]),
    )


def greedy_answers(path: Path, text: str) -> npt.NDArray[np.int64]:
    """Answers to the first GREEDY_PROMPTS pieces of a text, int64 [GREEDY_PROMPTS, GREEDY_TOKENS]."""
    bundle = open_bundle(path)
    tokenizer = Tokenizer(bundle.tokenizer_json)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False)[: GREEDY_PROMPTS * GREEDY_PROMPT_TOKENS], np.int64)
    decoder = Decoder(bundle, KVCache(bundle.config, 1, GREEDY_PROMPT_TOKENS + GREEDY_TOKENS))
    return np.stack([_answer_greedily(decoder, start) for start in ids.reshape(-1, GREEDY_PROMPT_TOKENS)])


def greedy_match(answers: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> float:
    """Mean number of tokens that answers share with others before they part, of GREEDY_TOKENS."""
    return float(np.cumprod(answers == reference, axis=1).sum(axis=1).mean())


def _answer_greedily(decoder: Decoder, prompt: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The likeliest GREEDY_TOKENS tokens after a prompt, end tokens counted like others."""
    chosen = [int(decoder.prefill(0, prompt, 0)[-1].argmax())]
    while len(chosen) < GREEDY_TOKENS:
        past = np.array([len(prompt) + len(chosen) - 1])
        chosen.append(int(decoder.decode(np.array(chosen[-1:]), past)[0].argmax()))
    return np.array(chosen)


@dataclass(frozen=True)
class Cost:
    """What running a bundle takes: medians of seconds, and bytes of memory in use (proportional set size)."""

    prefill_s: float
    decode_s: dict[int, float]  # by rows
    resident_bytes: int


def measure_costs(paths: Sequence[Path]) -> list[Cost]:
    """Time a chunk of 256 tokens and decode steps of 1 and 16 rows that hold 256 tokens each, bundles taking turns."""
    resident = [_resident_bytes(path) for path in paths]
    rows, capacity = max(DECODE_ROWS), DECODE_PAST_TOKENS + 64
    bundles = [open_bundle(path) for path in paths]
    decoders = [Decoder(bundle, KVCache(bundle.config, rows, capacity)) for bundle in bundles]
    ids = np.arange(PREFILL_TOKENS) % min(bundle.config.vocab_size for bundle in bundles)
    prefills: list[list[float]] = [[] for _ in paths]
    decodes: list[dict[int, list[float]]] = [{count: [] for count in DECODE_ROWS} for _ in paths]
    for _ in range(TIMED_ROUNDS):
        for decoder, prefill_s, decode_s in zip(decoders, prefills, decodes, strict=True):
            prefill_s.append(_seconds(decoder.prefill, 0, ids, 0))
            for count, times in decode_s.items():
                past = np.full(count, DECODE_PAST_TOKENS)
                times += [_seconds(decoder.decode, ids[:count], past) for _ in range(DECODES_A_ROUND)]
    return [
        Cost(
            prefill_s=statistics.median(prefills[index]),
            decode_s={count: statistics.median(times) for count, times in decodes[index].items()},
            resident_bytes=resident[index],
        )
        for index in range(len(paths))
    ]


def _seconds(run: Callable[..., object], *arguments: object) -> float:
    started_s = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started_s


def _resident_bytes(path: Path) -> int:
    """Memory that a process with this bundle loaded and used once takes above one without it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_own_resident_bytes, (path,))


def _own_resident_bytes(path: Path) -> int:
    before = _proportional_set_bytes()
    bundle = open_bundle(path)
    decoder = Decoder(bundle, KVCache(bundle.config, 1, PREFILL_TOKENS))
    decoder.prefill(0, np.zeros(32, np.int64), 0)
    return _proportional_set_bytes() - before


def _proportional_set_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def quality_table(
    paths: Sequence[Path], text_file: Path | None, max_tokens: int, say: Callable[[str], None] = lambda _: None
) -> Table:
    """Score and time each bundle and lay the results out against the first; times as how much faster than that."""
    text = default_text() if text_file is None else _read_text(text_file)
    scores, answers = [], []
    for path in paths:
        say(f"scoring {path}")
        scores.append(score_bundle(path, text, max_tokens))
        answers.append(greedy_answers(path, text))
    reference = scores[0]
    say("timing")
    costs = measure_costs(paths)
    table = Table(title=f"{len(reference.choices)} scored tokens, windows of {WINDOW_TOKENS}")
    columns = ("bundle", "precision", "size MB", "resident MB", "perplexity", "vs first", "top-1 agreement")
    times = (f"prefill of {PREFILL_TOKENS}", *(f"decode of {count}" for count in DECODE_ROWS))
    for column in (*columns, f"greedy match of {GREEDY_TOKENS}", *times):
        table.add_column(column, justify="left" if column == "bundle" else "right")
    for score, cost, answer in zip(scores, costs, answers, strict=True):
        change = score.perplexity / reference.perplexity - 1
        table.add_row(
            score.name,
            score.precision,
            f"{score.size_bytes / 1e6:.0f}",
            f"{cost.resident_bytes / 1e6:.0f}",
            f"{score.perplexity:.4f}",
            f"{change:+.2%}",
            f"{score.agreement(reference):.2%}",
            f"{greedy_match(answer, answers[0]):.1f}",
            f"{costs[0].prefill_s / cost.prefill_s:.2f}x",
            *(f"{costs[0].decode_s[count] / cost.decode_s[count]:.2f}x" for count in DECODE_ROWS),
        )
    return table


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BenchError(f"{file} is not UTF-8 text") from None


def default_text() -> str:
    """English prose on every machine with Python: its language reference."""
    topics = pydoc_data.topics.topics
    return " ".join(topics[name] for name in sorted(topics))


def _score_window(
    decoder: Decoder, ids: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Log-likelihood of tokens 1.. of a window, and the likeliest token at each of their positions."""
    logits = decoder.prefill(0, ids, 0, np.arange(len(ids) - 1)).astype(np.float64)  # [T - 1, V]
    logits -= logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=-1))
    chosen = logits[np.arange(len(ids) - 1), ids[1:]]
    return chosen - normaliser, logits.argmax(axis=-1)
