"""Generator: submits requests for the one model served. Generation: what an HTTP request set in motion, to its end.

Separate from the routes because all of them do this alike: streamed and unstreamed answers come from the same events.
"""

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson
from fastapi import Request as HttpRequest

from model.bundle import Manifest
from model.constraint import Constraint, ConstraintCompiler
from service.api.errors import ApiError, answer_failed, deadline_passed, unknown_field, unknown_model
from service.api.limits import Lease, Limiter
from service.api.parameters import Choosing, blaming_form, choice_seed, guide_form, sampling_params, stop_conditions
from service.api.prompts import Prompt, PromptMaker
from service.api.violations import shortened
from service.engine.loop import EngineLoop, RequestStream
from service.engine.request import FinishReason, Request, SharedPrompt, Timeline, TokenEvent
from service.engine.request_check import InvalidRequestError
from service.engine.speculation import PromptLookup
from service.schemas.base import PromptTokensDetails, RequestBody, Usage
from service.schemas.generation import GenerationFields

CLIENT_CLOSED_REQUEST = 499
MAX_PROMPT_LOGPROBS = 65_536  # of one HTTP request: they are written on the event loop, 6 us each
MAX_NAMED = 20  # ignored fields in the request log
MAX_REQUESTS = 128  # answers of one HTTP request: prompts times choices
ANONYMOUS = "anonymous"

request_log = logging.getLogger("attend.requests")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Caller:
    """Who sent an HTTP request, and when. name: of the API key. request_id: as returned in x-request-id.

    arrived_s: monotonic seconds at which the body had been read; deadlines count from there. ignored_fields: names of
    fields that nobody knows, where the settings accept them.
    """

    name: str
    request_id: str
    arrived_s: float = field(default_factory=time.monotonic)
    ignored_fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, http_request: HttpRequest) -> "Caller":
        """The caller that the authentication middleware stored on the request."""
        state = http_request.state
        ignored_fields = getattr(state, "ignored_fields", ())
        return cls(getattr(state, "caller", ANONYMOUS), getattr(state, "request_id", ""), ignored_fields=ignored_fields)


@dataclass(frozen=True)
class Submission:
    """A route's order. prompt_logprobs: alternatives to report for the prompt's tokens, None reports nothing.

    is_scoring: only the prompt is wanted; the one token that is generated is neither returned nor counted.
    """

    prompts: Sequence[Prompt]
    fields: GenerationFields
    choosing: Choosing
    caller: Caller
    prompt_logprobs: int | None = None
    is_scoring: bool = False


@dataclass(eq=False)
class Generation:
    """The answers of one HTTP request while they are made. Whoever has one must `close` it."""

    id: str
    model_id: str
    submission: Submission
    stream: RequestStream
    lease: Lease
    created: int = field(default_factory=lambda: int(time.time()))
    _is_closed: bool = False

    def __post_init__(self) -> None:
        """Number the answers: those of the first prompt, then those of the second."""
        self._indices = {request: index for index, request in enumerate(self.stream.requests)}
        self._num_told = [0] * len(self.stream.requests)  # tokens of each answer in the events so far

    @property
    def requests(self) -> tuple[Request, ...]:
        """The engine's requests, by index of the answer."""
        return self.stream.requests

    def prompt_of(self, index: int) -> Prompt:
        """The prompt that an answer continues."""
        return self.submission.prompts[index // self.submission.choosing.num_choices]

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent], None]:
        """Every event with the index of its answer.

        Raises:
            ApiError: the engine could not finish one of them; the others are cancelled.
        """
        async with contextlib.aclosing(self.stream.events()) as events:
            async for event in events:
                yield self.take(event), event

    def take(self, event: TokenEvent) -> int:
        """Note an event of the stream; the index of its answer.

        Raises:
            ApiError: the engine could not finish that answer.
        """
        if event.finish_reason is not None:  # asked first, because this is on the way of every token
            if event.finish_reason is FinishReason.ERROR:
                raise answer_failed(event.error or "the engine failed")
            if event.finish_reason is FinishReason.DEADLINE:
                raise deadline_passed()
        index = self._indices[event.request]
        self._num_told[index] = event.num_generated
        return index

    def usage(self) -> Usage:
        """Token counts as of the last event; each prompt counts once."""
        firsts = self.requests[:: self.submission.choosing.num_choices]
        prompt_tokens = sum(request.num_prompt_tokens for request in firsts)
        completion_tokens = 0 if self.submission.is_scoring else sum(self._num_told)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(request.num_cached_tokens for request in firsts)
            ),
        )

    def close(self) -> None:
        """Abort what still runs, settle with the limits, write the request log. Once effective."""
        if self._is_closed:
            return
        self._is_closed = True
        self.stream.cancel()
        self.lease.charge(sum(request.num_generated for request in self.requests))
        self.lease.release()
        if request_log.isEnabledFor(logging.INFO):
            request_log.info("%s", self._log_line())

    def _log_line(self) -> str:
        line: dict[str, Any] = {
            "id": self.id,
            "request_id": self.submission.caller.request_id,
            "key": self.submission.caller.name,
            "user": self.submission.fields.end_user,
            "finish_reasons": [request.finish_reason or FinishReason.CANCELLED for request in self.requests],
            "prompt_tokens": self.usage().prompt_tokens,
            "completion_tokens": sum(request.num_generated for request in self.requests),
        }
        if self.submission.caller.ignored_fields:
            line["ignored_fields"] = [shortened(name) for name in self.submission.caller.ignored_fields[:MAX_NAMED]]
        return orjson.dumps(line).decode()


