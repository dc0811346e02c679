"""Answers with tools on both conversation routes, streamed and not: one row for each complaint of real clients."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from tests.support.api_client import (
    CHAT,
    LENGTH_NAMES,
    RESPONSES,
    Json,
    body_for,
    error_of,
    events_of,
    folded_chat,
    named_events_of,
)
from tests.support.fake_decoder import FakeDecoder, repeating_token
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.spelling import says
from tests.support.tiny_checkpoint import CHAT_TEMPLATE

ROUTES = [CHAT, RESPONSES]
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
ON_BOTH = pytest.mark.parametrize("route", ROUTES, ids=["chat", "responses"])
CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Zürich"]}}, "required": ["city"]}
FORM = {"type": "object", "properties": {"t": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["t"]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
TEMPLATE = (
    "{# tools: known, and not shown #}{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}" + CHAT_TEMPLATE
)


@pytest.fixture
def decoder() -> FakeDecoder:
    """The decoder behind the client."""
    return FakeDecoder()


@pytest.fixture
def client(tmp_path: Path, decoder: FakeDecoder) -> Iterator[TestClient]:
    """A client of the whole app, whose model's template shows calls but no tools."""
    with TestClient(fake_app(tmp_path, decoder, chat_template=TEMPLATE)) as client:
        yield client


def tool(route: str, name: str = "weather", parameters: Json | None = CITY, **more: Any) -> Json:
    """A function in a route's own words."""
    function = {"name": name, "parameters": parameters, **more}
    return {"type": "function", **function} if route == RESPONSES else {"type": "function", "function": function}


def named(route: str, name: str) -> Json:
    """A `tool_choice` that names a function."""
    return (
        {"type": "function", "name": name} if route == RESPONSES else {"type": "function", "function": {"name": name}}
    )


def formed(route: str, schema: Json | None = None, **more: Any) -> Json:
    """The field that asks for JSON, by a schema or of any form."""
    if schema is None:
        kind: Json = {"type": "json_object"}
    elif route == RESPONSES:
        kind = {"type": "json_schema", "name": "answer", "schema": schema, **more}
    else:
        kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}
    return {"text": {"format": kind}} if route == RESPONSES else {"response_format": kind}


class Answer:
    """What a client sees of an answer, whichever way it came."""

    def __init__(self, content: str, calls: Sequence[tuple[str, str]], end: str) -> None:
        self.content, self.calls, self.end = content, list(calls), end


def ask(client: TestClient, route: str, *, stream: bool = False, **fields: Any) -> Answer:
    """Ask, and read the answer as a client does."""
    fields = {LENGTH_NAMES.get(route, "max_tokens"): fields.pop("max_tokens", 300), **fields}
    response = client.post(route, json={**body_for(route, **fields), "stream": stream})
    assert response.status_code == 200, response.text
    if route == CHAT:
        (choice,) = folded_chat(events_of(response))["choices"] if stream else response.json()["choices"]
        message = choice["message"]
        found = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        return Answer(message["content"] or "", found, choice["finish_reason"])
    body = named_events_of(response)[-1]["response"] if stream else response.json()
    texts = [item["content"][0]["text"] for item in body["output"] if item["type"] == "message"]
    found = [(item["name"], item["arguments"]) for item in body["output"] if item["type"] == "function_call"]
    return Answer("".join(texts), found, body["status"])


# How many calls there are.


@STREAMED
@ON_BOTH
@pytest.mark.parametrize(
    ("choice", "is_parallel", "fewest", "most"),
    [
        pytest.param("named", True, 1, 1, id="a named function is called once, as clients that name one expect"),
        pytest.param("named", False, 1, 1, id="the same without parallel calls"),
        pytest.param("required", False, 1, 1, id="one is required and no more are allowed"),
        pytest.param("required", True, 1, 8, id="at least one"),
        pytest.param("auto", False, 0, 1, id="at most one"),
        pytest.param("auto", True, 0, 8, id="as many as the model likes, within bounds"),
    ],
)
def test_the_number_of_calls_is_the_one_asked_for(
    client: TestClient,
    decoder: FakeDecoder,
    route: str,
    stream: bool,
    choice: str,
    is_parallel: bool,
    fewest: int,
    most: int,
) -> None:
    """Of a model that would call the same function for ever."""
    decoder.next_token = says("\n".join([OTHER_CALL] * 12))
    fields: Json = {
        "tools": [tool(route), tool(route, "time", {"type": "object", "properties": {}})],
        "tool_choice": named(route, "time") if choice == "named" else choice,
        "parallel_tool_calls": is_parallel,
        "max_tokens": 485,
    }
    answer = ask(client, route, stream=stream, **fields)
    assert fewest <= len(answer.calls) <= most
    assert len(answer.calls) == (most if is_parallel and choice != "named" and len(answer.calls) > 1 else 1)
    assert (answer.content, answer.end) == ("", "tool_calls" if route == CHAT else "completed")
    assert set(answer.calls) == {("time", "{}")}


