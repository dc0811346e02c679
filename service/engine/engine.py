"""Engine: add, abort, step. Synchronous, single-threaded, and the only place where requests change.

A step is a transaction: plan (pure), reserve rows, run, commit. Running changes no request, so a step that fails leaves
them as they were, and its outcome says what follows: try again, make room, or give up on what it would have computed.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from model.kv_cache import KVUsage
from model.prefix_cache import PrefixCache
from model.sampler import SampledToken
from service.engine.donors import furthest_donor
from service.engine.plan import StepPlan
from service.engine.request import FinishReason, Request, RequestStatus, TokenEvent
from service.engine.request_check import RequestLimits
from service.engine.runner import Runner, StepResult, TokenDecoder
from service.engine.scheduler import Capacity, Scheduler

logger = logging.getLogger(__name__)

TEXT_FAILED_MESSAGE = "the tokens of this answer could not be turned into text"
CONSTRAINT_FAILED_MESSAGE = "the constraint of this answer (schema, expression or grammar) could not be followed: "
COMPACT_MAX_TOKENS = 2048  # a row longer than this costs more to move than its hole costs to run idle
MAX_RETRIES = 3  # of a step, one after the other
FAILED_MESSAGE = "the engine failed while it computed this request; send the request again"


class RetryableError(RuntimeError):
    """A step failed for a reason that may pass; the same step is tried again."""


class StepOutcome(Enum):
    """How a step ended."""

    DONE = "done"
    RETRYABLE = "retryable"  # nothing changed; step again
    CAPACITY = "capacity"  # no memory: a request was preempted to make room; step again
    FATAL = "fatal"  # the requests of the step have ended with an error; do not step again


@dataclass(frozen=True)
class StepReport:
    """What a step did, for metrics: an immutable snapshot taken after the commit."""

    outcome: StepOutcome
    duration_s: float
    num_decode_rows: int
    num_prefill_tokens: int
    num_preempted: int
    num_prompt_tokens: int  # of the requests admitted in this step
    num_cached_tokens: int  # taken from the prefix cache or from a request that shares the prompt
    num_drafted_tokens: int  # verified in this step
    num_accepted_tokens: int  # of these, those that the model chose too
    events: tuple[TokenEvent, ...]
    error: Exception | None = None


@dataclass(frozen=True)
class EngineLoad:
    """How much is going on: an immutable snapshot that other threads may read."""

    num_running: int
    num_waiting_tokens: int
    kv_usage: KVUsage


class Engine:
    """Requests in, token events out, one step at a time."""

    def __init__(
        self,
        decoder: TokenDecoder,
        scheduler: Scheduler,
        *,
        context_tokens: int | None = None,
        kv_budget_tokens: int | None = None,
        prefix_cache_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over a decoder and its rows.

        context_tokens: most tokens of one request; by default what the model and a row hold. kv_budget_tokens: what all
        rows together may hold; by default all that they can. prefix_cache_bytes: memory for prompts already computed; 0
        shares nothing. clock: monotonic seconds.
        """
        self._kv_cache = decoder.kv_cache
        self._budget_tokens = kv_budget_tokens or self._kv_cache.num_rows * self._kv_cache.capacity_tokens
        row_tokens = min(context_tokens or self._kv_cache.capacity_tokens, decoder.config.context_tokens)
        most_tokens = min(row_tokens, self._kv_cache.capacity_tokens, self._budget_tokens)
        self._limits = RequestLimits(decoder.config.vocab_size, most_tokens)
        self._prefix_cache = PrefixCache(self._kv_cache, prefix_cache_bytes)
        self._runner = Runner(decoder)
        self._scheduler = scheduler
        self._clock = clock
        self._waiting: deque[Request] = deque()  # in order of arrival
        self._running: list[Request] = []  # in order of admission
        self._ended: list[Request] = []  # since `take_ended`
        self._num_retries = 0
        self._lacks_memory = False  # since a step failed for lack of memory, until one succeeds

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @property
    def limits(self) -> RequestLimits:
        """What a request may ask for; check it before it is added, from any thread."""
        return self._limits

    @property
    def budget_tokens(self) -> int:
        """Tokens that all rows together may hold; a request that needs more can never finish."""
        return self._budget_tokens

    @property
    def waiting(self) -> tuple[Request, ...]:
        """Requests without a row, in order of arrival."""
        return tuple(self._waiting)

    @property
    def num_waiting(self) -> int:
        """How many requests have no row; safe to read from another thread."""
        return len(self._waiting)

    @property
    def budget_ratio(self) -> float:
        """Share of the token budget in use as admission counts it, without drafts, 0 to 1; safe from another thread."""
        held_tokens = self._scheduler.held_tokens(tuple(self._running), self._capacity(), counts_drafts=False)
        return min(1.0, held_tokens / self._budget_tokens)

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests that hold a row, in order of admission."""
        return tuple(self._running)

    def load(self) -> EngineLoad:
        """The load now."""
        waiting_tokens = sum(request.num_tokens for request in self._waiting)
        return EngineLoad(len(self._running), waiting_tokens, self._kv_cache.usage())

    def take_ended(self) -> tuple[Request, ...]:
        """Requests that ended since this was last called, each once."""
        ended, self._ended = tuple(self._ended), []
        return ended

    def add(self, request: Request) -> None:
        """Queue a request that `limits` has checked."""
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
        """Plan, reserve, run, commit. Never raises for what the decoder does: the report's outcome tells."""
        started_s = self._clock()
        expired = tuple(self._expire(started_s))
        num_saved = self._catch_up()
        plan = self._scheduler.plan(self._waiting, self._running, self._capacity(), started_s, self._num_cached)
        self._reserve(plan)
        failure: Exception | None = None
        result = StepResult()
        try:
            result = self._runner.run(plan, self._running)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises has an outcome
            failure = error
            outcome, events = self._recover(plan, error)
        else:
            self._num_retries, self._lacks_memory = 0, False
            outcome, events = StepOutcome.DONE, tuple(self._commit(plan, result))
            self._compact()
        return StepReport(
            outcome=outcome,
            duration_s=self._clock() - started_s,
            num_decode_rows=len(plan.decode) + len(plan.verify),
            num_prefill_tokens=plan.num_prefill_tokens,
            num_preempted=len(plan.preempt) + (outcome is StepOutcome.CAPACITY),
            num_prompt_tokens=sum(request.num_prompt_tokens for request in plan.admit),
            num_cached_tokens=num_saved + sum(plan.num_cached.values()),
            num_drafted_tokens=result.num_drafted_tokens,
            num_accepted_tokens=result.num_accepted_tokens,
            events=expired + events,
            error=failure,
        )

    def _capacity(self) -> Capacity:
        is_closed = self._lacks_memory and bool(self._running)  # whoever lost a row must not take it back at once
        free_rows = 0 if is_closed else self._kv_cache.num_rows - len(self._running)
        return Capacity(free_rows, self._budget_tokens, self._kv_cache.tokens_per_page)

    def _expire(self, now_s: float) -> Iterator[TokenEvent]:
        """End the requests whose deadline has passed."""
        for request in [*self._waiting, *self._running]:
            if request.deadline_s is not None and now_s >= request.deadline_s:
                yield self._end(request, FinishReason.DEADLINE, None, _flush(request))

    def _reserve(self, plan: StepPlan) -> None:
        """Take rows from the preempted, give rows to the admitted."""
        for request in plan.preempt:
            self._preempt(request)
        for request in plan.admit:
            self._waiting.remove(request)
            request.row = self._kv_cache.allocate()
            request.status = RequestStatus.RUNNING
            request.timeline.admitted_s = request.timeline.admitted_s or self._clock()
            self._running.append(request)
            self._load_prefix(request, plan.num_cached[request])

    def _num_cached(self, request: Request) -> int:
        if request.lacks_prompt_logprobs:
            return 0  # they come with the computing
        if request.shared_prompt is not None and request.shared_prompt.donor_for(request) is not None:
            return request.num_prompt_tokens
        return self._held_elsewhere(request)[2]

    def _held_elsewhere(self, request: Request) -> tuple[int, Request | None, int]:
        """Tokens of a prompt that the prefix cache holds, who runs and holds more, and how many there are in all.

        In all never fewer than the request has itself.
        """
        num_stored = self._prefix_cache.match(request.prompt_ids, request.cache_salt)
        if not self._prefix_cache.is_on:
            return num_stored, None, num_stored
        return num_stored, *furthest_donor(request, self._running, max(num_stored, request.num_computed))

    def _catch_up(self) -> int:
        """Give prompts that are being computed what others have computed of them meanwhile: tokens saved.

        So requests with one beginning that arrive together don't each compute it.
        """
        num_saved = 0
        for request in self._running:
            if not request.is_prefilling or request.lacks_prompt_logprobs:
                continue
            num_tokens = self._num_cached(request)
            if num_tokens > request.num_computed:
                num_saved += self._load_prefix(request, num_tokens)
        return num_saved

    def _load_prefix(self, request: Request, num_tokens: int) -> int:
        """Fill a request's row to `num_tokens` from what another request, or the prefix cache, holds: tokens saved."""
        assert request.row is not None
        num_held = request.num_computed
        if num_tokens == num_held:
            return 0
        if num_tokens == request.num_prompt_tokens:
            donor = request.shared_prompt.donor_for(request) if request.shared_prompt is not None else None
            assert donor is not None, "the plan found a donor"
            assert donor.row is not None, "donors run"
            self._kv_cache.copy_prefix(donor.row, request.row, num_tokens)
        else:
            num_stored, donor, end = self._held_elsewhere(request)
            assert num_tokens <= end, "what the plan found is still there; a request admitted just now may hold more"
            if num_stored > num_held:
                self._prefix_cache.load(request.row, request.prompt_ids, num_stored, request.cache_salt, num_held)
            if donor is not None and num_tokens > num_stored:
                assert donor.row is not None, "donors run"
                self._kv_cache.copy_up_to(donor.row, request.row, num_tokens)
        request.num_computed = num_tokens
        if request.num_preemptions:
            return 0  # what it finds of itself later is no saving
        request.num_cached_tokens += num_tokens - num_held
        return num_tokens - num_held

    def _preempt(self, request: Request) -> None:
        """Take a request's row away; it waits, keeps its tokens, and will replay them."""
        self._running.remove(request)
        assert request.row is not None
        self._kv_cache.release(request.row)
        request.row = None
        request.num_computed = 0
        request.num_preemptions += 1
        request.status = RequestStatus.WAITING
        self._waiting.appendleft(request)

    def _recover(self, plan: StepPlan, error: Exception) -> tuple[StepOutcome, tuple[TokenEvent, ...]]:
        """Decide what a failed run means, and do it. No request has changed by the run itself."""
        if isinstance(error, RetryableError) and self._num_retries < MAX_RETRIES:
            self._num_retries += 1
            logger.warning("step failed, try %d of %d: %s", self._num_retries, MAX_RETRIES, str(error))
            return StepOutcome.RETRYABLE, ()
        if isinstance(error, MemoryError) and len(self._running) > 1:
            logger.warning("no memory for a step; preempting a request: %s", str(error))
            self._lacks_memory = True
            self._preempt(self._scheduler.victims(self._running, self._clock())[0])
            return StepOutcome.CAPACITY, ()
        logger.error("step failed for good", exc_info=error)
        ends = [self.abort(request, FinishReason.ERROR, FAILED_MESSAGE) for request in plan.requests]
        return StepOutcome.FATAL, tuple(event for event in ends if event is not None)

    def _commit(self, plan: StepPlan, result: StepResult) -> Iterable[TokenEvent]:
        """Record what was computed and chosen; yields one event per new token."""
        for request in plan.decode:
            self._advance(request, 1, in_chunk=False)
        for verification in plan.verify:
            request, num_chosen = verification.request, len(result.tokens[verification.request])
            self._advance(request, num_chosen, in_chunk=True)  # the last one chosen is not computed, the one before is
            assert request.speculation is not None, "only a speculation drafts"
            request.speculation.observe(len(verification.draft), num_chosen - 1)
        for chunk in plan.prefill:
            self._advance(chunk.request, chunk.num_tokens, in_chunk=True)
            known = chunk.request.prompt_token_logprobs  # after a preemption some are known already
            known += result.prompt_logprobs.get(chunk.request, [])[len(known) - chunk.start :]
            self._store_prefix(chunk.request)
        yield from self._commit_tokens(result)
        self._share_logits(plan, result)

    def _commit_tokens(self, result: StepResult) -> Iterable[TokenEvent]:
        """Append what was chosen, as far as a request does not end before."""
        now_s = self._clock()
        for request, tokens in result.tokens.items():
            for token in tokens:
                request.generated_ids.append(token.token_id)
                request.sum_logprobs += token.logprobs.logprob if token.logprobs is not None else 0.0
                if request.row_state.failure is not None:
                    message = CONSTRAINT_FAILED_MESSAGE + request.row_state.failure
                    yield self._end(request, FinishReason.ERROR, None, "", error=message)
                    break
                try:
                    yield self._token_event(request, token, now_s)
                except Exception:
                    logger.exception("the text of %s could not be made", request.request_id)
                    yield self._end(request, FinishReason.ERROR, token.token_id, "", error=TEXT_FAILED_MESSAGE)
                if request.is_finished:
                    break

    def _share_logits(self, plan: StepPlan, result: StepResult) -> None:
        """Keep the logits after a prompt for those that continue it too, for as long as one of them needs them."""
        for request, logits in result.prompt_logits.items():
            assert request.shared_prompt is not None, "kept for those that share the prompt"
            request.shared_prompt.logits = logits
        for request in plan.requests:
            if request.shared_prompt is not None and not request.shared_prompt.is_pending:
                request.shared_prompt.logits = None

    def _store_prefix(self, request: Request) -> None:
        assert request.row is not None
        held = min(request.num_computed, request.num_prompt_tokens)
        self._prefix_cache.store(request.row, request.prompt_ids[:held], request.cache_salt)

    def _advance(self, request: Request, num_tokens: int, *, in_chunk: bool) -> None:
        assert request.row is not None
        self._kv_cache.extend(request.row, request.num_computed + num_tokens)
        if request.speculation is not None and request.has_prompt:
            request.record_computed(num_tokens, in_chunk=in_chunk)
        request.num_computed += num_tokens

    def _token_event(self, request: Request, token: SampledToken, now_s: float) -> TokenEvent:
        """The event of one new token, with the time since the one before it."""
        timeline = request.timeline
        previous_s = timeline.last_token_s or timeline.arrived_s
        timeline.first_token_s = timeline.first_token_s or now_s
        timeline.last_token_s = now_s
        event = self._text_event(request, token.token_id)
        event.since_previous_s = now_s - previous_s
        event.logprobs = token.logprobs
        return event

    def _text_event(self, request: Request, token_id: int) -> TokenEvent:
        """Turn a chosen token into text, and end the request if it must."""
        stop = request.stop
        if token_id in stop.token_ids or token_id in stop.eos_token_ids:
            reason = token_id if token_id in stop.token_ids else None
            met, last = None, ""
            if stop.is_included and reason is not None:
                last, met = request.stop_strings.push(request.detokenizer.push(token_id))
            text = last if met is not None else last + _flush(request)
            return self._end(request, FinishReason.STOP, token_id, text, stop_reason=reason)
        if request.constraint is not None:
            try:
                request.constraint.advance(token_id)
            except ValueError as error:
                message = f"{CONSTRAINT_FAILED_MESSAGE}{error}"
                return self._end(request, FinishReason.ERROR, token_id, "", error=message)
        text = request.detokenizer.push(token_id)
        if stop.strings and request.num_generated >= request.sampling.min_tokens:
            text, met = request.stop_strings.push(text)
            if met is not None:
                return self._end(request, FinishReason.STOP, token_id, text, stop_reason=met)
        if request.constraint is not None and request.constraint.is_finished:
            return self._end(request, FinishReason.STOP, token_id, text + _flush(request))
        if request.num_generated >= stop.max_tokens:
            return self._end_at_length(request, token_id, text)
        return _event(request, token_id, text)

    def _end_at_length(self, request: Request, token_id: int, text: str) -> TokenEvent:
        """End at max_tokens; the last incomplete character may still complete a stop string."""
        rest, met = request.stop_strings.push(request.detokenizer.flush())
        if met is not None:
            return self._end(request, FinishReason.STOP, token_id, text + rest, stop_reason=met)
        return self._end(request, FinishReason.LENGTH, token_id, text + rest + request.stop_strings.flush())

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        token_id: int | None,
        text: str,
        *,
        error: str | None = None,
        stop_reason: int | str | None = None,
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
        event = _event(request, token_id, text)
        event.error, event.stop_reason = error, stop_reason
        return event

    def _compact(self) -> None:
        """Fill holes below the highest row, so that decode runs no idle rows; only where moving is cheap."""
        for request in sorted(self._running, key=lambda r: r.row or 0, reverse=True):
            assert request.row is not None
            if request.row < len(self._running) or request.num_computed > COMPACT_MAX_TOKENS:
                break
            request.row = self._kv_cache.move(request.row)


def _flush(request: Request) -> str:
    """The text still held back when an answer ends."""
    text, met = request.stop_strings.push(request.detokenizer.flush())
    return text if met is not None else text + request.stop_strings.flush()


def _event(request: Request, token_id: int | None, text: str) -> TokenEvent:
    return TokenEvent(
        request=request,
        token_id=token_id,
        text=text,
        num_generated=request.num_generated,
        finish_reason=request.finish_reason,
    )
