"""POST /v1/completions, as the OpenAI clients speak it."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from model.sampler import TokenLogprobs
from model.tokenizer import IncrementalDetokenizer
from service.api import logprobs
from service.api.dependencies import GeneratorDependency
from service.api.generation import Caller, Generation, Generator, Submission, finish, timing_headers
from service.api.parameters import Choosing
from service.api.responses import GENERATION_ANSWERS, json_response
from service.api.streaming import EventStream, UsageFrames
from service.engine.request import FinishReason, TokenEvent
from service.schemas.completions import CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=GENERATION_ANSWERS)

Choice = dict[str, Any]


@router.post("/completions", response_model=CompletionResponse)
async def completions(body: CompletionRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Continue a prompt, or several."""
    generation = await _submit(body, generator, generator.admit(body, body.model, http_request))
    writer = CompletionWriter(generation, body, generator)
    if body.stream:
        return EventStream(generation, UsageFrames(generation, "text_completion", body, writer))
    choices = await finish(generation, http_request, lambda: _fold(generation, writer))
    answer = CompletionResponse(
        id=generation.id,
        created=generation.created,
        model=generation.model_id,
        choices=_best(choices, generation, body.n),
        usage=generation.usage(),
    )
    plain = {at for at, choice in enumerate(answer.choices) if choice.prompt_logprobs is None}
    unused = {"choices": {at: {"prompt_logprobs"} for at in plain}}
    return json_response(answer, headers=timing_headers(generation), leaves_out=unused)


async def _submit(body: CompletionRequest, generator: Generator, caller: Caller) -> Generation:
    truncate_to = generator.truncation(body, body.max_tokens)
    parse_special = body.parse_special
    prompts = [await generator.prompts.of(prompt, truncate_to, parse_special=parse_special) for prompt in body.prompts]
    best_of = body.best_of or body.n
    shown = body.logprobs if body.logprobs is not None or best_of == body.n else 0  # the likeliest must be known
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, body.prompt_logprobs or 0)
    max_tokens = 1 if body.is_scoring else body.max_tokens  # the engine makes one token; nothing of it is returned
    choosing = Choosing(best_of, max_tokens, shown)
    submission = Submission(prompts, body, choosing, caller, prompt_logprobs, is_scoring=body.is_scoring)
    return await generator.submit("cmpl", submission)