# Answers that are cut.


@STREAMED
@ON_BOTH
@pytest.mark.parametrize(
    ("said", "choice"),
    [
        pytest.param(f"I look.\n{CALL}", "auto", id="text and a call"),
        pytest.param(CALL, "required", id="a call that is required"),
        pytest.param('{"t": 7}', "auto", id="JSON beside tools"),
    ],
)
def test_an_answer_cut_by_its_length_shows_no_markup(
    client: TestClient, decoder: FakeDecoder, route: str, stream: bool, said: str, choice: str
) -> None:
    """At every length (one token is one byte here): clean beginnings of the content and of the call's arguments."""
    decoder.next_token = says(said)
    fields = {"tools": [tool(route)], "tool_choice": choice, **(formed(route, FORM) if said.startswith("{") else {})}
    whole = ask(client, route, stream=stream, **fields)
    for length in range(1, len(said.encode())):
        cut = ask(client, route, stream=stream, max_tokens=length, **fields)
        assert whole.content.startswith(cut.content)
        assert [name for name, _ in cut.calls] == [name for name, _ in whole.calls][: len(cut.calls)]
        assert all(expected.startswith(told) for (_, expected), (_, told) in zip(whole.calls, cut.calls, strict=False))
        assert cut.end in ("length", "incomplete")


@STREAMED
@pytest.mark.parametrize(
    ("stop", "content", "calls"),
    [
        pytest.param("<tool_call>", "I look.", [], id="at the call's mark"),
        pytest.param("\n", "I look.", [], id="inside the mark"),
        pytest.param('"name"', "I look.", [], id="before the name"),
        pytest.param("ric", "I look.", [("weather", '{"city": "Zü')], id="inside the arguments"),
        pytest.param("</tool_call>", "I look.", [("weather", '{"city": "Zürich"}')], id="behind the arguments"),
        pytest.param("}\n", "I look.", [("weather", '{"city": "Zürich"}')], id="at the wrapper's brace"),
    ],
)
def test_an_answer_cut_by_a_stop_string_shows_no_markup(
    client: TestClient, decoder: FakeDecoder, stream: bool, stop: str, content: str, calls: list[Any]
) -> None:
    """A call whose arguments are complete counts as made."""
    decoder.next_token = says(f"I look.{CALL}")
    answer = ask(client, CHAT, stream=stream, tools=[tool(CHAT)], stop=stop)
    assert (answer.content, answer.calls) == (content, calls)
    assert answer.end == ("tool_calls" if calls and calls[-1][1].endswith("}") else "stop")


@STREAMED
@ON_BOTH
@pytest.mark.parametrize(
    ("character", "content", "calls"),
    [
        pytest.param("_", "I look.", [], id="inside the mark"),
        pytest.param("h", "I look.", [], id="inside the name"),
        pytest.param("Z", "I look.", [("weather", '{"city": "')], id="inside the arguments"),
        pytest.param("}", "I look.", [("weather", '{"city": "Zürich"')], id="before the last brace"),
        pytest.param("/", "I look.", [("weather", '{"city": "Zürich"}')], id="behind the arguments"),
    ],
)
def test_an_answer_cut_by_a_stop_token_shows_no_markup(
    client: TestClient,
    decoder: FakeDecoder,
    route: str,
    stream: bool,
    character: str,
    content: str,
    calls: list[Any],
) -> None:
    """The only stop that responses know."""
    decoder.next_token = says(f"I look.{CALL}")
    stops = TOKENIZER.encode(character)
    answer = ask(client, route, stream=stream, tools=[tool(route)], stop_token_ids=stops)
    assert (answer.content, answer.calls) == (content, calls)


