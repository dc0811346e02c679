"""POST /v1/chat/completions, claim by claim; and the small routes beside it."""

import asyncio
import json
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from service.api import streaming
from tests.support.api_client import CHAT, Json, body_for, error_of, events_of, folded_chat
from tests.support.fake_decoder import FakeDecoder, GatedDecoder, expected_tokens
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.spelling import says
from tests.support.tiny_checkpoint import CHAT_TEMPLATE

PROMPT = "<user>hi\n<assistant>"
CITY = {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}, "required": ["x"], "additionalProperties": False}
ONLY = {"type": "object", "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": ONLY}} for name in ("f", "g")]
TOOL_TEMPLATE = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}" + CHAT_TEMPLATE
SCHEMAS: list[Json] = [
    CITY,
    {"type": "integer"},
    {"type": "array", "items": {"enum": [1, "🙂", None]}, "minItems": 1, "maxItems": 3},
    {"type": "object", "properties": {"s": {"type": "string", "maxLength": 8}}, "additionalProperties": False},
    {"anyOf": [{"const": "漢字"}, {"type": "boolean"}]},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {
        "$ref": "#/$defs/pair",
        "$defs": {"pair": {"type": "array", "prefixItems": [{"type": "boolean"}], "items": False}},
    },
]


@pytest.fixture
def decoder() -> FakeDecoder:
    """The decoder behind the client."""
    return FakeDecoder()


@pytest.fixture
def client(tmp_path: Path, decoder: FakeDecoder) -> Iterator[TestClient]:
    """A client of the whole app, whose model's template knows tools."""
    with TestClient(fake_app(tmp_path, decoder, chat_template=TOOL_TEMPLATE)) as client:
        yield client


def answer_to(prompt: str, count: int = 8) -> str:
    """What the fake model says after a rendered prompt."""
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), count))


def ask(client: TestClient, **fields: Any) -> Json:
    """An answer's body."""
    response = client.post(CHAT, json=body_for(CHAT, **fields))
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return dict(response.json())


def stream(client: TestClient, **fields: Any) -> list[Json]:
    """A stream's chunks."""
    chunks = events_of(client.post(CHAT, json=body_for(CHAT, stream=True, **fields)))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    return chunks


def content(body: Json, index: int = 0) -> Any:
    """The text of an answer."""
    return body["choices"][index]["message"]["content"]


def calls(body: Json) -> list[tuple[str, Any]]:
    """Names and arguments of an answer's calls."""
    found = body["choices"][0]["message"].get("tool_calls") or ()
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


def test_choices_differ_and_the_first_is_that_of_one_choice(client: TestClient) -> None:
    """The seed of choice 0 is the request's own; the others follow from it, and repeat."""
    sampled = {"temperature": 1, "seed": 11}
    several, again, one = ask(client, n=4, **sampled), ask(client, n=4, **sampled), ask(client, **sampled)
    texts = [content(several, index) for index in range(4)]
    assert len(set(texts)) == 4
    assert texts[0] == content(one)
    assert several["choices"] == again["choices"]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]


def test_the_prompt_of_several_choices_is_computed_and_counted_once(client: TestClient, decoder: FakeDecoder) -> None:
    """However many answers follow it."""
    usage = ask(client, n=4, prompt="x" * 40, temperature=1, seed=1, ignore_eos=True)["usage"]
    num_prompt = len("<user>\n<assistant>") + 40
    assert sum(decoder.chunks) == num_prompt
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num_prompt, 32)


def test_developer_is_a_name_of_system(client: TestClient) -> None:
    """Both are rendered as the template's system message."""
    texts = {
        content(ask(client, messages=[{"role": role, "content": "Be brief."}, {"role": "user", "content": "hi"}]))
        for role in ("system", "developer")
    }
    assert texts == {answer_to("<system>Be brief.\n<user>hi\n<assistant>")}


def test_parts_of_a_message_are_joined(client: TestClient) -> None:
    """With nothing between them."""
    parts = [{"type": "text", "text": text} for text in ("a", "", " b\n", "漢")]
    assert content(ask(client, messages=[{"role": "user", "content": parts}])) == answer_to(
        "<user>a b\n漢\n<assistant>"
    )


