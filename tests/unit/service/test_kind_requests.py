"""Requests as real clients send them: what cannot change an answer is accepted, what is unknown is named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.api.generation import request_log
from service.schemas.field_rules import ACCEPTED, REFUSED
from tests.support.api_client import CHAT, COMPLETIONS, GENERATE, RESPONSES, ROUTES, Json, body_for, error_of
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app
from tests.support.kind_requests import (
    CALL,
    CALL_ITEM,
    CALLING,
    FUNCTION,
    KIND_ROWS,
    OTHER_TOOLS,
    RESULT,
    RESULT_ITEM,
    TOOL_LABELS,
    USER,
    KindRow,
)
from tests.support.requests import TOKENIZER

CONTEXT_TOKENS = 512
SCORED = "To be or not to be"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for the whole table."""
    app = fake_app(tmp_path_factory.mktemp("kind"), FakeDecoder())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def ignoring(tmp_path: Path) -> Iterator[TestClient]:
    """A service that ignores fields which nobody knows, and logs its requests."""
    app = fake_app(tmp_path, FakeDecoder(), unknown_fields="ignore", log_requests=True)
    with TestClient(app) as client:
        yield client


def said(answer: Any) -> tuple[Any, int]:
    """The text of an answer and the length of its prompt."""
    body = answer.json()
    usage = body["usage"]
    text = body.get("text") if "output" not in body else body["output"][0]["content"][0]["text"]
    if "choices" in body:
        choice = body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, usage.get("prompt_tokens", usage.get("input_tokens"))


@pytest.mark.parametrize("row", KIND_ROWS, ids=str)
def test_what_cannot_change_the_answer_does_not(client: TestClient, row: KindRow) -> None:
    """The odd request and the plain one get the same text after the same prompt."""
    odd = client.post(row.route, json={**body_for(row.route), **row.fields})
    assert odd.status_code == 200, f"{row.why} {odd.text}"
    plain = client.post(row.route, json={**body_for(row.route), **row.plain})
    assert said(odd) == said(plain), row.why


def test_every_kind_has_five_variants_and_a_reason() -> None:
    """The table is a table of kinds, not of examples."""
    kinds = {row.kind for row in KIND_ROWS} - {"tools that return nothing", "8.0 is an integer in responses"}
    for kind in kinds:
        assert len({row.variant for row in KIND_ROWS if row.kind == kind}) >= 5, kind
    assert all(row.why.endswith(".") for row in KIND_ROWS)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_change_the_answer_is_refused_with_the_reason(client: TestClient, route: str, name: str) -> None:
    """Unless the route has a field of that name."""
    from service.api_reference import request_bodies

    if name in request_bodies()[route].known_fields():
        return
    error = error_of(client.post(route, json={**body_for(route), name: "x"}))
    assert (error["code"], error["param"]) == ("unknown_field", name)
    assert REFUSED[name] in error["message"]


