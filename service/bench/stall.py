"""`attend bench stall`: what a long prompt does to others, on the real model.

One stream runs, a prompt of 6,000 tokens arrives, then one of 30. Printed in chunks, the time of one full prompt
chunk in the same run, because milliseconds alone say little on a noisy machine.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from model.bundle import open_bundle
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.bench.quality import default_text
from service.engine.engine import Engine
from service.engine.request import Request, StopConditions
from service.engine.scheduler import Scheduler

LONG_TOKENS = 6000
SHORT_TOKENS = 30
WARM_UP_STEPS = 20


@dataclass(frozen=True)
class StallTimes:
    """Seconds. chunk_s: median step that computes a full chunk of the long prompt beside the stream."""

    chunk_s: float
    worst_gap_s: float
    short_first_token_s: float


def measure(path: Path, chunk_tokens: int, threads: int = 0) -> StallTimes:
    """Run the scenario once.

    Raises:
        BundleError, DecoderError: the bundle cannot be used.
    """
    bundle = open_bundle(path)
    tokenizer = Tokenizer(bundle.tokenizer_json)
    text = tokenizer.encode(default_text()[:100_000])
    engine = Engine(Decoder(bundle, KVCache(bundle.config, 4, LONG_TOKENS + 64), threads), Scheduler(chunk_tokens))

    def add(name: str, start: int, prompt_tokens: int, max_tokens: int) -> Request:
        prompt = tuple(text[start : start + prompt_tokens])
        stop = StopConditions(max_tokens)
        request = Request(name, prompt, SamplingParams(temperature=0.0), stop, tokenizer.incremental())
        engine.add(request)
        return request

    stream = add("stream", 9000, 100, 2000)
    for _ in range(WARM_UP_STEPS):
        engine.step()
    long = add("long", 0, LONG_TOKENS, 1)
    gaps, chunks, short, short_s = [], [], None, 0.0
    while not long.is_finished:
        report = engine.step()
        gaps += [event.since_previous_s for event in report.events if event.request is stream]
        if short is None:
            chunks.append(report.duration_s)
            if len(chunks) == 3:
                short = add("short", 7000, SHORT_TOKENS, 1)
        elif not short_s:
            short_s = report.duration_s if short.is_finished else 0.0
    return StallTimes(statistics.median(chunks), max(gaps), short_s + max(chunks))


def stall_table(path: Path, chunk_tokens: int, threads: int = 0, say: Callable[[str], None] = lambda _: None) -> Table:
    """The scenario's times, in milliseconds and in chunks."""
    say(f"a prompt of {LONG_TOKENS} tokens beside a stream and a prompt of {SHORT_TOKENS}")
    times = measure(path, chunk_tokens, threads)
    table = Table(
        title=f"chunks of {chunk_tokens} tokens; one takes {times.chunk_s * 1e3:.0f} ms at the start of the prompt"
    )
    for column in ("what", "ms", "chunks"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "longest gap of the running stream": times.worst_gap_s,
        "first token of the short prompt, had it come just after a step began": times.short_first_token_s,
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds * 1e3:.0f}", f"{seconds / times.chunk_s:.1f}")
    return table