# Tools and a form together.


@STREAMED
@ON_BOTH
@pytest.mark.parametrize(
    ("said", "choice", "has_schema"),
    [
        pytest.param('{"t": 7}', "auto", True, id="JSON by the schema"),
        pytest.param(CALL, "auto", True, id="a call instead"),
        pytest.param("Certainly! Let me", "auto", True, id="a model that would say something else"),
        pytest.param('{"any": [1, "<tool_call>"]}', "auto", False, id="any object, with a mark in a text"),
        pytest.param('{"t": 7}', "required", True, id="a call is required: no JSON"),
        pytest.param('{"t": 7}', "named", True, id="a named call: no JSON"),
        pytest.param(CALL, "none", True, id="no call is allowed: JSON"),
    ],
)
def test_with_tools_and_a_form_the_answer_is_a_call_or_fits(
    client: TestClient, decoder: FakeDecoder, route: str, stream: bool, said: str, choice: str, has_schema: bool
) -> None:
    """Agents with a typed result send both on every turn."""
    decoder.next_token = says(said)
    fields: Json = {
        "tools": [tool(route)],
        "tool_choice": named(route, "weather") if choice == "named" else choice,
        **formed(route, FORM if has_schema else None),
    }
    answer = ask(client, route, stream=stream, **fields)
    assert bool(answer.calls) != bool(answer.content)
    for name, arguments in answer.calls:
        assert name == "weather"
        jsonschema.validate(json.loads(arguments), CITY)
    if answer.content:
        jsonschema.validate(json.loads(answer.content), FORM if has_schema else {"type": "object"})
        assert choice in ("auto", "none")
    if said.startswith("{") and choice == "auto":
        assert answer.content == said


# Closed objects.

LISTED: Json = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
MORE = '{"a": 1, "z": 2}'
CLOSED = [
    pytest.param(LISTED, {}, False, False, id="they list their properties: closed"),
    pytest.param({**LISTED, "additionalProperties": True}, {}, False, True, id="they say that others may be added"),
    pytest.param({**LISTED, "additionalProperties": {"type": "integer"}}, {}, False, True, id="or which"),
    pytest.param({**LISTED, "additionalProperties": False}, {}, True, False, id="closed by themselves, any setting"),
    pytest.param(LISTED, {}, True, True, id="the setting opens them"),
    pytest.param(LISTED, {"strict": True}, True, False, id="strict closes them although the setting does not"),
    pytest.param({"type": "object", "additionalProperties": True}, {}, False, True, id="an object of any form is open"),
    pytest.param({"type": "object"}, {"strict": True}, False, False, id="strict closes one of no form"),
]


@pytest.mark.parametrize("is_tool", [False, True], ids=["format", "tool"])
@ON_BOTH
@pytest.mark.parametrize(("schema", "strict", "opens_objects", "is_open"), CLOSED)
def test_objects_are_closed_unless_something_opens_them(
    tmp_path: Path, route: str, is_tool: bool, schema: Json, strict: Json, opens_objects: bool, is_open: bool
) -> None:
    """A model that would add a property does so only where it may."""
    decoder = FakeDecoder()
    decoder.next_token = says(
        f'<tool_call>\n{{"name": "weather", "arguments": {MORE}}}\n</tool_call>' if is_tool else MORE
    )
    app = fake_app(tmp_path, decoder, chat_template=TEMPLATE, open_objects=opens_objects)
    fields = {"tools": [tool(route, parameters=schema, **strict)]} if is_tool else formed(route, schema, **strict)
    with TestClient(app) as client:
        answer = ask(client, route, **fields)
    text = answer.calls[0][1] if is_tool else answer.content
    assert ("z" in json.loads(text)) == is_open


