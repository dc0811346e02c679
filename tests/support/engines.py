"""Engines over fake decoders, and stepping them with every invariant checked."""

from collections.abc import Sequence

from service.engine.engine import Engine
from service.engine.invariants import violations
from service.engine.request import Request, TokenEvent
from service.engine.scheduler import Scheduler
from tests.support.fake_decoder import FakeDecoder


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_engine(
    num_rows: int = 4,
    budget: int = 16,
    *,
    kv_budget_tokens: int | None = None,
    clock: Clock | None = None,
    decoder: FakeDecoder | None = None,
    prefix_cache_bytes: int = 0,
) -> tuple[Engine, FakeDecoder]:
    """An engine over a fake decoder. budget: prompt tokens a step. kv_budget_tokens: what all rows may hold."""
    decoder = decoder or FakeDecoder(num_rows)
    engine = Engine(
        decoder,
        Scheduler(budget),
        kv_budget_tokens=kv_budget_tokens,
        prefix_cache_bytes=prefix_cache_bytes,
        clock=clock or Clock(),
    )
    return engine, decoder


def run(engine: Engine, decoder: FakeDecoder) -> list[TokenEvent]:
    """Step until idle, checking every invariant after every step."""
    events: list[TokenEvent] = []
    while engine.has_work:
        events += engine.step().events
        assert violations(engine, decoder.kv_cache) == []
    return events


def text_of(events: Sequence[TokenEvent], request: Request) -> str:
    """What a client would have read."""
    return "".join(event.text for event in events if event.request is request)
