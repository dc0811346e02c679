"""POST /v1/generate: the native route, the simplest request possible, and everything that the engine can do."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from model.tokenizer import Tokenizer
from service.api import logprobs
from service.api.dependencies import GeneratorDependency
from service.api.generation import Generation, Generator, Submission, durations, finish, timing_headers
from service.api.parameters import Choosing
from service.api.responses import GENERATION_ANSWERS, json_response
from service.api.streaming import EventStream
from service.engine.request import TokenEvent
from service.schemas.native import GeneratedText, GenerateRequest, GenerateResponse, Timings

router = APIRouter(prefix="/v1", tags=["Attend"], responses=GENERATION_ANSWERS)

PROGRESS_S = 0.1  # how often a stream tells how much of its prompt has been computed


@router.post("/generate", response_model=GenerateResponse)
async def generate(body: GenerateRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Continue a prompt; greedy unless a temperature is given. Streamed: an event per piece, the last one whole."""
    caller = generator.admit(body, body.model, http_request)
    truncate_to = generator.truncation(body, body.max_tokens)
    prompt = await generator.prompts.of(body.prompt, truncate_to, parse_special=body.parse_special)
    choosing = Choosing(body.n, body.max_tokens, body.logprobs)
    submission = Submission([prompt], body, choosing, caller, body.prompt_logprobs)
    generation = await generator.submit("gen", submission)
    answers = [Answer(generator.prompts.tokenizer, body.logprobs is not None) for _ in generation.requests]
    if body.stream:
        pieces = Pieces(generation, answers, body, generator)
        silence_s = PROGRESS_S if body.return_progress else None
        return EventStream(generation, pieces, silence_s=silence_s, on_silence=pieces.on_silence)
    await finish(generation, http_request, lambda: _fold(generation, answers))
    whole = _whole(generation, answers, generator)
    return json_response(whole, headers=timing_headers(generation), leaves_out=_unused(whole))


@dataclass
class Answer:
    """One answer, folded from its events."""

    tokenizer: Tokenizer
    has_logprobs: bool
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    last: TokenEvent | None = None

    def add(self, event: TokenEvent) -> dict[str, Any]:
        """Fold in the next event; what a stream says of it."""
        self.texts.append(event.text)
        self.last = event
        piece: dict[str, Any] = {"text": event.text, "token_id": event.token_id}
        if event.token_id is None:
            return piece
        self.token_ids.append(event.token_id)
        if event.logprobs is not None:
            self.entries.append(logprobs.native_entry(self.tokenizer, event.token_id, event.logprobs))
            piece["logprobs"] = self.entries[-1]
        return piece

    def whole(self, index: int, timings: Timings) -> GeneratedText:
        """The answer once it has ended."""
        assert self.last is not None, "an ended answer has a last event"
        return GeneratedText(
            index=index,
            text="".join(self.texts),
            token_ids=self.token_ids,
            finish_reason=str(self.last.finish_reason),
            stop_reason=self.last.stop_reason,
            logprobs=self.entries if self.has_logprobs else None,
            timings=timings,
        )


@dataclass
class Pieces:
    """`{"text", "token_id"}` per token (with "index" if n > 1), then the same body as an unstreamed answer."""

    generation: Generation
    answers: list[Answer]
    body: GenerateRequest
    generator: Generator

    def opening(self) -> list[dict[str, Any]]:
        """How much of the prompt is known, where progress is wanted."""
        return [_progress(self.generation)] if self.body.return_progress else []

    def write(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        """The piece of an event."""
        piece = self.answers[index].add(event)
        return [{"index": index, **piece} if len(self.answers) > 1 else piece]

    def closing(self) -> list[dict[str, Any]]:
        """The whole answer."""
        whole = _whole(self.generation, self.answers, self.generator)
        return [whole.model_dump(exclude=_unused(whole))]

    def on_silence(self) -> dict[str, Any] | None:
        """How much of the prompt has been computed, where progress is wanted."""
        return _progress(self.generation) if self.body.return_progress else None


async def _fold(generation: Generation, answers: list[Answer]) -> None:
    async with contextlib.aclosing(generation.events()) as events:
        async for index, event in events:
            answers[index].add(event)


def _progress(generation: Generation) -> dict[str, Any]:
    """How many of the prompt's tokens have been computed, or were known."""
    request = generation.requests[0]
    computed = min(request.num_computed, request.num_prompt_tokens)
    return {"progress": {"prompt_tokens": request.num_prompt_tokens, "computed_tokens": computed}}


def _whole(generation: Generation, answers: list[Answer], generator: Generator) -> GenerateResponse:
    choices = [answer.whole(index, _timings(generation, index)) for index, answer in enumerate(answers)]
    request, first = generation.requests[0], choices[0]
    reports_prompt = request.prompt_logprobs is not None
    return GenerateResponse(
        id=generation.id,
        model=generation.model_id,
        text=first.text,
        token_ids=first.token_ids,
        finish_reason=first.finish_reason,
        stop_reason=first.stop_reason,
        logprobs=first.logprobs,
        prompt_logprobs=logprobs.prompt_entries(generator.prompts.tokenizer, request) if reports_prompt else None,
        choices=choices if len(choices) > 1 else None,
        usage=generation.usage(),
        timings=first.timings,
    )


def _timings(generation: Generation, index: int) -> Timings:
    queue_s, prefill_s, decode_s = durations(generation.requests[index].timeline)
    return Timings(queue_s=queue_s, prefill_s=prefill_s, decode_s=decode_s)


def _unused(whole: GenerateResponse) -> set[str]:
    """Fields that were not asked for."""
    return {name for name in ("choices", "logprobs", "prompt_logprobs") if getattr(whole, name) is None}
