"""POST /v1/responses, claim by claim."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.api_client import CHAT, RESPONSES, Json, body_for, error_of, named_events_of
from tests.support.fake_decoder import FakeDecoder, GatedDecoder, expected_tokens
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.spelling import says
from tests.support.tiny_checkpoint import CHAT_TEMPLATE

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for m in messages %}{% for call in m.tool_calls or [] %}"
    "[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}" + CHAT_TEMPLATE
)
SCHEMA = {"type": "object", "properties": {"x": {"enum": ["a", "é"]}}, "required": ["x"], "additionalProperties": False}
TOOLS = [{"type": "function", "name": name, "parameters": SCHEMA} for name in ("f", "g")]
CALLS = [f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": "é"}}}}\n</tool_call>' for name in "gf"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TEXT_EVENTS = ["output_item.added", "content_part.added", "output_text.delta"]
TEXT_ENDS = ["output_text.done", "content_part.done", "output_item.done"]


@pytest.fixture
def decoder() -> FakeDecoder:
    """The decoder behind the client."""
    return FakeDecoder()


@pytest.fixture
def client(tmp_path: Path, decoder: FakeDecoder) -> Iterator[TestClient]:
    """A client of the whole app, whose model's template knows tools."""
    with TestClient(fake_app(tmp_path, decoder, chat_template=TOOL_TEMPLATE)) as client:
        yield client


def ask(client: TestClient, **fields: Any) -> Json:
    """An answer's body, which OpenAI's client can read."""
    response = client.post(RESPONSES, json=body_for(RESPONSES, **fields))
    assert response.status_code == 200, response.text
    Response.model_validate(response.json())
    return dict(response.json())


def stream(client: TestClient, **fields: Any) -> list[Json]:
    """A stream's events, each of which OpenAI's client can read."""
    events = named_events_of(client.post(RESPONSES, json=body_for(RESPONSES, stream=True, **fields)))
    for event in events:
        EVENT.validate_python(event)
    return events


def kinds(events: list[Json]) -> list[str]:
    """The events' types, repetitions left out."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def text(body: Json) -> Any:
    """The text of an answer of one message."""
    (item,) = body["output"]
    (part,) = item["content"]
    return part["text"]


def answer_to(prompt: str, count: int = 8) -> str:
    """What the fake model says after a rendered prompt."""
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), count))


def test_an_answer_is_a_message_of_one_text(client: TestClient, decoder: FakeDecoder) -> None:
    """Completed where the model ended, with what was asked for and what it took."""
    decoder.next_token = says("Hello é")
    body = ask(client, max_tokens=20, user="Ada")
    (item,) = body["output"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "Hello é", "annotations": [], "logprobs": []}]
    assert body["id"].startswith("resp-")
    assert (body["object"], body["status"], body["incomplete_details"]) == ("response", "completed", None)
    assert (body["max_output_tokens"], body["temperature"], body["user"], body["store"]) == (20, 0, "Ada", False)
    assert body["usage"] == {
        "input_tokens": len("<user>hi\n<assistant>"),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len("<user>hi\n<assistant>") + 9,
    }


def test_an_answer_cut_by_max_output_tokens_is_incomplete(client: TestClient) -> None:
    """With the reason, unstreamed and as a stream's last event."""
    body = ask(client)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["usage"]["output_tokens"] == 8
    last = stream(client)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


def test_without_max_output_tokens_the_context_is_the_limit(client: TestClient) -> None:
    """As for chats."""
    body = ask(client, max_output_tokens=None)
    assert (body["usage"]["total_tokens"], body["status"]) == (512, "incomplete")


def test_instructions_are_a_system_message_in_front(client: TestClient) -> None:
    """Also before a conversation."""
    assert text(ask(client, instructions="Be brief.")) == answer_to("<system>Be brief.\n<user>hi\n<assistant>")
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    expected = answer_to("<system>Be.\n<user>a\n<assistant>b\n<user>c\n<assistant>")
    assert text(ask(client, instructions="Be.", input=items)) == expected