class CompletionWriter:
    """Turns events into choices of chunks; an unstreamed answer is these chunks put together."""

    def __init__(self, generation: Generation, body: CompletionRequest, generator: Generator) -> None:
        self._generation = generation
        self._body = body
        self._tokenizer = generator.prompts.tokenizer
        self._offsets: dict[int, int] = {}  # of each answer that has begun: characters of its text so far
        self._detokenizers: dict[int, IncrementalDetokenizer] = {}  # which say how far each token brings the text
        self.is_plain = body.logprobs is None and not body.echo and body.prompt_logprobs is None

    def write(self, index: int, event: TokenEvent) -> Choice:
        """The choice of the chunk that an event makes."""
        if self._body.is_scoring:
            event = without_answer(event)
        is_first = index not in self._offsets
        self._offsets.setdefault(index, 0)
        choice = self.of_text(index, event.text)
        choice |= {"finish_reason": event.finish_reason, "stop_reason": event.stop_reason}
        if self._body.logprobs is not None:
            choice["logprobs"] = self._columns(index, event, with_prompt=is_first and self._body.echo)
        if is_first and self._body.echo:
            choice["text"] = self._prompt_text(index) + event.text
        begins_prompt = index % self._generation.submission.choosing.num_choices == 0
        if is_first and begins_prompt and self._body.prompt_logprobs is not None:
            first, num_top = self._first_request(index), self._body.prompt_logprobs
            choice["prompt_logprobs"] = logprobs.prompt_entries(self._tokenizer, first, num_top)
        return choice

    def opening(self) -> tuple[Choice, ...]:
        """Nothing: an answer opens with its first text."""
        return ()

    def of_text(self, index: int, text: str) -> Choice:
        """The choice of a piece of text."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}

    def chunks(self, index: int, event: TokenEvent) -> list[Choice]:
        """The choice of an event if it is worth sending: text held back for the next one is not."""
        choice = self.write(index, event)
        says = choice["text"] or choice["finish_reason"] or choice["logprobs"] or "prompt_logprobs" in choice
        return [choice] if says else []

    def _first_request(self, index: int) -> Any:
        """The request that computed the prompt of an answer, and so its log-probabilities."""
        num_choices = self._generation.submission.choosing.num_choices
        return self._generation.requests[index // num_choices * num_choices]

    def _prompt_text(self, index: int) -> str:
        prompt = self._generation.prompt_of(index)
        if prompt.text is None:
            return self._tokenizer.decode(prompt.ids, skip_special_tokens=False)
        return prompt.text

    def _columns(self, index: int, event: TokenEvent, *, with_prompt: bool) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if with_prompt:
            request = self._first_request(index)
            whole = self._tokenizer.incremental(skip_special_tokens=False)  # the echo shows special tokens
            self._append(index, columns, request.prompt_ids[0], None, whole)
            for token_id, known in zip(request.prompt_ids[1:], request.prompt_token_logprobs, strict=True):
                self._append(index, columns, token_id, replace(known, top=known.top[: self._body.logprobs]), whole)
        if event.token_id is not None and event.logprobs is not None:
            skips = self._body.skip_special_tokens
            shown = self._detokenizers.setdefault(index, self._tokenizer.incremental(skip_special_tokens=skips))
            self._append(index, columns, event.token_id, event.logprobs, shown)
        return columns

    def _append(
        self,
        index: int,
        columns: dict[str, list[Any]],
        token_id: int,
        known: TokenLogprobs | None,
        detokenizer: IncrementalDetokenizer,
    ) -> None:
        entry: tuple[str, float | None, Any] = (logprobs.readable(self._tokenizer, token_id), None, None)
        if known is not None:
            entry = logprobs.completion_entry(self._tokenizer, token_id, known)
        for name, value in zip(("tokens", "token_logprobs", "top_logprobs"), entry, strict=True):
            columns[name].append(value)
        columns["text_offset"].append(self._offsets[index])
        self._offsets[index] += len(detokenizer.push(token_id))


def without_answer(event: TokenEvent) -> TokenEvent:
    """The event of a prompt's scoring, as if nothing had been generated."""
    end = None if event.finish_reason is None else FinishReason.LENGTH
    return replace(event, text="", token_id=None, logprobs=None, finish_reason=end, stop_reason=None)


async def _fold(generation: Generation, writer: CompletionWriter) -> list[Choice]:
    """The chunks' choices put together, by index."""
    folded: dict[int, Choice] = {}
    async with contextlib.aclosing(generation.events()) as events:
        async for index, event in events:
            choice = writer.write(index, event)
            whole = folded.setdefault(index, {**choice, "text": [], "logprobs": []})
            whole["text"].append(choice["text"])
            whole["logprobs"].append(choice["logprobs"])
            whole |= {"finish_reason": choice["finish_reason"], "stop_reason": choice["stop_reason"]}
    for whole in folded.values():
        whole["text"] = "".join(whole["text"])
        whole["logprobs"] = _joined([columns for columns in whole["logprobs"] if columns is not None])
    return [folded[index] for index in sorted(folded)]


def _joined(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]] | None:
    if not parts:
        return None
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _best(choices: list[Choice], generation: Generation, n: int) -> list[CompletionChoice]:
    """The `n` likeliest answers of each prompt, likeliest first, numbered anew; all of them if no more were made."""
    made = generation.submission.choosing.num_choices
    if made > n:
        by_prompt = [choices[start : start + made] for start in range(0, len(choices), made)]
        choices = [choice for group in by_prompt for choice in _likeliest(group, generation, n)]
    numbered: Iterable[tuple[int, Choice]] = enumerate(choices)
    return [
        CompletionChoice(
            **{**choice, "index": index, "logprobs": choice["logprobs"] and CompletionLogprobs(**choice["logprobs"])}
        )
        for index, choice in numbered
    ]


def _likeliest(choices: list[Choice], generation: Generation, n: int) -> list[Choice]:
    """The `n` best by mean log-probability per token; the first of them tells of the prompt."""
    told = choices[0].pop("prompt_logprobs", None)
    best = sorted(choices, key=lambda choice: -generation.requests[choice["index"]].mean_logprob)[:n]
    best[0]["prompt_logprobs"] = told
    return best