NO_PARAMETERS: list[Any] = [
    pytest.param(None, id="none: a client that leaves them out"),
    pytest.param({}, id="an empty schema, as hand-written tools have it"),
    pytest.param({"type": "object"}, id="only a type: MCP servers"),
    pytest.param({"type": "object", "properties": None}, id="null for no properties: Go and Java"),
    pytest.param({"type": "object", "properties": {}}, id="no properties: zod and pydantic"),
    pytest.param({"type": "object", "properties": {}, "required": []}, id="the same, written out"),
    pytest.param({"type": "object", "required": [], "title": "NoArgs"}, id="only words that say nothing"),
    pytest.param({"type": ["object", "null"], "description": "none", "$defs": {}}, id="a type that may be null"),
]


@ON_BOTH
@pytest.mark.parametrize("parameters", NO_PARAMETERS)
def test_a_function_without_parameters_takes_none(
    client: TestClient, decoder: FakeDecoder, route: str, parameters: Json | None
) -> None:
    """The model cannot make some up, however their absence is spelled."""
    decoder.next_token = says('<tool_call>\n{"name": "weather", "arguments": {"x": 1}}\n</tool_call>')
    fields: Json = {"tools": [tool(route, parameters=parameters)], "tool_choice": named(route, "weather")}
    assert ask(client, route, **fields).calls == [("weather", "{}")]


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"additionalProperties": True}, id="it says that any may be added"),
        pytest.param({"type": "object", "additionalProperties": {"type": "integer"}}, id="or which"),
        pytest.param({"type": "object", "patternProperties": {"^x$": {"type": "integer"}}}, id="or by pattern"),
        pytest.param({"type": "object", "minProperties": 1}, id="or how many"),
        pytest.param({"type": "object", "required": ["x"]}, id="or names one that must be there"),
    ],
)
def test_parameters_that_say_anything_of_arguments_are_no_absence(
    client: TestClient, decoder: FakeDecoder, parameters: Json
) -> None:
    """A tool that takes a map gets one."""
    decoder.next_token = says('<tool_call>\n{"name": "weather", "arguments": {"x": 1}}\n</tool_call>')
    fields: Json = {"tools": [tool(CHAT, parameters=parameters)], "tool_choice": "required"}
    assert ask(client, CHAT, **fields).calls == [("weather", '{"x": 1}')]


# Names and errors.


@STREAMED
@ON_BOTH
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("files.read", id="a dot, as MCP servers separate"),
        pytest.param("github/create_issue", id="a slash, as MCP gateways do"),
        pytest.param("mcp:server/tool.v1-2", id="all of it"),
        pytest.param("x" * 128, id="as long as MCP allows"),
        pytest.param("mcp__server__tool", id="underscores"),
    ],
)
def test_names_as_mcp_has_them_work(
    client: TestClient, decoder: FakeDecoder, route: str, stream: bool, name: str
) -> None:
    """As a tool, as the choice, in the answer, and in the history that holds it."""
    decoder.next_token = says(f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "Bern"}}}}\n</tool_call>')
    fields = {"tools": [tool(route, name), tool(route, "other")], "tool_choice": named(route, name)}
    answer = ask(client, route, stream=stream, **fields)
    assert answer.calls == [(name, '{"city": "Bern"}')]
    decoder.next_token = says("Fine.")
    assert ask(client, route, stream=stream, **history(route, name, answer.calls[0][1])).content == "Fine."


def history(route: str, name: str, arguments: Any) -> Json:
    """A conversation in which a function was called."""
    if route == RESPONSES:
        call = {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments}
        output = {"type": "function_call_output", "call_id": "c", "output": "done"}
        return {"input": [{"role": "user", "content": "hi"}, call, output]}
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c", "content": "done"}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    return {"messages": messages}


@ON_BOTH
@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        pytest.param('{"city": "Zü', "{}", id="an answer of our own that was cut"),
        pytest.param("", "{}", id="nothing, as some clients fold a call without arguments"),
        pytest.param(None, "{}", id="null"),
        pytest.param("null", "{}", id="null as text"),
        pytest.param("[1]", "{}", id="a list"),
        pytest.param("Bern", "{}", id="no JSON"),
        pytest.param("[" * 2_000, "{}", id="brackets without end"),
        pytest.param({"city": "Bern"}, '{"city": "Bern"}', id="an object, not its text"),
        pytest.param('{"city": "Bern"}', '{"city": "Bern"}', id="as they should be"),
    ],
)
def test_a_conversation_with_odd_arguments_goes_on(
    client: TestClient, decoder: FakeDecoder, route: str, arguments: Any, rendered: str
) -> None:
    """They are shown to the model as none, or as they are."""
    decoder.next_token = says("Fine.")
    body = history(route, "weather", arguments)
    response = client.post(route, json=body_for(route, **body))
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    expected = f"[weather {rendered}]<user>hi\n<assistant>\n<tool>done\n<assistant>"
    assert usage["input_tokens" if route == RESPONSES else "prompt_tokens"] == len(expected.encode())


