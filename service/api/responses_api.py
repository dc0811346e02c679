"""POST /v1/responses, OpenAI's newer API, for text and functions. Nothing is stored: a request brings all it needs."""

import contextlib
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import logprobs
from service.api.dependencies import GeneratorDependency
from service.api.forms import ANY_OBJECT, AnswerForm
from service.api.generation import Caller, Generation, Generator, Submission, finish, timing_headers
from service.api.parameters import Choosing, blaming_form
from service.api.responses import GENERATION_ANSWERS, json_response
from service.api.streaming import EventStream
from service.api.tool_calls import Delta, ToolCallParser
from service.engine.request import FinishReason, TokenEvent
from service.engine.request_check import blaming
from service.schemas.chat import JsonObjectFormat
from service.schemas.responses import (
    FunctionChoice,
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponsesRequest,
    ResponsesResponse,
    ResponsesUsage,
    SchemaFormat,
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=GENERATION_ANSWERS)

Event = dict[str, Any]
Item = OutputMessage | OutputCall


@router.post("/responses", response_model=ResponsesResponse)
async def responses(body: ResponsesRequest, http_request: Request, generator: GeneratorDependency) -> Response:
    """Answer an input. Streamed: the events of OpenAI's Responses API."""
    generation = await _submit(body, generator, generator.admit(body, body.model, http_request))
    writer = ResponseWriter(generation, body, generator)
    if body.stream:
        return EventStream(generation, writer, is_named=True)
    await finish(generation, http_request, lambda: _fold(generation, writer))
    unused = set() if body.prompt_logprobs is not None else {"prompt_logprobs"}
    return json_response(writer.response(), headers=timing_headers(generation), leaves_out=unused)


async def _submit(body: ResponsesRequest, generator: Generator, caller: Caller) -> Generation:
    with blaming({"prompt": "input", "max_tokens": "max_output_tokens"}):
        fields = body.fields  # validated anew at each access
        truncate_to = generator.truncation(fields, body.max_output_tokens)
        prompt = await generator.prompts.of_messages(body.chat_messages, body.chat_tools, truncate_to=truncate_to)
        form_field = "tools" if body.uses_tools else "text.format"
        with blaming_form(form_field):
            form = await answer_form(body).spec(opens_objects=generator.settings.opens_objects)
        choosing = Choosing(max_tokens=body.max_output_tokens, constraint=form, form_field=form_field if form else None)
        submission = Submission([prompt], fields, choosing, caller, body.prompt_logprobs)
        return await generator.submit("resp", submission)


def answer_form(body: ResponsesRequest) -> AnswerForm:
    """The form that the text's format and the tools ask for; a named function is called once."""
    tools, choice = body.chat_tools, body.tool_choice
    form = AnswerForm(
        tools,
        is_call=bool(tools) and choice != "auto",
        is_single=not body.parallel_tool_calls or isinstance(choice, FunctionChoice),
    )
    match body.text.format:
        case JsonObjectFormat(schema_=schema):
            return replace(form, schema=ANY_OBJECT if schema is None else schema)
        case SchemaFormat(schema_=schema, strict=strict):
            return replace(form, schema=schema, is_strict=bool(strict))
    return form


