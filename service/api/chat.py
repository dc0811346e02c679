"""POST /v1/chat/completions, as the OpenAI clients speak it."""

import contextlib
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import logprobs
from service.api.dependencies import GeneratorDependency
from service.api.forms import ANY_OBJECT, AnswerForm
from service.api.generation import Caller, Generation, Generator, Submission, finish, timing_headers
from service.api.parameters import Choosing, blaming_form
from service.api.responses import GENERATION_ANSWERS, json_response
from service.api.streaming import EventStream, UsageFrames
from service.api.tool_calls import ToolCallParser
from service.engine.request import FinishReason, TokenEvent
from service.engine.request_check import blaming
from service.schemas.chat import (
    ChatAnswer,
    ChatChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatLogprobs,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    ToolCall,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=GENERATION_ANSWERS)

Choice = dict[str, Any]


@router.post("/chat/completions", response_model=ChatCompletionResponse)
async def chat_completions(
    body: ChatCompletionRequest, http_request: Request, generator: GeneratorDependency
) -> Response:
    """Answer a conversation."""
    generation = await _submit(body, generator, generator.admit(body, body.model, http_request))
    writer = ChatWriter(generation, body, generator)
    if body.stream:
        return EventStream(generation, UsageFrames(generation, "chat.completion.chunk", body, writer))
    choices = await finish(generation, http_request, lambda: _fold(generation, writer))
    answer = ChatCompletionResponse(
        id=generation.id,
        created=generation.created,
        model=generation.model_id,
        choices=[ChatChoice(**choice) for choice in choices],
        usage=generation.usage(),
    )
    return json_response(answer, headers=timing_headers(generation), leaves_out=_unused(answer))


def _unused(answer: ChatCompletionResponse) -> dict[str, Any]:
    """Fields that say nothing: messages without calls have no `tool_calls`, since clients take null for a call."""
    unused: dict[int, dict[str, Any]] = {}
    for index, choice in enumerate(answer.choices):
        unused[index] = {} if choice.message.tool_calls else {"message": {"tool_calls"}}
        if choice.prompt_logprobs is None:
            unused[index]["prompt_logprobs"] = True
    return {"choices": unused}


async def _submit(body: ChatCompletionRequest, generator: Generator, caller: Caller) -> Generation:
    max_tokens = body.max_completion_tokens or body.max_tokens
    limit_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    with blaming({"prompt": "messages", "max_tokens": limit_name}):
        prompt = await generator.prompts.of_messages(
            body.messages,
            body.callable_tools,
            add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
            continue_final_message=body.continue_final_message,
            truncate_to=generator.truncation(body, max_tokens),
        )
        shown = (body.top_logprobs or 0) if body.logprobs else None
        form_field = "tools" if body.uses_tools else "response_format"
        with blaming_form(form_field):
            form = await answer_form(body).spec(opens_objects=generator.settings.opens_objects)
        choosing = Choosing(body.n, max_tokens, shown, form, form_field if form is not None else None)
        return await generator.submit("chatcmpl", Submission([prompt], body, choosing, caller, body.prompt_logprobs))


def answer_form(body: ChatCompletionRequest) -> AnswerForm:
    """The form that `response_format` and the tools ask for; a named function is called once."""
    tools, choice = body.callable_tools, body.tool_choice
    form = AnswerForm(
        tools,
        is_call=bool(tools) and choice not in (None, "auto"),
        is_single=not body.parallel_tool_calls or isinstance(choice, NamedToolChoice),
    )
    match body.response_format:
        case JsonObjectFormat(schema_=schema):
            return replace(form, schema=ANY_OBJECT if schema is None else schema)
        case JsonSchemaFormat(json_schema=named):
            return replace(form, schema=named.schema_, is_strict=bool(named.strict))
    return form


class ChatWriter:
    """Turns events into choices of chunks; an unstreamed answer is these chunks put together."""

    def __init__(self, generation: Generation, body: ChatCompletionRequest, generator: Generator) -> None:
        self._generation = generation
        self._body = body
        self._tokenizer = generator.prompts.tokenizer
        calls_follow_text = body.response_format is None or body.response_format.type == "text"
        parsers = [ToolCallParser(calls_follow_text=calls_follow_text) for _ in generation.requests]
        self._parsers = parsers if body.uses_tools else []
        self.is_plain = not self._parsers and not body.logprobs

    def opening(self) -> list[Choice]:
        """The chunks that open the answers."""
        openings = range(len(self._generation.requests))
        return [self._choice(index, {"role": "assistant", "content": ""}) for index in openings]

    def of_text(self, index: int, text: str) -> Choice:
        """The choice of a piece of text."""
        return self._choice(index, {"content": text})

    def chunks(self, index: int, event: TokenEvent) -> list[Choice]:
        """The choices of the chunks that an event makes."""
        deltas = self._deltas(index, event)
        choices = [self._choice(index, delta) for delta in deltas]
        if self._body.logprobs and event.token_id is not None and event.logprobs is not None:
            choices = choices or [self._choice(index, {})]
            entry = logprobs.chat_entry(self._tokenizer, event.token_id, event.logprobs)
            choices[0]["logprobs"] = {"content": [entry], "refusal": None}
        if event.finish_reason is not None:
            last = self._choice(index, {})
            last |= {"finish_reason": self._finish_reason(index, event), "stop_reason": event.stop_reason}
            if self._body.prompt_logprobs is not None and index == 0:  # all answers continue the same prompt
                last["prompt_logprobs"] = logprobs.prompt_entries(self._tokenizer, self._generation.requests[0])
            choices.append(last)
        return choices

    def _choice(self, index: int, delta: dict[str, Any]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _deltas(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        if not self._parsers:
            return [{"content": event.text}] if event.text else []
        return self._parsers[index].read(event)

    def _finish_reason(self, index: int, event: TokenEvent) -> str | None:
        called = bool(self._parsers) and self._parsers[index].is_called
        return "tool_calls" if called and event.finish_reason is FinishReason.STOP else event.finish_reason


class _Folded:
    """One answer, put together from the chunks that a stream would have sent."""

    def __init__(self) -> None:
        self._contents: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._last: Choice = {}

    def add(self, choice: Choice) -> None:
        """Fold in one chunk's choice."""
        delta = choice["delta"]
        self._contents.append(delta.get("content", ""))
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                self._calls.append({"id": call["id"], "function": dict(call["function"])})
            else:
                self._calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        if choice["logprobs"] is not None:
            self._entries += choice["logprobs"]["content"]
        self._last = choice

    def choice(self, *, has_logprobs: bool) -> Choice:
        """The whole answer."""
        text = "".join(self._contents)
        calls = [ToolCall.model_validate(call) for call in self._calls]
        message = ChatAnswer(content=None if calls and not text else text, tool_calls=calls or None)
        kept = {name: value for name, value in self._last.items() if name not in ("delta", "logprobs")}
        reported = ChatLogprobs.model_validate({"content": self._entries}) if has_logprobs else None
        return {**kept, "message": message, "logprobs": reported}


async def _fold(generation: Generation, writer: ChatWriter) -> list[Choice]:
    """The chunks' choices put together, by index."""
    folded = [_Folded() for _ in generation.requests]
    async with contextlib.aclosing(generation.events()) as events:
        async for index, event in events:
            for choice in writer.chunks(index, event):
                folded[index].add(choice)
    has_logprobs = generation.submission.choosing.logprobs is not None
    return [answer.choice(has_logprobs=has_logprobs) for answer in folded]
