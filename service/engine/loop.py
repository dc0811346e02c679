"""EngineLoop: the engine's own thread, and its bridge to asyncio.

Separate from the engine so that the engine stays synchronous and testable. Everything crosses threads in two places:
the inbox (commands to the engine thread) and one `call_soon_threadsafe` a step (that step's events to their streams).
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass

from service.engine.engine import FAILED_MESSAGE, Engine, EngineLoad, StepOutcome, StepReport
from service.engine.request import FinishReason, Request, TokenEvent
from service.engine.request_check import RequestLimits

logger = logging.getLogger(__name__)

IDLE_HEARTBEAT_S = 1.0
STOPPED_MESSAGE = "the service stopped before the answer was complete; send the request again"


class SubmitRefusedError(RuntimeError):
    """The engine takes no request now; the subclasses say why."""


class QueueFullError(SubmitRefusedError):
    """As many requests wait as are allowed to."""


class EngineDrainingError(SubmitRefusedError):
    """The service is shutting down and finishes only what it has begun."""


class EngineUnhealthyError(SubmitRefusedError):
    """The engine failed, or has not stepped for too long."""


@dataclass(frozen=True)
class LoopCallbacks:
    """Whom the loop tells what happened, from the engine's thread: for metrics. They must not block."""

    on_step: Callable[[StepReport], None] = lambda _report: None
    on_end: Callable[[Request], None] = lambda _request: None