def test_the_final_message_is_continued_where_it_ends(client: TestClient) -> None:
    """No new turn is opened, and the white space behind it is not kept."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am "}]
    assert content(ask(client, messages=turns, continue_final_message=True)) == answer_to("<user>hi\n<assistant>I am")


def test_without_a_generation_prompt_the_answers_turn_stays_closed(client: TestClient) -> None:
    """As templates without `add_generation_prompt`."""
    assert content(ask(client, add_generation_prompt=False)) == answer_to("<user>hi\n")


def test_the_first_chunk_opens_the_answer_and_the_last_ends_it(client: TestClient) -> None:
    """Role first, finish reason last, and no usage unless it is asked for."""
    chunks = stream(client)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert not any("usage" in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_usage_comes_at_the_end_or_with_every_chunk(client: TestClient) -> None:
    """include_usage: null until the last chunk; continuous_usage_stats: counts that grow."""
    *others, last = stream(client, stream_options={"include_usage": True})
    assert {chunk["usage"] for chunk in others} == {None}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 8)
    _, *counted = stream(client, stream_options={"continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in counted]
    assert counts == sorted(counts)
    assert (counts[-1], counted[-1]["choices"][0]["finish_reason"]) == (8, "length")


def test_logprobs_describe_the_tokens_of_the_text(client: TestClient, decoder: FakeDecoder) -> None:
    """Their bytes joined are the text's; alternatives come likeliest first."""
    decoder.next_token = says("é🙂!")
    body = ask(client, logprobs=True, top_logprobs=2, max_tokens=7)
    entries = body["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == content(body) == "é🙂!"
    for entry in entries:
        best, other = entry["top_logprobs"]
        assert {name: best[name] for name in best} == {name: entry[name] for name in best}
        assert other["logprob"] < entry["logprob"] < 0
    assert ask(client)["choices"][0]["logprobs"] is None


def test_prompt_logprobs_have_an_entry_for_each_token_but_the_first(client: TestClient) -> None:
    """By token id, with the token's own among them."""
    body = ask(client, prompt_logprobs=1)
    first, *others = body["choices"][0]["prompt_logprobs"]
    ids = TOKENIZER.encode(PROMPT)
    assert first is None
    assert len(others) == len(ids) - 1
    assert all(str(token_id) in entry for token_id, entry in zip(ids[1:], others, strict=True))


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_answers_fit_their_schema(client: TestClient, schema: Json) -> None:
    """Whatever the model wants to say: at temperature 1 the fake wants anything."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(8):
        body = ask(client, response_format=form, temperature=1, seed=seed, max_tokens=300)
        assert body["choices"][0]["finish_reason"] == "stop"
        jsonschema.validate(json.loads(content(body)), schema)


def test_json_object_answers_are_objects(client: TestClient, decoder: FakeDecoder) -> None:
    """What the model says beside the object is not chosen."""
    decoder.next_token = says('{"a": [1, {"b": null}]}, and so on')
    body = ask(client, response_format={"type": "json_object"}, max_tokens=100)
    assert json.loads(content(body)) == {"a": [1, {"b": None}]}
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"f", "g"}), ({"type": "function", "function": {"name": "g"}}, {"g"})]
)
def test_a_required_call_is_made_whatever_the_model_wants(client: TestClient, choice: Any, names: set[str]) -> None:
    """Any function, or the one that is named; its arguments fit; content is null."""
    called = set()
    for seed in range(6):
        fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "temperature": 1, "seed": seed}
        body = ask(client, **fields, max_tokens=80)
        ((name, arguments),) = calls(body)
        assert (arguments, content(body), body["choices"][0]["finish_reason"]) == ({}, None, "tool_calls")
        called.add(name)
    assert called == names


def test_a_named_function_is_the_only_one_that_the_prompt_describes(client: TestClient) -> None:
    """What cannot be called takes no tokens."""
    lengths = {}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        body = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=80)
        lengths[isinstance(choice, str)] = body["usage"]["prompt_tokens"]
    alone = ask(client, tools=TOOLS[:1], tool_choice="required", max_tokens=80)["usage"]["prompt_tokens"]
    assert lengths[False] == alone < lengths[True]


SAID = "Let me see.\n" + "\n".join(
    f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in ("g", "f")
)


def test_a_model_may_call_and_may_not(client: TestClient, decoder: FakeDecoder) -> None:
    """tool_choice auto, which is also the default with tools."""
    for choice in ({}, {"tool_choice": "auto"}):
        decoder.next_token = says(SAID)
        body = ask(client, tools=TOOLS, max_tokens=128, **choice)
        assert (content(body), calls(body)) == ("Let me see.", [("g", {}), ("f", {})])
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        assert len({call["id"] for call in body["choices"][0]["message"]["tool_calls"]}) == 2
        decoder.next_token = says("No need.")
        body = ask(client, tools=TOOLS, max_tokens=128, **choice)
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "No need.", "refusal": None}
        assert body["choices"][0]["finish_reason"] == "stop"


def test_an_answer_with_calls_may_be_sent_back_as_it_was(client: TestClient, decoder: FakeDecoder) -> None:
    """With its nulls; the results of its calls follow, and the prompt has them all."""
    decoder.next_token = says(SAID)
    message = ask(client, tools=TOOLS, max_tokens=128)["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "done"} for call in message["tool_calls"]]
    decoder.next_token = says("Fine.")
    messages = [{"role": "user", "content": "hi"}, message, *results]
    body = ask(client, messages=messages, tools=TOOLS, max_tokens=20)
    assert content(body) == "Fine."
    rendered = "f;g;<user>hi\n<assistant>Let me see.\n<tool>done\n<tool>done\n<assistant>"
    assert body["usage"]["prompt_tokens"] == len(rendered)
    silent = {**message, "content": None}
    assert ask(client, messages=[*messages[:1], silent, *results], tools=TOOLS, max_tokens=20)["usage"]["prompt_tokens"]


def test_without_parallel_calls_the_first_call_ends_the_answer(client: TestClient, decoder: FakeDecoder) -> None:
    """Whatever the model would go on to call."""
    decoder.next_token = says(SAID)
    assert calls(ask(client, tools=TOOLS, parallel_tool_calls=False, max_tokens=128)) == [("g", {})]


def test_calls_are_streamed_name_first(client: TestClient, decoder: FakeDecoder) -> None:
    """Id, type and name in a call's first chunk, then its arguments; folded, the unstreamed answer."""
    decoder.next_token = says(SAID)
    chunks = stream(client, tools=TOOLS, max_tokens=128)
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    openings = [part for part in parts if "id" in part]
    assert [(part["index"], part["type"], part["function"]) for part in openings] == [
        (index, "function", {"name": name, "arguments": ""}) for index, name in enumerate("gf")
    ]
    assert calls(folded_chat(chunks)) == [("g", {}), ("f", {})]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_that_max_tokens_cuts_has_finish_reason_length(client: TestClient) -> None:
    """Its arguments so far are told."""
    tool = {"type": "function", "function": {"name": "f", "parameters": CITY}}
    body = ask(client, tools=[tool], tool_choice="required", max_tokens=42)
    assert body["choices"][0]["finish_reason"] == "length"
    (call,) = body["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"x'}


def test_only_tools_that_may_be_called_are_in_the_prompt(client: TestClient) -> None:
    """All of them for a free choice; the template says how."""
    for choice in ({}, {"tool_choice": "required"}):
        usage = ask(client, tools=TOOLS, **choice)["usage"]
        assert usage["prompt_tokens"] == len("f;g;" + PROMPT)


def test_tool_choice_none_hides_the_tools(client: TestClient) -> None:
    """The prompt is that of a request without tools, and so is the answer."""
    assert content(ask(client, tools=TOOLS, tool_choice="none")) == content(ask(client)) == answer_to(PROMPT)


def test_tokenize_and_detokenize_are_inverse(client: TestClient) -> None:
    """For text and for conversations; token texts on demand."""
    body = client.post("/tokenize", json={"prompt": "é🙂<|end|>", "return_token_strs": True}).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) == 7
    assert body["token_strs"][-1] == "<|end|>"
    assert body["max_model_len"] == 512
    assert client.post("/detokenize", json={"tokens": body["tokens"]}).json() == {"prompt": "é🙂<|end|>"}
    skipping = {"tokens": body["tokens"], "skip_special_tokens": True}
    assert client.post("/detokenize", json=skipping).json() == {"prompt": "é🙂"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert client.post("/detokenize", json={"tokens": chat["tokens"]}).json() == {"prompt": PROMPT}
    assert "token_strs" not in chat


def test_embeddings_say_that_there_are_none(client: TestClient) -> None:
    """404 with a code, whatever is sent."""
    response = client.post("/v1/embeddings", json={"model": "fake", "input": "hi"})
    assert (response.status_code, error_of(response)["code"]) == (404, "no_embedder")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_deadline_that_passes_ends_the_request(tmp_path: Path, is_streamed: bool) -> None:
    """408 with a code, or the same error as a stream's last event."""
    decoder = GatedDecoder()
    body = body_for(CHAT, deadline_ms=1, max_tokens=400, stream=is_streamed)
    with TestClient(fake_app(tmp_path, decoder)) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, CHAT, json=body)
        decoder.gate.set()
        response = answer.result(20)
    if is_streamed:
        *_, last, empty = response.text.split("\n\n")
        assert (json.loads(last.removeprefix("data: "))["error"]["code"], empty) == ("deadline", "")
    else:
        assert (response.status_code, error_of(response)["code"]) == (408, "deadline")


def test_a_silent_stream_sends_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that proxies keep the connection; the answer then goes on as if nothing had been sent."""
    monkeypatch.setattr(streaming, "SILENCE_S", 0.01)
    decoder = GatedDecoder()
    app = fake_app(tmp_path, decoder)
    messages = [{"type": "http.request", "body": json.dumps(body_for(CHAT, stream=True)).encode()}]
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if b": keep-alive\n\n" in sent[-1]:
            decoder.gate.set()

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            await app(scope(CHAT), receive, send)

    asyncio.run(scenario())
    parts = b"".join(sent).split(b"\n\n")
    assert b": keep-alive" in parts
    payloads = [json.loads(part[6:]) for part in parts if part.startswith(b"data: {")]
    assert content(folded_chat(payloads)) == answer_to(PROMPT)


def scope(path: str) -> dict[str, Any]:
    """An HTTP request as ASGI has it."""
    headers = [(b"content-type", b"application/json")]
    common = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "query_string": b""}
    return {**common, "method": "POST", "path": path, "headers": headers}