@pytest.mark.parametrize("name", sorted(name for name, accepted in ACCEPTED.items() if accepted.values))
def test_other_values_of_fields_without_effect_are_refused(client: TestClient, name: str) -> None:
    """What asks for something that does not happen is not ignored."""
    body = body_for(GENERATE, repetition_penalty=1.5) | {name: {"type": "enabled", "effort": "high"}}
    error = error_of(client.post(GENERATE, json=body))
    assert error["param"].split(".")[0] == name


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("temprature", "temperature"),
        ("maxTokens", "max_tokens"),
        ("topP", "top_p"),
        ("presencePenalty", "presence_penalty"),
        ("stop_token_id", "stop_token_ids"),
        ("prompt_cache_keys", "prompt_cache_key"),
        ("guided_regexp", "guided_regex"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(client: TestClient, misspelt: str, nearest: str) -> None:
    """Whoever misspells a field learns which one was meant."""
    error = error_of(client.post(GENERATE, json=body_for(GENERATE) | {misspelt: 1}))
    assert (error["param"], error["code"]) == (misspelt, "unknown_field")
    assert error["message"].endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize("route", [*ROUTES, "/tokenize", "/detokenize"])
def test_unknown_fields_may_be_ignored_by_a_setting(
    ignoring: TestClient, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named in a header, and in the request log where something is generated."""
    lines: list[str] = []
    monkeypatch.setattr(request_log, "handlers", [collecting(lines)])
    small: dict[str, Json] = {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}}
    body = small.get(route) or body_for(route)
    answer = ignoring.post(route, json={**body, "no_such_field": 1, "a b\n": {"c": []}})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-attend-ignored-fields"] == "no_such_field, a%20b%0A"
    assert [json.loads(line)["ignored_fields"] for line in lines] == ([["no_such_field", "a b\n"]] if lines else [])
    assert bool(lines) == route.startswith("/v1")
    assert "x-attend-ignored-fields" not in ignoring.post(route, json=body).headers


@pytest.mark.parametrize("name", ["web_search_options", "functions", "max_output_tokens", "suffix"])
def test_ignoring_unknown_fields_ignores_none_that_would_change_the_answer(ignoring: TestClient, name: str) -> None:
    """The setting is for what nobody knows."""
    assert ignoring.post(COMPLETIONS, json=body_for(COMPLETIONS) | {name: "x"}).status_code == 400


def test_ten_thousand_members_are_refused_at_once(client: TestClient) -> None:
    """An object with more members than any request has is not looked through."""
    body = body_for(CHAT) | {f"field_{number}": number for number in range(9_996)}
    assert "10000 members" in error_of(client.post(CHAT, json=body))["message"]


@pytest.mark.parametrize(("label", "value"), TOOL_LABELS, ids=str)
@pytest.mark.parametrize("shape", ["beside", "inside", "responses"])
def test_labels_of_tools_are_dropped(client: TestClient, shape: str, label: str, value: Any) -> None:
    """Wherever clients put them: they say nothing about how a tool is called."""
    make: dict[str, Callable[[Json], Json]] = {
        "beside": lambda labels: {"type": "function", "function": FUNCTION, **labels},
        "inside": lambda labels: {"type": "function", "function": {**FUNCTION, **labels}},
        "responses": lambda labels: {"type": "function", **FUNCTION, **labels},
    }
    route = RESPONSES if shape == "responses" else CHAT
    answer = client.post(route, json=body_for(route, tools=[make[shape]({label: value})]))
    assert answer.status_code == 200, answer.text
    assert said(answer) == said(client.post(route, json=body_for(route, tools=[make[shape]({})])))


@pytest.mark.parametrize("kind", OTHER_TOOLS)
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_tool_of_another_type_is_refused_by_its_type(client: TestClient, route: str, kind: str) -> None:
    """Not by a name that such a tool does not have."""
    error = error_of(client.post(route, json=body_for(route, tools=[{"type": kind, kind: {}}])))
    assert error["param"] == "tools.0.type"
    assert repr(kind) in error["message"]


TOOL: Json = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
FLAT_TOOL: Json = {"type": "function", **TOOL["function"]}


@pytest.mark.parametrize(
    ("choice", "tool"),
    [
        ("any", TOOL),
        ({"type": "any"}, FLAT_TOOL),
        ({"type": "required"}, TOOL),
        ({"type": "function", "name": "f"}, FLAT_TOOL),
        ({"type": "function", "function": {"name": "f"}}, {**TOOL, "x-mine": 1}),
        ({"function": {"name": "f"}}, {**TOOL, "version": "1"}),
        ({"name": "f"}, FLAT_TOOL),
    ],
)
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_tool_and_its_choice_have_many_shapes(client: TestClient, route: str, choice: Any, tool: Json) -> None:
    """Mistral's and Anthropic's words, and the shapes of the other of OpenAI's two APIs, are understood on both."""
    answer = client.post(route, json=body_for(route, max_tokens=120, tools=[tool], tool_choice=choice))
    assert answer.status_code == 200, answer.text
    calls = answer.json()["output"] if route == RESPONSES else answer.json()["choices"][0]["message"]["tool_calls"]
    assert (calls[0].get("function") or calls[0])["name"] == "f"


@pytest.mark.parametrize("parameters", [[], {}, None, {"type": "object"}, {"type": "object", "properties": []}])
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_tool_without_arguments_has_many_spellings(client: TestClient, route: str, parameters: Any) -> None:
    """MCP servers, SDKs and PHP write them; the call's arguments are an empty object."""
    tool = {"type": "function", "name": "f", "parameters": parameters}
    answer = client.post(route, json=body_for(route, max_tokens=120, tools=[tool], tool_choice={"name": "f"}))
    assert answer.status_code == 200, answer.text
    calls = answer.json()["output"] if route == RESPONSES else answer.json()["choices"][0]["message"]["tool_calls"]
    assert (calls[0].get("function") or calls[0])["arguments"] == "{}"


@pytest.mark.parametrize("kind", ["none", "auto"])
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_choice_may_be_an_object(client: TestClient, route: str, kind: str) -> None:
    """As Anthropic's clients have it."""
    tools = [FLAT_TOOL if route == RESPONSES else TOOL]
    odd = client.post(route, json=body_for(route, tools=tools, tool_choice={"type": kind}))
    assert said(odd) == said(client.post(route, json=body_for(route, tools=tools, tool_choice=kind)))


@pytest.mark.parametrize("result", [{"a": 1}, [{"a": 1}], True, 2.5, [1, 2], {"type": "x"}])
def test_a_result_that_is_json_is_its_text(client: TestClient, result: Any) -> None:
    """On both routes: the model reads what the function returned."""
    ask = body_for(CHAT, messages=[USER, CALLING, {**RESULT, "content": result}])
    plain = body_for(CHAT, messages=[USER, CALLING, {**RESULT, "content": json.dumps(result)}])
    assert said(client.post(CHAT, json=ask)) == said(client.post(CHAT, json=plain))


@pytest.mark.parametrize("depth", range(936, 962, 2))
@pytest.mark.parametrize(("begin", "end"), [('{"a":', "}"), ("[", "]")])
def test_deep_json_in_labels_results_and_ids_is_never_an_error_of_ours(
    client: TestClient, begin: str, end: str, depth: int
) -> None:
    """Just below the depth at which a body is not read at all, writing it again must not fail either."""
    bodies = [
        body_for(CHAT) | {"user": "@"},
        body_for(CHAT, messages=[USER, CALLING, {**RESULT, "content": "@"}]),
        body_for(CHAT, messages=[USER, {**CALLING, "tool_calls": [{**CALL, "id": "@"}]}, RESULT]),
        body_for(CHAT, messages=[USER, {**CALLING, "tool_calls": [{"name": "f", "args": "@"}]}, RESULT]),
    ]
    for body in bodies:
        content = json.dumps(body).replace('"@"', begin * depth + "1" + end * depth)
        answer = client.post(CHAT, content=content.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400)


@pytest.mark.parametrize("name", ["", None, "get weather", "f()", "Wetter_für", "$f", "@a/b", "x" * 200])
def test_a_call_of_the_history_may_have_any_name(client: TestClient, name: str | None) -> None:
    """Other models write them, and streams are cut."""
    call = {**CALL, "function": {"name": name, "arguments": "{"}}
    answer = client.post(CHAT, json=body_for(CHAT, messages=[USER, {**CALLING, "tool_calls": [call]}, RESULT]))
    assert answer.status_code == 200, answer.text
    item = {**CALL_ITEM, "name": name}
    assert client.post(RESPONSES, json=body_for(RESPONSES, input=[USER, item, RESULT_ITEM])).status_code == 200


SMALL: Json = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"schema": SMALL}},
        {"type": "json_schema", "json_schema": {"name": "My Answer", "schema": SMALL}},
        {"type": "json_schema", "json_schema": {"name": "List[int]", "schema": SMALL, "strict": None}},
        {"type": "json_object", "schema": SMALL},
        {"type": "json_schema", "json_schema": {"name": None, "schema": SMALL}},
    ],
)
def test_the_name_of_a_form_is_a_label(client: TestClient, form: Json) -> None:
    """And `json_object` may bring a schema, as llama.cpp's clients send it."""
    answer = client.post(CHAT, json=body_for(CHAT, max_tokens=40, response_format=form))
    assert answer.status_code == 200, answer.text
    assert json.loads(said(answer)[0])["a"] in (1, 2)


