"""What a token costs between the sampler and the socket: `python -m loadtest.token_path`.

The real app with its routes and middleware streams answers whose tokens come from a text instead of a model, one for
each of N streams at a time. Two measures:

* as it serves: an engine thread that pauses where the model would compute, and the event loop. Counted is processor
  time, so other work on the machine matters little: of the engine's thread (planning, bookkeeping, text, the event,
  metrics) and of the event loop (delivery, chunk, JSON, middleware). The pause leaves caches and clock cold.
* warm: steps follow each other in one thread. Counted is the time from the tokens being chosen to the last of their
  bytes being handed to the server: text, event, delivery, chunk, JSON, middleware; the fastest tenth of the steps.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from model.bundle import Bundle, open_bundle
from model.bundle_writer import default_bundle_path
from model.decoder import Decoder
from model.kv_cache import KVCache
from model.sampler import SampledToken
from model.tokenizer import Tokenizer
from service.app import assemble
from service.bench.quality import default_text
from service.engine.engine import Engine, StepReport
from service.engine.loop import EngineLoop, LoopCallbacks
from service.engine.plan import StepPlan
from service.engine.request import Request, TokenEvent
from service.engine.runner import Runner, StepResult, TokenDecoder
from service.engine.scheduler import Scheduler
from service.settings import Settings

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once", "ignore_eos": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Once"}], "ignore_eos": True},
    "/v1/generate": {"prompt": "Once", "ignore_eos": True},
}
DEFAULT_BUNDLE = default_bundle_path(Path(".cache/attend"))
WARM_UP_STEPS = 50
STEPS = 400
PAUSE_S = 0.004  # where the model would compute; long enough for the step's bytes to be sent
DELIVERY_ROUNDS = 3  # turns of the event loop in which a step's events become bytes


class TextRunner(Runner):
    """Chooses each request's next token from a text."""

    def __init__(self, decoder: TokenDecoder, token_ids: Sequence[int], pause_s: float) -> None:
        super().__init__(decoder)
        self._token_ids = token_ids
        self._pause_s = pause_s

    def run(self, plan: StepPlan, running: Sequence[Request]) -> StepResult:  # noqa: ARG002 - as the base class
        """Compute nothing."""
        if self._pause_s:
            time.sleep(self._pause_s)
        ready = [*plan.decode, *(chunk.request for chunk in plan.prefill)]
        chosen = {request: [SampledToken(self._token_ids[request.num_generated], None)] for request in ready}
        return StepResult(tokens=chosen)


class TimedEngine(Engine):
    """Notes the processor time of its own thread, and of the whole process, where a step ends that is counted.

    chosen_s: when the last step's tokens had been chosen, by the performance counter.
    """

    def __init__(self, decoder: TokenDecoder, token_ids: Sequence[int], num_streams: int, pause_s: float) -> None:
        super().__init__(decoder, Scheduler(prefill_chunk_tokens=256))
        self._runner = TextRunner(decoder, token_ids, pause_s)
        self._num_streams = num_streams
        self.marks: list[tuple[float, float]] = []  # (thread, process) seconds
        self.chosen_s = 0.0

    def step(self) -> StepReport:
        """As usual."""
        report = super().step()
        if report.num_decode_rows == self._num_streams:
            self.marks.append((time.thread_time(), time.process_time()))
        return report

    def _commit(self, plan: StepPlan, result: StepResult) -> Iterable[TokenEvent]:
        self.chosen_s = time.perf_counter()
        return super()._commit(plan, result)


class UnthreadedLoop(EngineLoop):
    """Steps where it is told to, on the event loop's own thread."""

    def check_open(self) -> None:
        """There is no thread whose health could be checked."""

    def step(self) -> None:
        """Take what was submitted, step once, deliver."""
        self._take_commands()
        if self._engine.has_work:
            self._step()


async def stream(
    app: FastAPI, route: str, fields: dict[str, Any], on_body: Callable[[], object] = lambda: None
) -> None:
    """One request through the app, to its end. on_body: called for everything that is handed to the server."""
    options = {"model": app.state.generator.model_id, "stream": True, "max_tokens": WARM_UP_STEPS + STEPS + 50}
    body = json.dumps({**fields, **options}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("never reached")

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message
        on_body()

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": route,
        "raw_path": route.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }
    await app(scope, receive, send)


