"""`attend bench speculation`: what prompt lookup saves on the real model, and how often it changes an answer.

Each prompt is answered without and with speculation, one after the other in one process, so that the ratio of their
times holds on a noisy machine. Verifying computes several tokens at once, whose last bits differ from one at a time
(docs/architecture.md), so an answer can differ; the share that does is counted.
"""

import inspect
import statistics
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from model.bundle import Bundle, open_bundle
from model.chat import ChatTemplate
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.bench.quality import BenchError, default_text
from service.engine.engine import Engine
from service.engine.request import Request, StopConditions
from service.engine.scheduler import Scheduler
from service.engine.speculation import PromptLookup

ANSWER_TOKENS = 128
TEXT_CHARACTERS = 1200
CONTEXT_TOKENS = 2048
SAMPLINGS = {"greedy": SamplingParams(temperature=0.0), "temperature 0.7": SamplingParams(temperature=0.7, seed=1)}
QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Explain how rain forms.",
    "Give me three ideas for a birthday party.",
    "What makes a good teacher?",
    "Describe a walk through an old city.",
    "Why is the sky blue?",
    "Plan a week of simple dinners.",
    "How does a bicycle stay upright?",
)


@dataclass(frozen=True)
class Answered:
    """One prompt answered both ways. seconds_saved is a ratio: time without speculation over time with it."""

    speed_up: float
    num_drafted: int
    num_accepted: int
    is_different: bool


def prompts() -> dict[str, list[str]]:
    """Eight user messages of each kind: a text to summarise, code to edit, and an open question."""
    text = default_text()
    starts = range(20_000, 20_000 + 8 * 30_000, 30_000)
    passages = [text[start : start + TEXT_CHARACTERS] for start in starts]
    functions = [function for _, function in inspect.getmembers(textwrap, inspect.isfunction)] + [
        function for _, function in inspect.getmembers(statistics, inspect.isfunction)
    ]
    sources = [source for function in functions if 300 < len(source := inspect.getsource(function)) < 1600][:8]
    return {
        "summarise": [f"Summarize the following text, quoting it where you can:\n\n{passage}" for passage in passages],
        "edit code": [f"Repeat this Python function with a type hint on each argument:\n\n{code}" for code in sources],
        "open question": list(QUESTIONS),
    }


class SpeculationBench:
    """One engine with one row, which answers everything."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        if bundle.chat_template is None:
            raise BenchError(f"{bundle.config.model_id} has no chat template; the prompts are messages")
        self._tokenizer = Tokenizer(bundle.tokenizer_json)
        control_tokens = self._tokenizer.control_tokens
        self._template = ChatTemplate(bundle.chat_template, bundle.manifest.special_tokens, control_tokens)
        self._eos_ids = frozenset(bundle.config.eos_token_ids)
        decoder = Decoder(bundle, KVCache(bundle.config, 1, CONTEXT_TOKENS), threads)
        self._engine = Engine(decoder, Scheduler(512))

    def compare(self, message: str, sampling: SamplingParams) -> Answered:
        """Answer a message without, then with speculation; decoding is timed, computing the prompt is not."""
        pieces = self._template.pieces([{"role": "user", "content": message}])
        prompt_ids = tuple(self._tokenizer.encode_pieces(pieces))
        plain, plain_s = self._answer(prompt_ids, sampling, None)
        lookup = PromptLookup()
        guessed, guessed_s = self._answer(prompt_ids, sampling, lookup)
        per_token = (plain_s / len(plain)) / (guessed_s / len(guessed))
        return Answered(per_token, lookup.num_drafted, lookup.num_accepted, plain != guessed)

    def _answer(
        self, prompt_ids: tuple[int, ...], sampling: SamplingParams, lookup: PromptLookup | None
    ) -> tuple[list[int], float]:
        stop = StopConditions(ANSWER_TOKENS, eos_token_ids=self._eos_ids)
        request = Request("bench", prompt_ids, sampling, stop, self._tokenizer.incremental(), speculation=lookup)
        self._engine.add(request)
        while not request.generated_ids:
            self._engine.step()
        started_s = time.perf_counter()
        while not request.is_finished:
            self._engine.step()
        return request.generated_ids, time.perf_counter() - started_s


def speculation_table(path: Path, threads: int = 0, say: Callable[[str], None] = lambda _: None) -> Table:
    """Speed-up, acceptance and differing answers for each kind of prompt.

    Raises:
        BundleError, DecoderError, BenchError: the bundle cannot be used.
    """
    bundle = open_bundle(path)
    bench = SpeculationBench(bundle, threads)
    title = (
        f"{bundle.config.model_id}, {bundle.manifest.precision}, one stream, answers of up to {ANSWER_TOKENS} tokens"
    )
    table = Table(title=title)
    for column in ("prompts", "sampling", "speed-up median (min-max)", "drafted kept", "answers that differ"):
        table.add_column(column, justify="left" if column in ("prompts", "sampling") else "right")
    for kind, messages in prompts().items():
        for name, sampling in SAMPLINGS.items():
            say(f"{kind}, {name}")
            results = [bench.compare(message, sampling) for message in messages]
            ratios = [result.speed_up for result in results]
            num_drafted = sum(result.num_drafted for result in results)
            kept = f"{sum(result.num_accepted for result in results) / num_drafted:.0%}" if num_drafted else "-"
            table.add_row(
                kind,
                name,
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{kept} of {num_drafted}",
                f"{sum(result.is_different for result in results)} of {len(results)}",
            )
    return table
