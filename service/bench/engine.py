"""`attend bench engine`: where an engine step's time goes, at several batch sizes, on the real model.

Measures inside one run, so that the shares can be trusted on a noisy machine: each step's duration, the time spent in
`Decoder.decode` (binding and ONNX session), and the rest, which is the engine's own Python.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from model.bundle import Bundle, open_bundle
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.bench.quality import default_text
from service.engine.engine import Engine
from service.engine.request import Request, StopConditions
from service.engine.scheduler import Scheduler

ROWS = (1, 4, 16, 32)
PROMPT_TOKENS = 128
WARM_UP_STEPS = 5
STEPS = 60


class TimedDecoder(Decoder):
    """A decoder that adds up the time spent in `decode`, seconds."""

    def __init__(self, bundle: Bundle, kv_cache: KVCache, threads: int = 0) -> None:
        super().__init__(bundle, kv_cache, threads)
        self.session_s = 0.0

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Decode, and note how long it took."""
        started_s = time.perf_counter()
        logits = super().decode(token_ids, past_tokens)
        self.session_s += time.perf_counter() - started_s
        return logits


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a step, and of its time outside the session, at one batch size."""

    num_rows: int
    step_s: float
    outside_s: float

    @property
    def outside_share(self) -> float:
        """Share of the step that is not the session."""
        return self.outside_s / self.step_s


def measure(bundle: Bundle, num_rows: int, sampling: SamplingParams, threads: int = 0) -> StepTimes:
    """Decode `num_rows` requests together and time the steps in which nothing else happens."""
    decoder = TimedDecoder(
        bundle, KVCache(bundle.config, num_rows, PROMPT_TOKENS + WARM_UP_STEPS + STEPS + 64), threads
    )
    engine = Engine(decoder, Scheduler(PROMPT_TOKENS * num_rows))
    tokenizer = Tokenizer(bundle.tokenizer_json)
    text = tokenizer.encode(default_text()[:100_000])  # real text: what is sampled after noise is flat, and slower
    for index in range(num_rows):
        prompt = tuple(text[index * PROMPT_TOKENS : (index + 1) * PROMPT_TOKENS])
        stop = StopConditions(max_tokens=WARM_UP_STEPS + STEPS + 8)
        engine.add(Request(f"bench-{index}", prompt, sampling, stop, tokenizer.incremental()))
    for _ in range(WARM_UP_STEPS):
        engine.step()
    steps, outsides = [], []
    for _ in range(STEPS):
        decoder.session_s = 0.0
        report = engine.step()
        assert report.num_decode_rows == num_rows, "every request decodes in every measured step"
        steps.append(report.duration_s)
        outsides.append(report.duration_s - decoder.session_s)
    return StepTimes(num_rows, statistics.median(steps), statistics.median(outsides))


def engine_table(path: Path, threads: int = 0, say: Callable[[str], None] = lambda _: None) -> Table:
    """Step times at each batch size, greedy and sampled.

    Raises:
        BundleError, DecoderError: the bundle cannot be used.
    """
    bundle = open_bundle(path)
    model = f"{bundle.config.model_id}, {bundle.manifest.precision}"
    table = Table(title=f"{model}, prompts of {PROMPT_TOKENS} tokens, medians of {STEPS} steps")
    for column in ("rows", "sampling", "step ms", "session ms", "outside ms", "outside share"):
        table.add_column(column, justify="left" if column == "sampling" else "right")
    samplings: dict[str, Any] = {
        "greedy": SamplingParams(temperature=0.0),
        "temperature 0.8, top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95, seed=1),
    }
    for num_rows in ROWS:
        for name, sampling in samplings.items():
            say(f"{num_rows} rows, {name}")
            times = measure(bundle, num_rows, sampling, threads)
            table.add_row(
                str(num_rows),
                name,
                f"{times.step_s * 1e3:.2f}",
                f"{(times.step_s - times.outside_s) * 1e3:.2f}",
                f"{times.outside_s * 1e3:.2f}",
                f"{times.outside_share:.1%}",
            )
    return table
