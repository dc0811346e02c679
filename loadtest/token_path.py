"""What a token costs between the sampler and the socket: `python -m loadtest.token_path`.

The real app with its routes and middleware streams answers whose tokens come from a text instead of a model, one for
each of N streams at a time. Counted is processor time, so other work on the machine matters little: of the engine's
thread (planning, bookkeeping, text, the event) and of the event loop (delivery, chunk, JSON, middleware).
"""

import asyncio
import json
import time
from collections.abc import Sequence
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
from service.engine.request import Request
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


class TextRunner(Runner):
    """Chooses each request's next token from a text."""

    def __init__(self, decoder: TokenDecoder, token_ids: Sequence[int]) -> None:
        super().__init__(decoder)
        self._token_ids = token_ids

    def run(self, plan: StepPlan, running: Sequence[Request]) -> StepResult:  # noqa: ARG002 - as the base class
        """Compute nothing."""
        time.sleep(PAUSE_S)
        ready = [*plan.decode, *(chunk.request for chunk in plan.prefill)]
        chosen = {request: [SampledToken(self._token_ids[request.num_generated], None)] for request in ready}
        return StepResult(tokens=chosen)


class TimedEngine(Engine):
    """Notes the processor time of its own thread, and of the whole process, where a step ends that is counted."""

    def __init__(self, decoder: TokenDecoder, token_ids: Sequence[int], num_streams: int) -> None:
        super().__init__(decoder, Scheduler(prefill_chunk_tokens=256))
        self._runner = TextRunner(decoder, token_ids)
        self._num_streams = num_streams
        self.marks: list[tuple[float, float]] = []  # (thread, process) seconds

    def step(self) -> StepReport:
        """As usual."""
        report = super().step()
        if report.num_decode_rows == self._num_streams:
            self.marks.append((time.thread_time(), time.process_time()))
        return report


async def stream(app: FastAPI, route: str, fields: dict[str, Any]) -> None:
    """One request through the app, to its end."""
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
    table = Table(title=f"{streams} streams, best of {rounds} rounds of {STEPS} tokens each")
    for column in ("route", "engine's thread, us a token", "event loop, us a token", "together"):
        table.add_column(column, justify="left" if column == "route" else "right")
    for route in ROUTES:
        found = [_once(bundle, decoder, token_ids, route, streams) for _ in range(rounds)]
        best = min(found, key=sum)
        table.add_row(route, *(f"{microseconds:.1f}" for microseconds in (*best, sum(best))))
    Console().print(table)


def _once(
    bundle: Bundle, decoder: Decoder, token_ids: Sequence[int], route: str, num_streams: int
) -> tuple[float, float]:
    app = assemble(Settings(bundle=bundle.path), bundle, decoder)
    engine = TimedEngine(decoder, token_ids, num_streams)
    metrics = app.state.metrics
    callbacks = LoopCallbacks(on_step=metrics.on_step, on_end=metrics.on_end)
    loop = EngineLoop(engine, max_waiting_requests=num_streams, stall_timeout_s=60.0, callbacks=callbacks)
    app.state.generator = replace(app.state.generator, engine_loop=loop)
    loop.start()
    try:
        return asyncio.run(measure(app, engine, route, num_streams))
    finally:
        loop.stop()


if __name__ == "__main__":
    typer.run(main)