async def measure(app: FastAPI, engine: TimedEngine, route: str, num_streams: int) -> tuple[float, float]:
    """Microseconds a token of the engine's thread, and of the rest of the process."""
    await asyncio.gather(*(stream(app, route, ROUTES[route]) for _ in range(num_streams)))
    (first_thread_s, first_process_s), (thread_s, process_s) = engine.marks[WARM_UP_STEPS], engine.marks[-1]
    num_tokens = num_streams * (len(engine.marks) - 1 - WARM_UP_STEPS)
    of_engine_s = thread_s - first_thread_s
    return of_engine_s / num_tokens * 1e6, (process_s - first_process_s - of_engine_s) / num_tokens * 1e6


async def measure_warm(app: FastAPI, loop: UnthreadedLoop, engine: TimedEngine, route: str, num_streams: int) -> float:
    """Microseconds from a token being chosen to its bytes, in the fastest tenth of the steps."""
    sent = itertools.count()
    sending = [asyncio.ensure_future(stream(app, route, ROUTES[route], lambda: next(sent))) for _ in range(num_streams)]
    while loop.num_in_flight < num_streams:
        await asyncio.sleep(0.001)
    times_s: list[float] = []
    while not all(task.done() for task in sending):
        before = next(sent)
        loop.step()
        for _ in range(DELIVERY_ROUNDS):
            await asyncio.sleep(0)
        if next(sent) - before - 1 == num_streams:  # a token of each stream, and nothing else
            times_s.append(time.perf_counter() - engine.chosen_s)
    await asyncio.gather(*sending)
    assert len(times_s) > STEPS, f"only {len(times_s)} steps had a token of every stream"
    return sorted(times_s)[len(times_s) // 10] / num_streams * 1e6


def main(
    bundle_path: Annotated[Path, typer.Option("--bundle", help="Whose tokenizer and names are used.")] = DEFAULT_BUNDLE,
    streams: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="The best of several is shown.")] = 3,
) -> None:
    """Measure and print."""
    bundle = open_bundle(bundle_path)
    num_tokens = WARM_UP_STEPS + STEPS + 100
    decoder = Decoder(bundle, KVCache(bundle.config, streams, num_tokens + 100))
    token_ids = Tokenizer(bundle.tokenizer_json).encode(default_text()[: 20 * num_tokens])
    table = Table(title=f"{streams} streams, best of {rounds} rounds of {STEPS} tokens each, us a token")
    for column in ("route", "engine's thread", "event loop", "together", "warm, chosen to bytes"):
        table.add_column(column, justify="left" if column == "route" else "right")
    for route in ROUTES:
        found = [_once(bundle, decoder, token_ids, route, streams) for _ in range(rounds)]
        best = min(found, key=sum)
        warm = min(_once_warm(bundle, decoder, token_ids, route, streams) for _ in range(rounds))
        table.add_row(route, *(f"{microseconds:.1f}" for microseconds in (*best, sum(best), warm)))
    Console().print(table)


def _once(
    bundle: Bundle, decoder: Decoder, token_ids: Sequence[int], route: str, num_streams: int
) -> tuple[float, float]:
    app = assemble(Settings(bundle=bundle.path), bundle, decoder)
    engine = TimedEngine(decoder, token_ids, num_streams, PAUSE_S)
    metrics = app.state.metrics
    callbacks = LoopCallbacks(on_step=metrics.on_step, on_end=metrics.on_end)
    loop = EngineLoop(engine, max_waiting_requests=num_streams, stall_timeout_s=60.0, callbacks=callbacks)
    app.state.generator = replace(app.state.generator, engine_loop=loop)
    loop.start()
    try:
        return asyncio.run(measure(app, engine, route, num_streams))
    finally:
        loop.stop()


def _once_warm(bundle: Bundle, decoder: Decoder, token_ids: Sequence[int], route: str, num_streams: int) -> float:
    app = assemble(Settings(bundle=bundle.path), bundle, decoder)
    engine = TimedEngine(decoder, token_ids, num_streams, pause_s=0.0)
    loop = UnthreadedLoop(engine, max_waiting_requests=num_streams, stall_timeout_s=60.0)
    app.state.generator = replace(app.state.generator, engine_loop=loop)
    return asyncio.run(measure_warm(app, loop, engine, route, num_streams))


if __name__ == "__main__":
    typer.run(main)
