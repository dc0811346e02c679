"""From validated fields to a running request, and from its events to a whole answer.

Separate from the routes because all of them do this alike: streamed and unstreamed answers come from the same events.
"""

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

from fastapi import Request as HttpRequest

from model.bundle import Manifest
from model.chat import ChatTemplate
from model.sampling import SamplingParams
from model.tokenizer import Tokenizer
from service.api.errors import ApiError, deadline_passed, engine_failure, unknown_model
from service.engine.loop import EngineLoop, RequestStream
from service.engine.request import FinishReason, Request, StopConditions, Timeline, TokenEvent
from service.engine.request_check import CONTEXT_EXCEEDED, InvalidRequestError
from service.schemas import ChatCompletionRequest, CompletionRequest, GenerateRequest, GenerationFields, Usage

LONG_TEXT_CHARACTERS = 20_000  # longer texts are tokenised off the event loop, which must keep streams flowing
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True)
class Generator:
    """Submits generation requests for the one model served."""

    manifest: Manifest
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    engine_loop: EngineLoop
    context_tokens: int
    created: int
    _one_long_text: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @property
    def model_id(self) -> str:
        """The served model's id."""
        return self.manifest.config.model_id

    def check_model(self, model: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: 404.
        """
        if model is not None and model != self.model_id:
            raise unknown_model(model, self.model_id)

    async def submit_chat(self, body: ChatCompletionRequest) -> RequestStream:
        """Render the conversation with the model's template and submit it."""
        self.check_model(body.model)
        if self.chat_template is None:
            message = f"model {self.model_id!r} has no chat template; use /v1/completions"
            raise ApiError(400, message, param="messages", code="no_chat_template")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise InvalidRequestError("give max_tokens or max_completion_tokens, not both", "max_tokens")
        prompt = self.chat_template.render([message.model_dump() for message in body.messages])
        limit_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        with _blaming({"prompt": "messages", "max_tokens": limit_name}):
            prompt_ids = await self._encode(prompt, add_special_tokens=False)
            return self._submit("chatcmpl", prompt_ids, body, body.max_completion_tokens or body.max_tokens)

    async def submit_prompt(self, prefix: str, body: CompletionRequest | GenerateRequest) -> RequestStream:
        """Submit a plain prompt, text or token ids."""
        self.check_model(body.model)
        prompt_ids = body.prompt if isinstance(body.prompt, list) else await self._encode(body.prompt)
        return self._submit(prefix, prompt_ids, body, body.max_tokens)

    def _submit(
        self, prefix: str, prompt_ids: list[int], fields: GenerationFields, max_tokens: int | None
    ) -> RequestStream:
        """Check what only the model can check, then queue.

        Raises:
            InvalidRequestError: the prompt is empty, too long, or has ids out of range.
            SubmitRefusedError: the engine takes no request now.
        """
        config = self.manifest.config
        limit = max_tokens if max_tokens is not None else max(1, self.context_tokens - len(prompt_ids))
        stop = StopConditions(limit, fields.stop_strings, eos_token_ids=frozenset(config.eos_token_ids))
        seed = fields.seed if fields.seed is not None else secrets.randbits(63)
        request = Request(
            request_id=f"{prefix}-{uuid.uuid4().hex}",
            prompt_ids=tuple(prompt_ids),
            sampling=SamplingParams(fields.temperature, fields.top_p, seed),
            stop=stop,
            detokenizer=self.tokenizer.incremental(),
        )
        return self.engine_loop.submit(request)

    async def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, refused unread if no tokens of the model could make it fit."""
        limit = self.context_tokens * self.tokenizer.longest_token_characters
        if len(text) > limit:
            message = (
                f"the prompt has {len(text)} characters; the context of {self.context_tokens} tokens "
                f"cannot hold more than {limit}"
            )
            raise InvalidRequestError(message, "prompt", CONTEXT_EXCEEDED)
        if len(text) < LONG_TEXT_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        async with self._one_long_text:
            return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)


@contextlib.contextmanager
def _blaming(names: Mapping[str, str]) -> Iterator[None]:
    """Name the field that the client sent where the engine's own name for it differs."""
    try:
        yield
    except InvalidRequestError as error:
        error.param = names.get(error.param or "", error.param)
        raise


@dataclass
class Answer:
    """A whole answer, folded from a request's events."""

    request: Request
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        """Fold in the next event."""
        self.text += event.text
        self.finish_reason = event.finish_reason
        if event.token_id is not None:
            self.token_ids.append(event.token_id)

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return usage(self.request)


def usage(request: Request) -> Usage:
    """Token counts of a request."""
    prompt, completion = request.num_prompt_tokens, request.num_generated
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def durations(timeline: Timeline) -> tuple[float, float, float]:
    """Seconds of a finished request in the queue, in prefill and in decode; 0 for what it never reached."""
    admitted = timeline.admitted_s or timeline.finished_s
    first = timeline.first_token_s or timeline.finished_s
    return admitted - timeline.arrived_s, first - admitted, max(0.0, timeline.last_token_s - first)


async def live_events(stream: RequestStream) -> AsyncGenerator[TokenEvent, None]:
    """A stream's events, with an end by error raised.

    Raises:
        ApiError: the engine could not finish the request.
    """
    async with contextlib.aclosing(stream.events()) as events:  # an early end cancels the request
        async for event in events:
            if event.finish_reason is FinishReason.ERROR:
                raise engine_failure(event.error or "the engine failed")
            if event.finish_reason is FinishReason.DEADLINE:
                raise deadline_passed()
            yield event


async def collect(stream: RequestStream, http_request: HttpRequest) -> Answer:
    """The whole answer, or a cancelled request if the client leaves before it is complete.

    Raises:
        ApiError: the engine failed, or the client left (nobody reads that answer).
    """

    async def fold() -> Answer:
        answer = Answer(stream.request)
        async with contextlib.aclosing(live_events(stream)) as events:
            async for event in events:
                answer.add(event)
        return answer

    try:
        return await _until_disconnect(fold, http_request)
    finally:
        stream.cancel()  # also where the folding never began


async def _until_disconnect(work: Callable[[], Awaitable[Answer]], http_request: HttpRequest) -> Answer:
    """Run `work`, but stop it as soon as the client closes the connection."""
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


async def _disconnected(http_request: HttpRequest) -> None:
    """Return once the connection is closed. The body has been read already."""
    while (await http_request.receive())["type"] != "http.disconnect":
        pass