IN_TEXT = json.dumps(SMALL)


@pytest.mark.parametrize("fields", [{"guided_json": IN_TEXT}, {"structured_outputs": {"json": IN_TEXT}}])
def test_a_schema_may_be_text(client: TestClient, fields: Json) -> None:
    """As vLLM takes it."""
    answer = client.post(GENERATE, json=body_for(GENERATE, max_tokens=40) | fields)
    assert json.loads(said(answer)[0])["a"] in (1, 2)


def test_half_a_character_in_a_label_is_replaced(ignoring: TestClient) -> None:
    """JSON can spell it, the log cannot."""
    body = json.dumps(body_for(GENERATE, user="a\ud800b"))
    headers = {"Content-Type": "application/json"}
    assert ignoring.post(GENERATE, content=body.encode(), headers=headers).status_code == 200


@pytest.mark.parametrize("is_added", [True, False])
def test_special_tokens_are_added_where_they_belong(client: TestClient, is_added: bool) -> None:
    """Asking for what happens is fine, asking for the contrary is refused: by the tokenizer, or by the template."""
    prompt = client.post(COMPLETIONS, json=body_for(COMPLETIONS, add_special_tokens=is_added))
    chat = client.post(CHAT, json=body_for(CHAT, add_special_tokens=is_added))
    assert (prompt.status_code, chat.status_code) == ((200, 400) if is_added else (400, 200))


