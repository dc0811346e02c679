"""POST /v1/completions and /v1/chat/completions, as the OpenAI clients speak them."""

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.dependencies import GeneratorDependency
from service.api.generation import Generator, collect, live_events, usage
from service.api.responses import GENERATION_ERRORS, json_response
from service.api.streaming import EventStream
from service.engine.loop import RequestStream
from service.engine.request_check import InvalidRequestError
from service.schemas import (
    ChatAnswer,
    ChatChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    OpenAIFields,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=GENERATION_ERRORS)

MakeChoice = Callable[[str, str | None], dict[str, Any]]


@router.post("/completions", response_model=CompletionResponse)
async def completions(body: CompletionRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Continue a prompt."""
    _check_stream_options(body)
    stream = await generator.submit_prompt("cmpl", body)
    if body.stream:
        chunks = _chunks(generator, stream, "text_completion", _completion_choice, body.include_usage)
        return EventStream(chunks, stream.cancel)
    answer = await collect(stream, http_request)
    choice = CompletionChoice(index=0, text=answer.text, finish_reason=answer.finish_reason)
    return json_response(
        CompletionResponse(
            id=stream.request.request_id,
            created=int(time.time()),
            model=generator.model_id,
            choices=[choice],
            usage=answer.usage,
        )
    )


@router.post("/chat/completions", response_model=ChatCompletionResponse)
async def chat_completions(
    body: ChatCompletionRequest, http_request: Request, generator: GeneratorDependency
) -> Response:
    """Answer a conversation."""
    _check_stream_options(body)
    stream = await generator.submit_chat(body)
    if body.stream:
        chunks = _chunks(generator, stream, "chat.completion.chunk", _chat_choice, body.include_usage)
        return EventStream(chunks, stream.cancel)
    answer = await collect(stream, http_request)
    choice = ChatChoice(index=0, message=ChatAnswer(content=answer.text), finish_reason=answer.finish_reason)
    return json_response(
        ChatCompletionResponse(
            id=stream.request.request_id,
            created=int(time.time()),
            model=generator.model_id,
            choices=[choice],
            usage=answer.usage,
        )
    )


def _check_stream_options(body: OpenAIFields) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options is only allowed with stream: true", "stream_options")


def _completion_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _chat_choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    delta = {"content": text} if text else {}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


async def _chunks(
    generator: Generator, stream: RequestStream, kind: str, make_choice: MakeChoice, include_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a streamed answer: text as it becomes certain, the finish reason, then the usage if asked for."""
    frame = {
        "id": stream.request.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": generator.model_id,
    }
    if include_usage:
        frame["usage"] = None
    async with contextlib.aclosing(live_events(stream)) as events:
        if make_choice is _chat_choice:
            role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            yield {**frame, "choices": [role]}
        async for event in events:
            if event.text:
                yield {**frame, "choices": [make_choice(event.text, None)]}
            if event.finish_reason is not None:
                yield {**frame, "choices": [make_choice("", event.finish_reason)]}
    if include_usage:
        yield {**frame, "choices": [], "usage": usage(stream.request).model_dump()}