@pytest.mark.parametrize("role", ["system", "developer"])
def test_input_items_may_name_their_type_and_have_parts(client: TestClient, role: str) -> None:
    """All spellings of the same conversation give the same prompt."""
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    items = [{"type": "message", "role": role, "content": "Be."}, {"role": "user", "content": parts}]
    assert text(ask(client, input=items)) == answer_to("<system>Be.\n<user>ab\n<assistant>")


def test_an_earlier_answer_may_be_sent_back_as_it_was(client: TestClient, decoder: FakeDecoder) -> None:
    """Its items, with their ids and states, are the conversation so far."""
    decoder.next_token = says("Hello.")
    output = ask(client, max_tokens=20)["output"]
    decoder.next_token = says("Yes?", begin="<user>really\n<assistant>")
    items = [{"role": "user", "content": "hi"}, *output, {"role": "user", "content": "really"}]
    body = ask(client, input=items, max_tokens=20)
    assert text(body) == "Yes?"
    assert body["usage"]["input_tokens"] == len("<user>hi\n<assistant>Hello.\n<user>really\n<assistant>")


def test_calls_and_their_results_go_back_into_the_prompt(client: TestClient, decoder: FakeDecoder) -> None:
    """A call belongs to the assistant's message before it; its result is the tool's."""
    decoder.next_token = says("".join(["Let me see.\n", CALLS[0]]))
    output = ask(client, tools=TOOLS, max_tokens=100)["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "sunny"}
    decoder.next_token = says("It is sunny.")
    body = ask(client, input=[{"role": "user", "content": "hi"}, *output, result], tools=TOOLS, max_tokens=30)
    rendered = 'f;g;[g {"x": "é"}]<user>hi\n<assistant>Let me see.\n<tool>sunny\n<assistant>'
    assert body["usage"]["input_tokens"] == len(TOKENIZER.encode(rendered))
    assert text(body) == "It is sunny."


def test_a_call_without_a_message_before_it_is_a_message_of_its_own(client: TestClient) -> None:
    """Several calls in a row are one message's, and the items need no ids."""
    calls = [{"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(2)]
    results = [{"type": "function_call_output", "call_id": f"c{n}", "output": str(n)} for n in range(2)]
    body = ask(client, input=[{"role": "user", "content": "hi"}, *calls, *results])
    rendered = "[f {}][f {}]<user>hi\n<assistant>\n<tool>0\n<tool>1\n<assistant>"
    assert body["usage"]["input_tokens"] == len(rendered)


@pytest.mark.parametrize(("choice", "names"), [("required", {"f", "g"}), ({"type": "function", "name": "g"}, {"g"})])
def test_a_required_call_is_made_whatever_the_model_wants(client: TestClient, choice: Any, names: set[str]) -> None:
    """Any function, or the one that is named; its arguments fit."""
    called = set()
    for seed in range(6):
        fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1, "seed": seed}
        body = ask(client, **fields, max_tokens=80)
        (item,) = body["output"]
        assert (item["type"], item["status"], body["status"]) == ("function_call", "completed", "completed")
        assert item["id"].startswith("fc_")
        assert item["call_id"].startswith("call_")
        jsonschema.validate(json.loads(item["arguments"]), SCHEMA)
        called.add(item["name"])
    assert called == names


def test_a_named_choice_shows_that_function_only(client: TestClient) -> None:
    """And none shows none; the answer repeats what was asked for."""
    named = ask(client, tools=TOOLS, tool_choice={"type": "function", "name": "g"})
    assert named["usage"]["input_tokens"] == len("g;<user>hi\n<assistant>")
    assert named["tool_choice"] == {"type": "function", "name": "g"}
    assert [tool["name"] for tool in named["tools"]] == ["f", "g"]
    none = ask(client, tools=TOOLS, tool_choice="none")
    assert none["usage"]["input_tokens"] == len("<user>hi\n<assistant>")
    assert text(none) == answer_to("<user>hi\n<assistant>")


def test_the_events_of_a_text(client: TestClient, decoder: FakeDecoder) -> None:
    """Opened, told piece by piece, closed from the inside out; there is no [DONE]."""
    decoder.next_token = says("Hello é🙂")
    events = stream(client, max_tokens=30)
    assert kinds(events) == ["created", "in_progress", *TEXT_EVENTS, *TEXT_ENDS, "completed"]
    assert "".join(event.get("delta", "") for event in events) == "Hello é🙂"
    opened = events[0]["response"]
    assert (opened["status"], opened["output"], opened["usage"]) == ("in_progress", [], None)
    assert events[-1]["response"]["usage"] == ask(client, max_tokens=30)["usage"]


def test_the_events_of_a_text_and_two_calls(client: TestClient, decoder: FakeDecoder) -> None:
    """Each item is closed before the next one opens."""
    decoder.next_token = says("Ok.\n" + "\n".join(CALLS))
    events = stream(client, tools=TOOLS, max_tokens=300)
    one_call = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert kinds(events) == ["created", "in_progress", *TEXT_EVENTS, *TEXT_ENDS, *one_call, *one_call, "completed"]
    output = events[-1]["response"]["output"]
    assert output[0]["content"][0]["text"] == "Ok."
    assert [(item["name"], json.loads(item["arguments"])) for item in output[1:]] == [
        ("g", {"x": "é"}),
        ("f", {"x": "é"}),
    ]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["item_id"]) for event in done] == [(item["name"], item["id"]) for item in output[1:]]