class ResponseWriter:
    """Turns a request's events into those of the Responses API, and collects the answer's items on the way."""

    def __init__(self, generation: Generation, body: ResponsesRequest, generator: Generator) -> None:
        self._generation = generation
        self._body = body
        self._tokenizer = generator.prompts.tokenizer
        calls_follow_text = body.text.format.type == "text"
        self._parser = ToolCallParser(calls_follow_text=calls_follow_text) if body.uses_tools else None
        self._numbers = itertools.count()
        self._items: list[Item] = []
        self._end: FinishReason | None = None

    def opening(self) -> Iterator[Event]:
        """The events that open an answer."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._dumped())

    def write(self, _index: int, event: TokenEvent) -> Iterator[Event]:
        """The events that one of the engine's makes; after the last one the answer is closed."""
        for delta in self._deltas(event):
            if "content" in delta:
                yield from self._add_text(delta["content"])
            for call in delta.get("tool_calls", ()):
                yield from self._add_call(call)
        if event.finish_reason is not None:
            if not self._items:
                yield from self._open_message()
            self._end = event.finish_reason
            yield from self._close_item()
            kind = "response.incomplete" if self._end is FinishReason.LENGTH else "response.completed"
            yield self._event(kind, response=self._dumped())

    def closing(self) -> Iterator[Event]:
        """Nothing: the last event has closed the answer."""
        return iter(())

    def _dumped(self) -> dict[str, Any]:
        """The answer as it is now, for events; what was not asked for is left out."""
        unused = set() if self._body.prompt_logprobs is not None else {"prompt_logprobs"}
        return self.response().model_dump(exclude=unused)

    def response(self) -> ResponsesResponse:
        """The answer as it is now."""
        body, is_cut = self._body, self._end is FinishReason.LENGTH
        return ResponsesResponse(
            id=self._generation.id,
            created_at=self._generation.created,
            status="in_progress" if self._end is None else "incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            model=self._generation.model_id,
            output=self._items,
            parallel_tool_calls=body.parallel_tool_calls,
            temperature=body.temperature,
            text=body.text.model_dump(by_alias=True, exclude_none=True),
            tool_choice=body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            tools=[{"strict": None, **tool.model_dump()} for tool in body.tools],
            top_p=body.top_p,
            usage=None if self._end is None else self._usage(),
            user=body.user,
            metadata=body.metadata,
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _prompt_logprobs(self) -> list[dict[str, Any] | None] | None:
        if self._body.prompt_logprobs is None or self._end is None:
            return None
        return logprobs.prompt_entries(self._tokenizer, self._generation.requests[0])

    def _usage(self) -> ResponsesUsage:
        usage = self._generation.usage()
        return ResponsesUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _item_event(self, kind: str, item: Item, **fields: Any) -> Event:
        return self._event(kind, item_id=item.id, output_index=len(self._items) - 1, **fields)

    def _deltas(self, event: TokenEvent) -> list[Delta]:
        if self._parser is None:
            return [{"content": event.text}] if event.text else []
        return self._parser.read(event)

    def _open(self, item: Item) -> Event:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item.model_dump())

    def _open_message(self) -> Iterator[Event]:
        message = OutputMessage(id=f"msg_{uuid.uuid4().hex}", status="in_progress", content=[])
        yield self._open(message)
        message.content.append(OutputText(text=""))
        part = message.content[0].model_dump()
        yield self._item_event("response.content_part.added", message, content_index=0, part=part)

    def _add_text(self, text: str) -> Iterator[Event]:
        if not self._items or not isinstance(self._items[-1], OutputMessage):
            yield from self._close_item()
            yield from self._open_message()
        message = self._items[-1]
        assert isinstance(message, OutputMessage), "it was just opened"
        message.content[0].text += text
        yield self._item_event("response.output_text.delta", message, content_index=0, delta=text, logprobs=[])

    def _add_call(self, delta: dict[str, Any]) -> Iterator[Event]:
        function = delta["function"]
        if "id" in delta:
            yield from self._close_item()
            item_id = f"fc_{uuid.uuid4().hex}"
            yield self._open(
                OutputCall(id=item_id, call_id=delta["id"], name=function["name"], arguments="", status="in_progress")
            )
            return
        call = self._items[-1]
        assert isinstance(call, OutputCall), "arguments follow their call"
        call.arguments += function["arguments"]
        yield self._item_event("response.function_call_arguments.delta", call, delta=function["arguments"])

    def _close_item(self) -> Iterator[Event]:
        """The events that end the item in progress, if there is one."""
        if not self._items or self._items[-1].status != "in_progress":
            return
        item = self._items[-1]
        item.status = "incomplete" if self._is_incomplete(item) else "completed"
        if isinstance(item, OutputCall):
            fields = {"arguments": item.arguments, "name": item.name}
            yield self._item_event("response.function_call_arguments.done", item, **fields)
        else:
            part = item.content[0]
            yield self._item_event("response.output_text.done", item, content_index=0, text=part.text, logprobs=[])
            yield self._item_event("response.content_part.done", item, content_index=0, part=part.model_dump())
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item.model_dump())

    def _is_incomplete(self, item: Item) -> bool:
        """Whether the answer was cut inside this item, the last one; a call is complete with its arguments."""
        if self._end is None:
            return False  # another item follows
        if isinstance(item, OutputCall):
            return self._parser is not None and self._parser.is_inside_arguments
        return self._end is FinishReason.LENGTH


async def _fold(generation: Generation, writer: ResponseWriter) -> None:
    """An unstreamed answer is what the events of a stream leave behind."""
    async with contextlib.aclosing(generation.events()) as events:
        async for index, event in events:
            for _written in writer.write(index, event):
                pass
