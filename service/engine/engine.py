"""Engine: add, abort, step. Synchronous, single-threaded, and the only place where requests change.

A step is a transaction: plan (pure), reserve rows, run, then commit every token at once. If running fails, nothing was
committed, and the caller decides what to fail.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from model.kv_cache import KVUsage
from service.engine.plan import StepPlan
from service.engine.request import FinishReason, Request, RequestStatus, TokenEvent
from service.engine.runner import Runner, TokenDecoder
from service.engine.scheduler import Scheduler

logger = logging.getLogger(__name__)

TEXT_FAILED_MESSAGE = "the tokens of this answer could not be turned into text"
COMPACT_MAX_TOKENS = 2048  # a row longer than this costs more to move than its hole costs to run idle


@dataclass(frozen=True)
class StepReport:
    """What a step did, for metrics: an immutable snapshot taken after the commit."""

    duration_s: float
    num_decode_rows: int
    num_prefill_tokens: int
    events: tuple[TokenEvent, ...]


@dataclass(frozen=True)
class EngineLoad:
    """How much is going on: an immutable snapshot that other threads may read."""

    num_running: int
    num_waiting: int
    kv_usage: KVUsage


class Engine:
    """Requests in, token events out, one step at a time."""

    def __init__(
        self, decoder: TokenDecoder, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """clock: monotonic seconds."""
        self._kv_cache = decoder.kv_cache
        self._runner = Runner(decoder)
        self._scheduler = scheduler
        self._clock = clock
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # in order of admission
        self._ended: list[Request] = []  # since `take_ended`

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests without a row, in order of arrival."""
        return tuple(self._waiting)

    @property
    def num_waiting(self) -> int:
        """How many requests have no row; safe to read from another thread."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that hold a row, in order of admission."""
        return tuple(self._running)

    def load(self) -> EngineLoad:
        """The load now."""
        return EngineLoad(len(self._running), len(self._waiting), self._kv_cache.usage())

    def take_ended(self) -> tuple[Request, ...]:
        """Requests that ended since this was last called, each once."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def add(self, request: Request) -> None:
        """Queue a request."""
        assert request.status is RequestStatus.WAITING, f"{request.request_id} was already added"
        self._waiting.append(request)

    def abort(
        self, request: Request, reason: FinishReason = FinishReason.CANCELLED, error: str | None = None
    ) -> TokenEvent | None:
        """End a request now, wherever it is, and free its row. None if it had already ended."""
        if request.is_finished:
            return None
        return self._end(request, reason, token_id=None, text="", error=error)

    def step(self) -> StepReport:
        """Plan, reserve, run, commit.

        Raises:
            Exception: whatever the decoder raised; no request has changed, except that planned ones hold their rows.
        """
        started_s = self._clock()
        plan = self._scheduler.plan(self._waiting, self._running, self._num_free_rows())
        self._reserve(plan)
        tokens = self._runner.run(plan, self._running)
        events = tuple(self._commit(plan, tokens))
        self._compact()
        return StepReport(self._clock() - started_s, len(plan.decode), plan.num_prefill_tokens, events)

    def _num_free_rows(self) -> int:
        return self._kv_cache.num_rows - len(self._running)

    def _reserve(self, plan: StepPlan) -> None:
        """Give each admitted request a row."""
        for request in plan.admit:
            self._waiting.remove(request)
            request.row = self._kv_cache.allocate()
            request.status = RequestStatus.RUNNING
            request.timeline.admitted_s = self._clock()
            self._running.append(request)

    def _commit(self, plan: StepPlan, tokens: dict[Request, int]) -> Iterable[TokenEvent]:
        """Record what was computed and chosen; yields one event per new token."""
        for request in plan.decode:
            self._advance(request, request.num_computed + 1)
        for chunk in plan.prefill:
            self._advance(chunk.request, chunk.end)
        now_s = self._clock()
        for request, token_id in tokens.items():
            request.generated_ids.append(token_id)
            try:
                yield self._token_event(request, token_id, now_s)
            except Exception:
                logger.exception("the text of %s could not be made", request.request_id)
                yield self._end(request, FinishReason.ERROR, token_id, "", TEXT_FAILED_MESSAGE)

    def _advance(self, request: Request, num_computed: int) -> None:
        assert request.row is not None
        self._kv_cache.extend(request.row, num_computed)
        request.num_computed = num_computed

    def _token_event(self, request: Request, token_id: int, now_s: float) -> TokenEvent:
        """The event of one new token, with the time since the one before it."""
        timeline = request.timeline
        previous_s = timeline.last_token_s or timeline.arrived_s
        timeline.first_token_s = timeline.first_token_s or now_s
        timeline.last_token_s = now_s
        return replace(self._text_event(request, token_id), since_previous_s=now_s - previous_s)

    def _text_event(self, request: Request, token_id: int) -> TokenEvent:
        """Turn a chosen token into text, and end the request if it must."""
        if token_id in request.stop.token_ids:  # the end token itself is not part of the text
            return self._end(request, FinishReason.STOP, token_id, _flush(request))
        text, stopped = request.stop_strings.push(request.detokenizer.push(token_id))
        if stopped:
            return self._end(request, FinishReason.STOP, token_id, text)
        if request.num_generated >= request.stop.max_tokens:
            return self._end_at_length(request, token_id, text)
        return _event(request, token_id, text)

    def _end_at_length(self, request: Request, token_id: int, text: str) -> TokenEvent:
        """End at max_tokens; the last incomplete character may still complete a stop string."""
        rest, stopped = request.stop_strings.push(request.detokenizer.flush())
        if stopped:
            return self._end(request, FinishReason.STOP, token_id, text + rest)
        return self._end(request, FinishReason.LENGTH, token_id, text + rest + request.stop_strings.flush())

    def _end(
        self, request: Request, reason: FinishReason, token_id: int | None, text: str, error: str | None = None
    ) -> TokenEvent:
        """The one way in which requests end."""
        if request.status is RequestStatus.WAITING:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            assert request.row is not None
            self._kv_cache.release(request.row)
            request.row = None
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.timeline.finished_s = self._clock()
        self._ended.append(request)
        return _event(request, token_id, text, error)

    def _compact(self) -> None:
        """Fill holes below the highest row, so that decode runs no idle rows; only where moving is cheap."""
        for request in sorted(self._running, key=lambda r: r.row or 0, reverse=True):
            assert request.row is not None
            if request.row < len(self._running) or request.num_computed > COMPACT_MAX_TOKENS:
                break
            request.row = self._kv_cache.move(request.row)


def _flush(request: Request) -> str:
    """The text still held back when an answer ends at an end token."""
    text, stopped = request.stop_strings.push(request.detokenizer.flush())
    return text if stopped else text + request.stop_strings.flush()


def _event(request: Request, token_id: int | None, text: str, error: str | None = None) -> TokenEvent:
    return TokenEvent(
        request=request,
        token_id=token_id,
        text=text,
        num_generated=request.num_generated,
        finish_reason=request.finish_reason,
        error=error,
    )
