"""The engine thread and its asyncio bridge, on a fake decoder."""

import asyncio
import gc
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager

import psutil
import pytest

from service.engine.engine import FAILED_MESSAGE, Engine, RetryableError
from service.engine.loop import (
    STOPPED_MESSAGE,
    EngineDrainingError,
    EngineLoop,
    EngineUnhealthyError,
    LoopCallbacks,
    QueueFullError,
    RequestStream,
)
from service.engine.request import FinishReason, Request, TokenEvent
from service.engine.scheduler import Scheduler
from tests.support.fake_decoder import FakeDecoder, GatedDecoder, expected_tokens
from tests.support.requests import make_request

MEMORY_SLACK_BYTES = 16 << 20  # 8,000 requests that stayed would take about five times as much
MAX_CALLS_PER_STEP = 17  # a decode, and a chunk for each of 16 rows


class FlakyDecoder(FakeDecoder):
    """Fails now and then in a way that passes, never so often in a row that the engine gives up."""

    def __init__(self, num_rows: int, failure_share: float) -> None:
        super().__init__(num_rows)
        self.num_failures = 0
        self._failure_share = failure_share
        self._random = random.Random(1)
        self._last_failure = -MAX_CALLS_PER_STEP

    def _count(self) -> None:
        super()._count()
        has_passed = self.num_calls - self._last_failure > MAX_CALLS_PER_STEP
        if has_passed and self._random.random() < self._failure_share:
            self._last_failure = self.num_calls
            self.num_failures += 1
            raise RetryableError("a moment, please")


@contextmanager
def running_loop(
    decoder: FakeDecoder,
    *,
    max_waiting: int = 100,
    stall_timeout_s: float = 20.0,
    callbacks: LoopCallbacks | None = None,
) -> Iterator[EngineLoop]:
    """A started loop, stopped at the end."""
    engine = Engine(decoder, Scheduler(16))
    loop = EngineLoop(engine, max_waiting_requests=max_waiting, stall_timeout_s=stall_timeout_s, callbacks=callbacks)
    loop.start()
    try:
        yield loop
    finally:
        if isinstance(decoder, GatedDecoder):
            decoder.gate.set()
        loop.stop()


async def read(stream: RequestStream) -> list[TokenEvent]:
    """Every event of a stream."""
    async with aclosing(stream.events()) as events:
        return [event async for event in events]