def test_an_answer_that_says_nothing_is_an_empty_message(client: TestClient, decoder: FakeDecoder) -> None:
    """Clients find a message, and a stream opens and closes it."""
    decoder.next_token = says("")
    assert text(ask(client)) == ""
    events = stream(client)
    assert kinds(events) == ["created", "in_progress", *TEXT_EVENTS[:2], *TEXT_ENDS, "completed"]


def test_answers_fit_their_format(client: TestClient, decoder: FakeDecoder) -> None:
    """A schema at any temperature, or any object; the answer repeats the format as it was given."""
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    for seed in range(6):
        body = ask(client, text={"format": form}, temperature=1, seed=seed, max_tokens=100)
        assert body["status"] == "completed"
        jsonschema.validate(json.loads(text(body)), SCHEMA)
        assert body["text"] == {"format": form}
    decoder.next_token = says('{"a": [1]}, and so on')
    assert json.loads(text(ask(client, text={"format": {"type": "json_object"}}, max_tokens=50))) == {"a": [1]}


def test_the_same_conversation_is_answered_as_in_a_chat(client: TestClient) -> None:
    """Same prompt, same seed: same text."""
    chat = client.post(CHAT, json=body_for(CHAT, temperature=1, seed=9, max_tokens=20)).json()
    assert text(ask(client, temperature=1, seed=9, max_tokens=20)) == chat["choices"][0]["message"]["content"]


def test_a_stream_that_fails_ends_with_an_error_event(client: TestClient, decoder: FakeDecoder) -> None:
    """200 has been sent; the error is the last event, and nothing says that the answer was completed."""
    decoder.fail_at_call = 4
    response = client.post(RESPONSES, json=body_for(RESPONSES, stream=True))
    *_, before, last, empty = response.text.split("\n\n")
    name, data = last.split("\n")
    assert (name, empty) == ("event: error", "")
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["code"]) == ("error", "engine_failed")
    assert "injected" not in response.text
    assert "response.completed" not in before


def test_a_model_without_a_template_names_the_routes_own_field(tmp_path: Path) -> None:
    """It is the input that cannot be used."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), chat_template=None)) as client:
        error = error_of(client.post(RESPONSES, json=body_for(RESPONSES)))
    assert (error["param"], error["code"]) == ("input", "no_chat_template")


def test_a_deadline_that_passes_ends_the_request(tmp_path: Path) -> None:
    """408 with a code, as on the other routes."""
    decoder = GatedDecoder()
    with TestClient(fake_app(tmp_path, decoder)) as client, ThreadPoolExecutor(1) as pool:
        body = body_for(RESPONSES, deadline_ms=1, max_output_tokens=400)
        answer = pool.submit(client.post, RESPONSES, json=body)
        decoder.gate.set()
        response = answer.result(20)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "deadline")
