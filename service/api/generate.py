"""POST /v1/generate: the native route, the simplest request possible."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.dependencies import GeneratorDependency
from service.api.generation import Answer, collect, durations, live_events
from service.api.responses import GENERATION_ERRORS, json_response
from service.api.streaming import EventStream
from service.engine.loop import RequestStream
from service.schemas import GenerateRequest, GenerateResponse, Timings

router = APIRouter(prefix="/v1", tags=["Attend"], responses=GENERATION_ERRORS)


@router.post("/generate", response_model=GenerateResponse)
async def generate(body: GenerateRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Continue a prompt; greedy unless a temperature is given. Streamed: an event per piece, the last one whole."""
    stream = await generator.submit_prompt("gen", body)
    if body.stream:
        return EventStream(_pieces(generator.model_id, stream), stream.cancel)
    return json_response(_whole(generator.model_id, await collect(stream, http_request)))


async def _pieces(model_id: str, stream: RequestStream) -> AsyncGenerator[dict[str, Any], None]:
    """`{"text", "token_id"}` per token, then the same body as an unstreamed answer."""
    answer = Answer(stream.request)
    async with contextlib.aclosing(live_events(stream)) as events:
        async for event in events:
            answer.add(event)
            yield {"text": event.text, "token_id": event.token_id}
    yield _whole(model_id, answer).model_dump()


def _whole(model_id: str, answer: Answer) -> GenerateResponse:
    queue_s, prefill_s, decode_s = durations(answer.request.timeline)
    return GenerateResponse(
        id=answer.request.request_id,
        model=model_id,
        text=answer.text,
        token_ids=answer.token_ids,
        finish_reason=str(answer.finish_reason),
        usage=answer.usage,
        timings=Timings(queue_s=queue_s, prefill_s=prefill_s, decode_s=decode_s),
    )