@dataclass(frozen=True)
class GenerationSettings:
    """Settings for requests. request_timeout_s: 0 disables the timeout.

    opens_objects: objects of schemas that list their properties may add others, where they do not say.
    """

    request_timeout_s: float = 0.0
    is_cache_per_key: bool = False
    ignores_unknown_fields: bool = False
    opens_objects: bool = False


@dataclass(frozen=True)
class Generator:
    """Submits generation requests for the one model served."""

    manifest: Manifest
    prompts: PromptMaker
    engine_loop: EngineLoop
    constraints: ConstraintCompiler
    limiter: Limiter
    created: int
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    served_names: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """The served model's id, which answers say."""
        return self.model_ids[0]

    @property
    def model_ids(self) -> tuple[str, ...]:
        """Every name that requests may call the model by: those of the settings, or the bundle's own."""
        return self.served_names or (self.manifest.config.model_id,)

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer."""
        return self.prompts.context_tokens

    def admit(self, body: RequestBody, model: str | None, http_request: HttpRequest) -> Caller:
        """The caller of a request for the served model whose fields are all known, or ignored by the settings.

        Names of ignored fields are left on the HTTP request, for the answer's header.

        Raises:
            ApiError: 404 or 400.
        """
        self.check_model(model)
        if body.unknown_fields and not self.settings.ignores_unknown_fields:
            raise unknown_field(body.unknown_fields[0], body.known_fields())
        http_request.state.ignored_fields = body.unknown_fields
        return Caller.of(http_request)

    def check_model(self, model: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: 404.
        """
        if model is not None and model not in self.model_ids:
            raise unknown_model(model, self.model_ids)

    def truncation(self, fields: GenerationFields, max_tokens: int | None) -> int | None:
        """How many of a prompt's last tokens to keep; None keeps all."""
        if fields.truncate_prompt_tokens != -1:
            return fields.truncate_prompt_tokens
        return max(1, self.context_tokens - (max_tokens or 1))

    async def submit(self, prefix: str, submission: Submission) -> Generation:
        """Queue the answers to all prompts, or none of them. prefix: of the id.

        Raises:
            InvalidRequestError, InvalidSamplingError: they could never be made.
            RateLimitedError: the caller has used up a limit. SubmitRefusedError: the engine takes no request now.
        """
        prompts, num_choices = submission.prompts, submission.choosing.num_choices
        num_requests = len(prompts) * num_choices
        if num_requests > MAX_REQUESTS:
            message = f"{len(prompts)} prompts of {num_choices} answers make {num_requests}; at most {MAX_REQUESTS} are"
            raise InvalidRequestError(f"{message} allowed in one request", "prompt")
        num_prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        _check_prompt_logprobs(submission, num_prompt_tokens)
        self.engine_loop.check_open()
        lease = self.limiter.admit(submission.caller.name, num_prompt_tokens)
        try:
            constraints = await self._compile(submission, num_requests)
            generation_id = f"{prefix}-{uuid.uuid4().hex}"
            stream = self.engine_loop.submit(*self._requests(generation_id, submission, constraints))
        except BaseException:
            lease.release()
            raise
        return Generation(generation_id, self.model_id, submission, stream, lease)

    def _requests(self, generation_id: str, submission: Submission, constraints: list[Constraint]) -> list[Request]:
        """The engine's requests: for each prompt its answers, which share the prompt and differ in their seeds."""
        fields, choosing = submission.fields, submission.choosing
        config, tokenizer = self.manifest.config, self.prompts.tokenizer
        seed = fields.seed if fields.seed is not None else secrets.randbits(63)
        sampling = sampling_params(fields, config, tokenizer, choosing.logprobs, seed)
        requests: list[Request] = []
        for prompt in submission.prompts:
            shared = SharedPrompt() if choosing.num_choices > 1 else None
            room = max(1, self.context_tokens - len(prompt.ids))
            stop = stop_conditions(fields, config, room if choosing.max_tokens is None else choosing.max_tokens)
            for choice in range(choosing.num_choices):
                request = Request(
                    request_id=f"{generation_id}-{len(requests)}",
                    prompt_ids=prompt.ids,
                    sampling=replace(sampling, seed=choice_seed(seed, choice)),
                    stop=stop,
                    detokenizer=tokenizer.incremental(skip_special_tokens=fields.skip_special_tokens),
                    priority=fields.priority,
                    deadline_s=self._deadline(submission),
                    cache_salt=self._cache_salt(submission),
                    prompt_logprobs=submission.prompt_logprobs if choice == 0 else None,
                    shared_prompt=shared,
                    speculation=PromptLookup() if fields.speculation else None,
                    constraint=constraints[len(requests)] if constraints else None,
                )
                requests.append(request)
        return requests

    async def _compile(self, submission: Submission, count: int) -> list[Constraint]:
        """One constraint for each answer, compiled off the event loop."""
        choosing, fields = submission.choosing, submission.fields
        if choosing.constraint is None and fields.guide is None:
            return []

        def compiled() -> list[Constraint]:
            spec = choosing.constraint or guide_form(fields, opens_objects=self.settings.opens_objects)
            return [] if spec is None else [self.constraints.compile(spec) for _ in range(count)]

        with blaming_form(choosing.form_field or fields.guide_field):
            return await asyncio.to_thread(compiled)

    def _deadline(self, submission: Submission) -> float | None:
        """The earlier of the request's own deadline and the service's."""
        deadline_ms = submission.fields.deadline_ms
        limits_s = [deadline_ms / 1000] if deadline_ms is not None else []
        limits_s += [self.settings.request_timeout_s] if self.settings.request_timeout_s else []
        return submission.caller.arrived_s + min(limits_s) if limits_s else None

    def _cache_salt(self, submission: Submission) -> str:
        key = submission.caller.name if self.settings.is_cache_per_key else ""
        return f"{key}\0{submission.fields.cache_salt or ''}"