class RequestStream:
    """The events of requests that were submitted together, as they come; read them once, on the submitting event loop.

    `cancel`, or closing `events` early, aborts what has not ended, which frees its rows before the next step.
    """

    def __init__(self, requests: Sequence[Request], cancel: Callable[[Request], None]) -> None:
        self.requests = tuple(requests)
        self.loop = asyncio.get_running_loop()
        self._arrived: list[TokenEvent | None] = []
        self._reader: asyncio.Future[None] | None = None  # waits for an arrival
        self._num_open = len(self.requests)
        self._cancel = cancel
        self._ticking: asyncio.Task[None] | None = None
        self._has_news = False

    @property
    def request(self) -> Request:
        """The first request; the only one, where one was submitted."""
        return self.requests[0]

    def deliver(self, event: TokenEvent) -> None:
        """Append an event. On the stream's own event loop only."""
        self._has_news = True
        self._arrived.append(event)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None:
            if not self._reader.done():
                self._reader.set_result(None)
            self._reader = None

    def cancel(self) -> None:
        """Abort the requests that have not ended."""
        if self._ticking is not None:
            self._ticking.cancel()
        for request in self.requests:
            if not request.is_finished:
                self._cancel(request)

    async def next_events(self) -> list[TokenEvent | None]:
        """What has come since the last call, at least one; None is a silence. Empty once every request has ended."""
        while not self._arrived:  # asyncio.Queue does the same for three times the time
            if not self._num_open:
                return []
            self._reader = self.loop.create_future()
            await self._reader
        events, self._arrived = self._arrived, []
        for event in events:
            if event is not None and event.finish_reason is not None:
                self._num_open -= 1
        return events

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Every event up to and including the last one with a finish reason; closed early, it aborts what runs."""
        try:
            while events := await self.next_events():
                for event in events:
                    if event is not None:
                        yield event
        finally:
            self.cancel()

    def report_silence(self, silence_s: float) -> None:
        """Let None come among the events whenever nothing has come for `silence_s` to twice that, seconds.

        Until `cancel`. One timer for the whole stream costs its events nothing.
        """

        async def tick() -> None:
            while True:
                self._has_news = False
                await asyncio.sleep(silence_s)
                if not self._has_news:
                    self._arrived.append(None)
                    self._wake_reader()

        self._ticking = self.loop.create_task(tick())


class EngineLoop:
    """Runs an engine in a thread: submit from asyncio, read back a stream of events."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting_requests: int,
        max_waiting_tokens: int = 2**31,
        stall_timeout_s: float,
        callbacks: LoopCallbacks | None = None,
    ) -> None:
        """stall_timeout_s: silence of the engine thread, seconds, after which it counts as dead."""
        self._engine = engine
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        self._stall_timeout_s = stall_timeout_s
        self._callbacks = callbacks or LoopCallbacks()
        self._wake = threading.Condition()  # guards the inbox, the streams and the flags below
        self._added: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._streams: dict[Request, RequestStream] = {}
        self._is_draining = False
        self._is_stopping = False
        self._failure: str | None = None
        self._load = engine.load()
        self._num_decode_rows = 0
        self._heartbeat_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="attend-engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._heartbeat_s = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End what is running with an error, and the thread with it. Drain first to lose nothing."""
        with self._wake:
            self._is_stopping = self._is_draining = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=self._stall_timeout_s)

    def begin_drain(self) -> None:
        """Refuse new requests from now on; those that were taken run to their end."""
        with self._wake:
            self._is_draining = True

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused because of a shutdown."""
        return self._is_draining

    @property
    def has_stopped_by_itself(self) -> bool:
        """Whether the engine is dead or stalled, and not because it was told to stop."""
        return not self.is_healthy and (self._failure is not None or not self._is_stopping)

    @property
    def num_in_flight(self) -> int:
        """Requests taken and not yet ended."""
        return len(self._streams)

    @property
    def num_waiting(self) -> int:
        """Requests taken that hold no row yet."""
        return len(self._added) + self._engine.num_waiting

    @property
    def budget_ratio(self) -> float:
        """Share of the KV budget in use, 0 to 1."""
        return self._engine.budget_ratio

    @property
    def num_decode_rows(self) -> int:
        """Requests that decoded together in the last step; 0 while idle."""
        return self._num_decode_rows

    @property
    def limits(self) -> RequestLimits:
        """What a request may ask for."""
        return self._engine.limits

    @property
    def load(self) -> EngineLoad:
        """What the engine's thread last said of its load."""
        return self._load

    def check_health(self) -> None:
        """Prove that the engine steps.

        Raises:
            EngineUnhealthyError: its thread ended, failed, or has been silent for longer than the stall timeout.
        """
        if self._failure is not None:
            raise EngineUnhealthyError(f"the engine has stopped: {self._failure}")
        if not self._thread.is_alive():
            raise EngineUnhealthyError("the engine's thread is not running")
        silence_s = time.monotonic() - self._heartbeat_s
        if silence_s > self._stall_timeout_s:
            raise EngineUnhealthyError(f"the engine has not finished a step for {silence_s:.0f} s")

    @property
    def is_healthy(self) -> bool:
        """Whether `check_health` passes."""
        try:
            self.check_health()
        except EngineUnhealthyError:
            return False
        return True

    def submit(self, *requests: Request) -> RequestStream:
        """Queue requests from an event loop, all of them or none; never blocks.

        Raises:
            InvalidRequestError: one of them could never run.
            QueueFullError, EngineDrainingError, EngineUnhealthyError: they were not taken.
        """
        for request in requests:
            self._engine.limits.check(request)
        self.check_open()
        with self._wake:
            self._check_room(requests)
            stream = RequestStream(requests, self._request_cancel)
            for request in requests:
                request.timeline.arrived_s = time.monotonic()
                self._streams[request] = stream
                self._added.append(request)
            self._wake.notify()
        return stream

    def check_open(self) -> None:
        """Refuse before any work is done for a request.

        Raises:
            EngineDrainingError, EngineUnhealthyError: none is taken now.
        """
        self.check_health()
        if self._is_draining:
            raise EngineDrainingError("the service is shutting down and takes no new requests")

    def _check_room(self, requests: Sequence[Request]) -> None:
        """Refuse what the queue has no room for. Under the lock.

        Raises:
            QueueFullError: too many requests or tokens wait.
        """
        if self.num_waiting and self.num_waiting + len(requests) > self._max_waiting_requests:
            raise QueueFullError(
                f"{self.num_waiting} requests are waiting, {self._max_waiting_requests} are allowed; try again later"
            )
        waiting_tokens = self._load.num_waiting_tokens + sum(added.num_tokens for added in self._added)
        new_tokens = sum(request.num_tokens for request in requests)
        if waiting_tokens and waiting_tokens + new_tokens > self._max_waiting_tokens:
            raise QueueFullError(
                f"{waiting_tokens} tokens are waiting, {self._max_waiting_tokens} are allowed; try again later"
            )

    def _request_cancel(self, request: Request) -> None:
        with self._wake:
            self._cancelled.append(request)
            self._wake.notify()

    def _run(self) -> None:
        """The thread: take commands, step, deliver; until stopped or failed."""
        try:
            while self._failure is None and self._take_commands():
                if self._engine.has_work:
                    self._step()
        except BaseException as error:  # extensions written in Rust panic with one, and requests must end
            logger.exception("the engine stopped stepping")
            self._failure = f"{type(error).__name__}: {error}"
        self._end_all(STOPPED_MESSAGE if self._failure is None else FAILED_MESSAGE)

    def _step(self) -> None:
        report = self._engine.step()
        if report.outcome is StepOutcome.FATAL:
            self._failure = f"{type(report.error).__name__}: {report.error}"
        self._num_decode_rows = report.num_decode_rows
        self._deliver(report.events)
        self._callbacks.on_step(report)

    def _take_commands(self) -> bool:
        """Apply the inbox, waiting for it while there is nothing to do. False when the loop is to end."""
        self._publish()
        with self._wake:
            if not (self._engine.has_work or self._added or self._cancelled or self._is_stopping):
                self._wake.wait(min(IDLE_HEARTBEAT_S, self._stall_timeout_s / 4))
            self._heartbeat_s = time.monotonic()
            if self._added:
                self._add_all()
                self._load = self._engine.load()
            cancelled = [request for request in self._cancelled if not request.is_finished]
            self._cancelled.clear()
        events = [event for request in cancelled if (event := self._engine.abort(request)) is not None]
        self._deliver(events)
        return not self._is_stopping

    def _add_all(self) -> None:
        """Empty the inbox into the engine. Under the lock."""
        while self._added:
            self._engine.add(self._added.popleft())

    def _publish(self) -> None:
        """Say what ended and what the load is now."""
        self._load = self._engine.load()
        if not self._engine.has_work:
            self._num_decode_rows = 0
        for request in self._engine.take_ended():
            self._callbacks.on_end(request)

    def _deliver(self, events: Iterable[TokenEvent]) -> None:
        """Hand events to their streams: one wake-up of each event loop for all of them."""
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[RequestStream, TokenEvent]]] = defaultdict(list)
        with self._wake:
            for event in events:
                stream = self._streams[event.request]
                if event.finish_reason is not None:
                    del self._streams[event.request]
                by_loop[stream.loop].append((stream, event))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, deliveries)
            except RuntimeError:  # that event loop is closed: nobody is left to read
                for stream, _ in deliveries:
                    stream.cancel()

    def _end_all(self, message: str) -> None:
        """Give every open request its one end, also those still in the inbox."""
        with self._wake:
            self._is_draining = True
            self._add_all()
            open_requests = list(self._streams)
        events = [self._engine.abort(request, FinishReason.ERROR, message) for request in open_requests]
        self._deliver(event for event in events if event is not None)
        self._publish()


def _deliver_all(deliveries: list[tuple[RequestStream, TokenEvent]]) -> None:
    for stream, event in deliveries:
        stream.deliver(event)