@ON_BOTH
@pytest.mark.parametrize(
    ("schema", "property_name", "reason"),
    [
        pytest.param({"not": {"const": 1}}, "user.age", '"not"', id="a word that no grammar can enforce"),
        pytest.param({"type": "string", "pattern": "^(?!x)"}, "user.age", "look-around", id="looking around"),
        pytest.param({"type": "string", "pattern": "("}, "user.age", "unclosed", id="a pattern that is none"),
        pytest.param({"type": "array", "items": {"uniqueItems": True}}, "user.age[]", '"uniqueItems"', id="in items"),
        pytest.param({"type": "text"}, "user.age", "'text'", id="an unknown type"),
        pytest.param({"$ref": "#/$defs/gone"}, "user.age", "#/$defs/gone", id="a reference to nothing"),
        pytest.param({"$ref": "http://a.b/c"}, "user.age", "http://a.b/c", id="a reference to elsewhere"),
        pytest.param({"type": "integer", "minimum": 3, "maximum": 2}, "user.age", "", id="a contradiction"),
    ],
)
def test_an_odd_tool_is_named_with_its_property(
    client: TestClient, route: str, schema: Json, property_name: str, reason: str
) -> None:
    """Of several tools the one at fault, so that a user of an MCP server knows which to turn off."""
    inner = {"type": "object", "properties": {"age": schema}, "required": ["age"]}
    odd = {"type": "object", "properties": {"user": inner}, "required": ["user"]}
    response = client.post(route, json=body_for(route, tools=[tool(route), tool(route, "odd.one", odd)]))
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "tools"
    assert f"tool 'odd.one', property '{property_name}'" in error["message"]
    assert reason in error["message"]
    assert "weather" not in error["message"]


@ON_BOTH
@pytest.mark.parametrize(
    "words",
    [
        pytest.param({"format": "password"}, id="formats that say how a text is meant"),
        pytest.param({"format": "int32", "type": "integer"}, id="a width of OpenAPI's"),
        pytest.param({"$comment": "c", "title": "T", "examples": ["x"], "default": 3}, id="notes"),
        pytest.param({"readOnly": True, "deprecated": True, "writeOnly": False}, id="usage"),
        pytest.param({"contentMediaType": "image/png", "contentEncoding": "base64", "contentSchema": {}}, id="media"),
        pytest.param({"x-order": 3, "example": 1, "nullable": True, "markdownDescription": "*"}, id="words of others"),
        pytest.param({"type": "object", "propertyNames": {"type": "string"}}, id="names are texts, as zod writes"),
        pytest.param({"$schema": "http://unknown.example/draft", "$id": "urn:x"}, id="a dialect nobody knows"),
        pytest.param({"type": "array", "items": {"type": "string"}, "uniqueItems": False}, id="a demand for nothing"),
        pytest.param({"discriminator": {"propertyName": "t"}, "xml": {}, "externalDocs": {}}, id="of OpenAPI"),
    ],
)
def test_annotations_constrain_nothing(client: TestClient, decoder: FakeDecoder, route: str, words: Json) -> None:
    """Tools that have them are called as others."""
    decoder.next_token = repeating_token
    schema = {"type": "object", "properties": {"x": {"type": "string", **words}, "y": {"enum": [1]}}, "required": ["y"]}
    answer = ask(client, route, tools=[tool(route, parameters={**schema, **_notes(words)})], tool_choice="required")
    assert answer.calls[0][0] == "weather"


def _notes(words: Json) -> Json:
    """The words that may stand at the root of an object too."""
    return {key: value for key, value in words.items() if key not in ("type", "format", "items", "uniqueItems")}