def test_tokenize_shows_a_continued_conversation(client: TestClient) -> None:
    """The tokens that such an answer gets."""
    messages = [USER, {"role": "assistant", "content": "I am"}]
    body = {"messages": messages, "continue_final_message": True}
    shown = client.post("/tokenize", json=body).json()["count"]
    answer = client.post(CHAT, json=body_for(CHAT, messages=messages, continue_final_message=True))
    assert shown == said(answer)[1]


@pytest.mark.parametrize("limit", [-1, -1.0, None])
@pytest.mark.parametrize("route", ROUTES)
def test_minus_one_is_no_limit(client: TestClient, route: str, limit: float | None) -> None:
    """An answer goes on to the end of the context, as other servers read it; null is the route's default."""
    name = "max_output_tokens" if route == RESPONSES else "max_tokens"
    body = body_for(route, ignore_eos=True) | {name: limit}
    usage = client.post(route, json=body).json()["usage"]
    default = {COMPLETIONS: 16, GENERATE: 128}.get(route) if limit is None else None
    completion = usage.get("completion_tokens", usage.get("output_tokens"))
    assert completion == (default or CONTEXT_TOKENS - usage["total_tokens"] + completion)


@pytest.mark.parametrize("route", ROUTES)
def test_a_seed_of_minus_one_is_no_seed(client: TestClient, route: str) -> None:
    """Two such answers differ, as without a seed; two with the seed -2 are equal."""
    sampled = {**body_for(route, seed=-1), "temperature": 2}
    assert said(client.post(route, json=sampled)) != said(client.post(route, json=sampled))
    seeded = {**sampled, "seed": -2}
    assert said(client.post(route, json=seeded)) == said(client.post(route, json=seeded))


@pytest.mark.parametrize("prompt", [SCORED, TOKENIZER.encode(SCORED), [SCORED, "a"], [float(i) for i in b"abc"]])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_prompt_is_scored_without_an_answer(client: TestClient, prompt: Any, is_streamed: bool) -> None:
    """`echo` with `max_tokens` 0 returns the prompt and its log-probabilities, those of a request that generates."""
    body = body_for(COMPLETIONS, prompt=prompt, echo=True, logprobs=1)
    scored = choices_of(client, {**body, "max_tokens": 0, "stream": is_streamed})
    answered = choices_of(client, {**body, "max_tokens": 1, "stream": False})
    for choice, longer in zip(scored["choices"], answered["choices"], strict=True):
        columns = choice["logprobs"]
        assert len(columns["tokens"]) == len(columns["text_offset"]) > 0
        assert columns == {name: values[: len(columns["tokens"])] for name, values in longer["logprobs"].items()}
        assert len(columns["tokens"]) == len(longer["logprobs"]["tokens"]) - 1
        assert choice["finish_reason"] == "length"
    assert scored["usage"]["completion_tokens"] == 0
    assert scored["usage"]["prompt_tokens"] == answered["usage"]["prompt_tokens"]


def choices_of(client: TestClient, body: Json) -> Json:
    """The whole answer of a completion, streamed or not."""
    from tests.support.api_client import events_of, folded_completion

    if not body["stream"]:
        return dict(client.post(COMPLETIONS, json=body).json())
    response = client.post(COMPLETIONS, json={**body, "stream_options": {"include_usage": True}})
    return folded_completion(events_of(response))


def collecting(lines: list[str]) -> Any:
    """A handler of a log that keeps its lines."""
    import logging

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    return Collector()