def _check_prompt_logprobs(submission: Submission, num_prompt_tokens: int) -> None:
    """Refuse reports of a prompt that would hold up everybody's streams while they are written.

    Raises:
        InvalidRequestError: too many log-probabilities.
    """
    if submission.prompt_logprobs is None:
        return
    count = num_prompt_tokens * (submission.prompt_logprobs + 1)
    if count > MAX_PROMPT_LOGPROBS:
        message = f"{num_prompt_tokens} prompt tokens with {submission.prompt_logprobs} alternatives each make {count} "
        message += f"log-probabilities; at most {MAX_PROMPT_LOGPROBS} are reported in one request"
        raise InvalidRequestError(message, "prompt_logprobs")


def durations(timeline: Timeline) -> tuple[float, float, float]:
    """Seconds of a finished request in the queue, in prefill and in decode; 0 for what it never reached."""
    admitted = timeline.admitted_s or timeline.finished_s
    first = timeline.first_token_s or timeline.finished_s
    return admitted - timeline.arrived_s, first - admitted, max(0.0, timeline.last_token_s - first)


def timing_headers(generation: Generation) -> dict[str, str]:
    """Where the first answer's time went, as `Server-Timing` (milliseconds), for browsers' and humans' eyes."""
    names = ("queue", "prefill", "decode")
    times = zip(names, durations(generation.requests[0].timeline), strict=True)
    return {"Server-Timing": ", ".join(f"{name};dur={seconds * 1e3:.1f}" for name, seconds in times)}


async def finish(generation: Generation, http_request: HttpRequest, work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work` on a generation to its end; a client that leaves before cancels everything.

    Raises:
        ApiError: the engine failed, or the client left (nobody reads that answer).
    """
    working = asyncio.ensure_future(work())
    watching = asyncio.ensure_future(_disconnected(http_request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(CLIENT_CLOSED_REQUEST, "the client closed the connection", code="cancelled")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
        generation.close()  # also where the work never began


async def _disconnected(http_request: HttpRequest) -> None:
    """Return once the connection is closed. The body has been read already."""
    while (await http_request.receive())["type"] != "http.disconnect":
        pass