async def until(condition: Callable[[], bool], *, what: str) -> None:
    """Wait for something that another thread brings about."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"never happened: {what}")


def test_concurrent_streams_each_get_their_own_tokens() -> None:
    """Forty requests over four rows, read at the same time."""

    async def scenario(loop: EngineLoop) -> None:
        requests = [make_request([i, i + 1, 7], 10) for i in range(40)]
        streams = [loop.submit(request) for request in requests]
        for request, events in zip(requests, await asyncio.gather(*map(read, streams)), strict=True):
            assert [event.token_id for event in events] == expected_tokens(request.prompt_ids, 10)
            assert events[-1].finish_reason is FinishReason.LENGTH
        assert loop.num_in_flight == 0

    with running_loop(FakeDecoder()) as loop:
        asyncio.run(scenario(loop))


def test_a_reader_that_leaves_cancels_its_request_and_frees_its_row() -> None:
    """Closing the events early is all that a disconnect needs to do; others go on."""
    ended: list[Request] = []

    async def scenario(loop: EngineLoop, decoder: GatedDecoder) -> None:
        leaver, stayer = make_request([1, 2], 400), make_request([3, 4], 30)
        streams = loop.submit(leaver), loop.submit(stayer)
        async with aclosing(streams[0].events()) as events:
            await anext(events)
        decoder.gate.set()
        assert len(await read(streams[1])) == 30
        await until(lambda: decoder.kv_cache.rows_used() == [], what="both rows free")
        assert leaver.finish_reason is FinishReason.CANCELLED
        assert leaver.num_generated < 5
        await until(lambda: len(ended) == 2, what="both reported")

    decoder = GatedDecoder()
    with running_loop(decoder, callbacks=LoopCallbacks(on_end=ended.append)) as loop:
        asyncio.run(scenario(loop, decoder))


def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    """The bound holds, and nothing that was taken is lost."""

    async def scenario(loop: EngineLoop, decoder: GatedDecoder) -> None:
        running = loop.submit(make_request([1, 2], 3))
        await until(decoder.entered.is_set, what="the row is taken")
        waiting = [loop.submit(make_request([i, 2], 3)) for i in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            loop.submit(make_request([9, 9], 3))
        decoder.gate.set()
        assert [len(events) for events in await asyncio.gather(*map(read, [running, *waiting]))] == [3, 3, 3]
        assert len(await read(loop.submit(make_request([9, 9], 3)))) == 3

    decoder = GatedDecoder(num_rows=1)
    with running_loop(decoder, max_waiting=2) as loop:
        asyncio.run(scenario(loop, decoder))


def test_a_failing_decoder_ends_every_request_with_an_error_and_health_says_so() -> None:
    """No request hangs, none is told a lie, later ones are refused."""

    async def scenario(loop: EngineLoop, decoder: FakeDecoder) -> None:
        decoder.fail_at_call = 6
        streams = [loop.submit(make_request([i, 2], 50)) for i in range(8)]
        for events in await asyncio.gather(*map(read, streams)):
            assert events[-1].finish_reason is FinishReason.ERROR
            assert events[-1].error == FAILED_MESSAGE
        assert not loop.is_healthy
        with pytest.raises(EngineUnhealthyError, match="injected failure"):
            loop.submit(make_request([1, 2]))

    decoder = FakeDecoder()
    with running_loop(decoder) as loop:
        asyncio.run(scenario(loop, decoder))
    assert decoder.kv_cache.rows_used() == []


class Panic(BaseException):
    """What an extension written in Rust raises when it gives up."""


def test_a_panic_ends_every_request_too() -> None:
    """It is no Exception, and must not leave clients waiting."""

    async def scenario(loop: EngineLoop, decoder: FakeDecoder) -> None:
        decoder.fail_at_call, decoder.failure = 4, Panic("index out of bounds")  # type: ignore[assignment]  # on purpose
        streams = [loop.submit(make_request([i, 2], 50)) for i in range(6)]
        for events in await asyncio.gather(*map(read, streams)):
            assert events[-1].finish_reason is FinishReason.ERROR
        assert not loop.is_healthy

    decoder = FakeDecoder()
    with running_loop(decoder) as loop:
        asyncio.run(scenario(loop, decoder))


def test_more_answers_than_the_queue_holds_are_taken_when_nothing_waits() -> None:
    """Otherwise such a request would be told to try again for ever; beside others it waits its turn outside."""

    async def scenario(loop: EngineLoop, decoder: GatedDecoder) -> None:
        many = loop.submit(*(make_request([i, 2], 3) for i in range(6)))
        with pytest.raises(QueueFullError):
            loop.submit(*(make_request([i, 2], 3) for i in range(6)))
        decoder.gate.set()
        assert len(await read(many)) == 18

    decoder = GatedDecoder(num_rows=1)
    with running_loop(decoder, max_waiting=2) as loop:
        asyncio.run(scenario(loop, decoder))


def test_health_is_false_while_a_step_hangs_and_true_again_after_it() -> None:
    """Liveness proves stepping, not that a thread exists."""

    async def scenario(loop: EngineLoop, decoder: GatedDecoder) -> None:
        loop.check_health()
        stream = loop.submit(make_request([1, 2], 3))
        await until(lambda: not loop.is_healthy, what="the stall is seen")
        with pytest.raises(EngineUnhealthyError, match="has not finished a step for"):
            loop.check_health()
        decoder.gate.set()
        assert len(await read(stream)) == 3
        assert loop.is_healthy

    decoder = GatedDecoder()
    with running_loop(decoder, stall_timeout_s=0.3) as loop:
        asyncio.run(scenario(loop, decoder))


def test_a_loop_that_was_not_started_is_not_healthy() -> None:
    """A web server in front of no engine must not say that it lives."""
    loop = EngineLoop(Engine(FakeDecoder(), Scheduler(16)), max_waiting_requests=1, stall_timeout_s=1)
    assert not loop.is_healthy


def test_draining_refuses_new_requests_and_finishes_running_ones() -> None:
    """What was taken is answered in full."""

    async def scenario(loop: EngineLoop) -> None:
        stream = loop.submit(make_request([1, 2], 40))
        loop.begin_drain()
        assert loop.is_draining
        with pytest.raises(EngineDrainingError):
            loop.submit(make_request([3, 4]))
        assert len(await read(stream)) == 40

    with running_loop(FakeDecoder()) as loop:
        asyncio.run(scenario(loop))


def test_stopping_ends_what_still_runs_with_an_error() -> None:
    """Also a stop without a drain leaves no request without an end."""

    async def scenario(loop: EngineLoop, decoder: GatedDecoder) -> None:
        streams = [loop.submit(make_request([i, 2], 400)) for i in range(6)]
        await until(decoder.entered.is_set, what="a step has begun")
        stopper = threading.Thread(target=loop.stop)
        stopper.start()
        decoder.gate.set()
        for events in await asyncio.gather(*map(read, streams)):
            assert events[-1].finish_reason is FinishReason.ERROR
            assert events[-1].error == STOPPED_MESSAGE
        stopper.join()

    decoder = GatedDecoder()
    with running_loop(decoder) as loop:
        asyncio.run(scenario(loop, decoder))


def test_an_event_loop_that_is_gone_cancels_its_requests() -> None:
    """Nobody is left to read: the rows must not stay taken."""

    async def abandon(loop: EngineLoop) -> Request:
        return loop.submit(make_request([1, 2], 450)).request

    async def wait(request: Request) -> None:
        await until(lambda: request.is_finished, what="the abandoned request ends")

    decoder = GatedDecoder()
    with running_loop(decoder) as loop:
        request = asyncio.run(abandon(loop))
        decoder.gate.set()
        asyncio.run(wait(request))
        assert request.finish_reason is FinishReason.CANCELLED


def test_load_is_zero_when_idle() -> None:
    """Gauges read it at any time, also when no step runs."""

    async def scenario(loop: EngineLoop) -> None:
        await read(loop.submit(make_request([1, 2], 3)))
        await until(lambda: loop.load.num_running == 0 and loop.num_decode_rows == 0, what="idle load")
        assert loop.num_waiting == 0
        assert loop.load.kv_usage.committed_bytes == 0

    with running_loop(FakeDecoder()) as loop:
        asyncio.run(scenario(loop))


def test_ten_thousand_requests_with_departures_and_failures_add_up() -> None:
    """30 % leave early, 5 % of the decoder's calls fail for a moment: all end once, nothing is left, memory is flat."""
    num_requests, ended, alive = 10_000, Counter[str](), weakref.WeakSet[Request]()
    used_bytes: list[int] = []
    decoder = FlakyDecoder(num_rows=16, failure_share=0.05)

    async def one(loop: EngineLoop, index: int, gate: asyncio.Semaphore) -> bool:
        async with gate:
            if index in (num_requests // 5, num_requests - 1):
                used_bytes.append(psutil.Process().memory_info().rss)
            request = make_request([index % 256, index // 256 % 256], 3)
            alive.add(request)
            events = loop.submit(request).events()
            async with aclosing(events):
                if index % 10 < 3:
                    return (await anext(events)).finish_reason is not None
                tokens = [event.token_id async for event in events]
        assert tokens == expected_tokens(request.prompt_ids, 3)
        return True

    async def scenario(loop: EngineLoop) -> None:
        gate = asyncio.Semaphore(64)
        done = await asyncio.gather(*(one(loop, index, gate) for index in range(num_requests)))
        assert sum(done) >= num_requests * 7 // 10
        await until(lambda: loop.num_in_flight == 0 and sum(ended.values()) == num_requests, what="all have ended")

    def count(request: Request) -> None:
        ended[str(request.finish_reason)] += 1

    with running_loop(decoder, callbacks=LoopCallbacks(on_end=count)) as loop:
        asyncio.run(scenario(loop))
        assert loop.is_healthy
    assert decoder.kv_cache.rows_used() == []
    assert decoder.num_failures > 100
    gc.collect()
    assert len(alive) == 0
    assert used_bytes[1] - used_bytes[0] < MEMORY_SLACK_BYTES
    assert ended["error"] == 0
    assert ended["length"] + ended["cancelled"] == num_requests
    assert ended["length"] >= num_requests * 7 // 10
