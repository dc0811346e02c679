"""Every field that is accepted changes something that can be seen; fields with one neutral value refuse the others."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi.testclient import TestClient

from model.tokenizer import Tokenizer
from service.api.generation import request_log
from service.engine.request import Request
from service.schemas.base import WireModel
from service.schemas.chat import ChatCompletionRequest
from service.schemas.completions import CompletionRequest
from service.schemas.generation import StreamOptions, StructuredOutputs
from service.schemas.native import GenerateRequest
from service.schemas.responses import ResponsesRequest
from tests.support.api_client import CHAT, COMPLETIONS, GENERATE, RESPONSES, Json, body_for, error_of
from tests.support.fake_decoder import END_ID, FakeDecoder, expected_tokens
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.tiny_checkpoint import END_TOKEN

MODELS: dict[str, type[WireModel]] = {
    COMPLETIONS: CompletionRequest,
    CHAT: ChatCompletionRequest,
    GENERATE: GenerateRequest,
    RESPONSES: ResponsesRequest,
}
SAMPLED = {"temperature": 1, "seed": 3}
LETTER_A, LETTER_B = TOKENIZER.encode("ab")
ONLY_A = {"allowed_token_ids": [LETTER_A]}
ONLY_END = {"allowed_token_ids": [END_ID]}
PARAMETERS = {"type": "object", "additionalProperties": False}
FUNCTION = {"name": "f", "parameters": PARAMETERS}
CHAT_TOOLS = {"tools": [{"type": "function", "function": FUNCTION}], "max_tokens": 120}
FLAT_TOOLS = {"tools": [{"type": "function", **FUNCTION}], "max_output_tokens": 120}


@dataclass
class Answer:
    """All that a request leaves behind."""

    status: int
    content: str
    media_type: str
    submitted: list[Request] = field(default_factory=list)
    log: list[Json] = field(default_factory=list)

    @property
    def body(self) -> Json:
        """The answer, or the last event of a stream that has more than a mark."""
        if self.media_type == "application/json":
            return dict(json.loads(self.content))
        return dict(json.loads(self.content.removesuffix("data: [DONE]\n\n").rsplit("data: ", 1)[1]))

    @property
    def choices(self) -> list[Json]:
        """The answers, of any route."""
        return list(self.body.get("choices") or self.body.get("output") or [self.body])


What = Callable[[Answer], Any]


def text(answer: Answer) -> Any:
    """What the model said."""
    first = answer.choices[0]
    if "content" in first:
        return first["content"][0]["text"]
    return first["message"]["content"] if "message" in first else first.get("text")


def status(answer: Answer) -> int:
    return answer.status


def media_type(answer: Answer) -> str:
    return answer.media_type


def num_choices(answer: Answer) -> int:
    return len(answer.choices)


def prompt_tokens(answer: Answer) -> int:
    return answer.submitted[0].num_prompt_tokens


def completion_tokens(answer: Answer) -> int:
    return sum(request.num_generated for request in answer.submitted)


def cached_tokens(answer: Answer) -> int:
    usage = answer.body["usage"]
    return int((usage.get("prompt_tokens_details") or usage["input_tokens_details"])["cached_tokens"])


def user_in_log(answer: Answer) -> Any:
    return [line["user"] for line in answer.log]


def prompt_text(answer: Answer) -> str:
    return TOKENIZER.decode(answer.submitted[0].prompt_ids, skip_special_tokens=False)


def num_calls(answer: Answer) -> int:
    called = [item for item in answer.choices if item.get("type") == "function_call"]
    return len(called) or len(answer.choices[0].get("message", {}).get("tool_calls") or ())


def has_usage_chunks(answer: Answer) -> int:
    return answer.content.count('"usage":{')


def metadata(answer: Answer) -> Any:
    return answer.body["metadata"]


def has_progress(answer: Answer) -> bool:
    return '"progress"' in answer.content


def logprobs(answer: Answer) -> Any:
    return answer.choices[0].get("logprobs")


def prompt_logprobs(answer: Answer) -> Any:
    return answer.body.get("prompt_logprobs", answer.choices[0].get("prompt_logprobs"))


def of_request(name: str) -> What:
    """A property of what the engine was given."""

    def what(answer: Answer) -> Any:
        value = getattr(answer.submitted[0], name)
        return type(value) if name == "speculation" else value is None if name == "deadline_s" else value

    return what


@dataclass(frozen=True)
class Row:
    """A field, what the request has beside it, its value, and what that changes."""

    field: str
    base: Json
    value: Any
    what: What

    def __str__(self) -> str:
        return self.field


def repeating(route: str) -> str:
    """A prompt that has the token which follows it, for the penalty on repeating the prompt."""
    around = ("<user>", "\n<assistant>") if route in (CHAT, RESPONSES) else ("", "")
    for number in itertools.count():
        ids = TOKENIZER.encode(f"{around[0]}say {number} and so on{around[1]}")
        if expected_tokens(ids, 1)[0] in ids:
            return f"say {number} and so on"
    raise AssertionError


def engine_rows(route: str) -> list[Row]:
    """The fields that every route has."""
    repeats = {**body_for(route, repeating(route)), **SAMPLED}
    return [
        Row("model", {}, "other", status),
        Row("temperature", SAMPLED, 0, text),
        Row("top_p", SAMPLED, 0.001, text),
        Row("top_k", SAMPLED, 1, text),
        Row("min_p", SAMPLED, 1, text),
        Row("seed", SAMPLED, 4, text),
        Row("stream", {}, True, media_type),
        Row("user", {}, "Ada", user_in_log),
        Row("safety_identifier", {}, "Ada", user_in_log),
        Row("safety_identifier", {}, "Ada", user_in_log),
        Row("repetition_penalty", repeats, 0.01, text),
        Row("stop_token_ids", ONLY_A, [LETTER_A], text),
        Row("include_stop_str_in_output", {**ONLY_A, "stop_token_ids": [LETTER_A]}, True, text),
        Row("ignore_eos", ONLY_END, True, completion_tokens),
        Row("min_tokens", {"stop_token_ids": list(range(255))}, 3, completion_tokens),
        Row("skip_special_tokens", {**ONLY_END, "ignore_eos": True}, False, text),
        Row("truncate_prompt_tokens", {}, 1, prompt_tokens),
        Row("prompt_logprobs", {}, 2, prompt_logprobs),
        Row("allowed_token_ids", {}, [LETTER_A], text),
        Row("bad_words", {"allowed_token_ids": [LETTER_A, LETTER_B]}, ["a"], text),
        Row("priority", {}, 7, of_request("priority")),
        Row("structured_outputs", {}, {"choice": ["yes", "no"]}, text),
        Row("structured_outputs", {}, {"json": {"const": 12}}, text),
        Row("structured_outputs", {}, {"regex": "[xyz]{3}"}, text),
        Row("structured_outputs", {}, {"grammar": 'start: "xyz"'}, text),
        Row("guided_choice", {}, ["yes", "no"], text),
        Row("guided_json", {}, {"const": 12}, text),
        Row("guided_regex", {}, "[xyz]{3}", text),
        Row("guided_grammar", {}, 'start: "xyz"', text),
        Row("deadline_ms", {}, 60_000, of_request("deadline_s")),
        Row("cache_salt", body_for(route, f"{route:x<200}"), "a salt of its own", cached_tokens),
        Row("speculation", {}, True, of_request("speculation")),
    ]


def sampling_rows(route: str) -> list[Row]:
    """The fields that every route has but Responses."""
    return [
        *engine_rows(route),
        Row("max_tokens", {}, 5, completion_tokens),
        Row("stop", ONLY_A, "aa", text),
        Row("include_stop_str_in_output", {**ONLY_A, "stop": "aa"}, True, text),
        Row("n", {}, 3, num_choices),
        Row("presence_penalty", {}, -2, text),
        Row("frequency_penalty", {}, -2, text),
        Row("logit_bias", {}, {str(LETTER_A): 100}, text),
    ]


OPENAI = [
    Row("stream_options", {"stream": True}, {"include_usage": True}, has_usage_chunks),
    Row("stream_options", {"stream": True}, {"continuous_usage_stats": True}, has_usage_chunks),
]
SPELLED = {"prompt": f"a{END_TOKEN}b"}
TWO_TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
ROWS: dict[str, list[Row]] = {
    COMPLETIONS: [
        *sampling_rows(COMPLETIONS),
        *OPENAI,
        Row("prompt", {}, "you", text),
        Row("best_of", SAMPLED, 4, completion_tokens),
        Row("echo", {}, True, text),
        Row("parse_special", SPELLED, False, prompt_tokens),
        Row("logprobs", {}, 2, logprobs),
    ],
    CHAT: [
        *sampling_rows(CHAT),
        *OPENAI,
        Row("messages", {}, TWO_TURNS, prompt_text),
        Row("max_completion_tokens", {"max_tokens": None}, 5, completion_tokens),
        Row("logprobs", {}, True, logprobs),
        Row("top_logprobs", {"logprobs": True}, 3, logprobs),
        Row("add_generation_prompt", {}, False, prompt_text),
        Row("continue_final_message", {"messages": TWO_TURNS}, True, prompt_text),
        Row("response_format", {}, {"type": "json_object"}, text),
        Row("tools", {}, CHAT_TOOLS["tools"], prompt_text),
        Row("tool_choice", CHAT_TOOLS, "required", num_calls),
        Row("tool_choice", CHAT_TOOLS, "none", prompt_text),
        Row("parallel_tool_calls", {**CHAT_TOOLS, "tool_choice": "required"}, False, num_calls),
    ],
    GENERATE: [
        *sampling_rows(GENERATE),
        Row("prompt", {}, "you", text),
        Row("logprobs", {}, 2, logprobs),
        Row("parse_special", SPELLED, False, prompt_tokens),
        Row("return_progress", {"stream": True}, True, has_progress),
    ],
    RESPONSES: [
        *engine_rows(RESPONSES),
        Row("input", {}, "you", text),
        Row("instructions", {}, "Be brief.", prompt_text),
        Row("max_output_tokens", {}, 5, completion_tokens),
        Row("metadata", {}, {"topic": "x"}, metadata),
        Row("text", {}, {"format": {"type": "json_object"}}, text),
        Row("tools", {}, FLAT_TOOLS["tools"], prompt_text),
        Row("tool_choice", FLAT_TOOLS, "required", num_calls),
        Row("parallel_tool_calls", {**FLAT_TOOLS, "tool_choice": "required"}, False, num_calls),
    ],
}
Values = tuple[list[Any], list[Any]]
# Field -> the values that say what the service does anyway, and some that ask for what it does not do.
STORED: dict[str, Values] = {"store": ([False, None], [True]), "service_tier": (["auto", "default", None], ["flex"])}
NEUTRAL: dict[str, dict[str, Values]] = {
    COMPLETIONS: {},
    CHAT: {**STORED, "modalities": ([["text"], None], [["text", "audio"], ["audio"], []])},
    GENERATE: {},
    RESPONSES: {
        **STORED,
        "truncation": (["disabled", None], ["auto"]),
        "background": ([False, None], [True]),
    },
}
CASES = [(route, row) for route, rows in ROWS.items() for row in rows]
NEUTRAL_CASES = [(route, name) for route, fields in NEUTRAL.items() for name in fields]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for the whole table: every test compares answers of its own."""
    with TestClient(fake_app(tmp_path_factory.mktemp("fields"), FakeDecoder(), log_requests=True)) as client:
        yield client


@pytest.fixture
def ask(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Json], Answer]:
    """Send a request, and see what the engine was given and what was logged."""
    submitted: list[Request] = []
    lines: list[str] = []
    loop = client.app.state.generator.engine_loop  # type: ignore[attr-defined]
    submit = loop.submit

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    def spy(*requests: Request) -> Any:
        submitted.extend(requests)
        return submit(*requests)

    monkeypatch.setattr(loop, "submit", spy)
    monkeypatch.setattr(request_log, "handlers", [Collector()])

    def send(route: str, body: Json) -> Answer:
        submitted.clear()
        lines.clear()
        response = client.post(route, json=body)
        media = response.headers["content-type"].split(";")[0]
        return Answer(response.status_code, response.text, media, list(submitted), [json.loads(x) for x in lines])

    return send


@pytest.mark.parametrize(("route", "row"), CASES, ids=[f"{route}-{row}" for route, row in CASES])
def test_a_field_that_is_accepted_changes_something(ask: Callable[[str, Json], Answer], route: str, row: Row) -> None:
    """And what it changes is the same whenever it is not given."""
    base = {**body_for(route), **row.base}
    ask(route, base)  # now the prompt is known
    without, again, given = ask(route, base), ask(route, base), ask(route, {**base, row.field: row.value})
    assert without.status == 200, without.content
    assert given.status == (404 if row.field == "model" else 200), given.content
    assert row.what(without) == row.what(again)
    assert row.what(given) != row.what(without)


@pytest.mark.parametrize("route", MODELS)
def test_the_table_has_every_field(route: str) -> None:
    """A new field needs a row that shows what it does."""
    shown = {row.field for row in ROWS[route]} | set(NEUTRAL[route])
    assert shown == {info.alias or name for name, info in MODELS[route].model_fields.items()}


def test_the_table_has_every_inner_field() -> None:
    """The same for the fields of stream_options and structured_outputs."""
    given = {name: {key for row in ROWS[CHAT] if row.field == name for key in row.value} for name in INNER}
    for name, model in INNER.items():
        fields = {info.alias or key for key, info in model.model_fields.items()}
        assert given[name] == fields - {"include_obfuscation"}


INNER: dict[str, type[WireModel]] = {"stream_options": StreamOptions, "structured_outputs": StructuredOutputs}


@pytest.mark.parametrize(("route", "name"), NEUTRAL_CASES)
def test_a_field_with_one_neutral_value_refuses_every_other_by_name(client: TestClient, route: str, name: str) -> None:
    """What the service does anyway may be said; what it does not do is not ignored."""
    accepted, refused = NEUTRAL[route][name]
    for value in accepted:
        assert client.post(route, json=body_for(route, **{name: value})).status_code == 200
    for value in refused:
        response = client.post(route, json=body_for(route, **{name: value}))
        assert response.status_code == 400
        assert str(error_of(response)["param"]).split(".")[0] == name


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("is_wanted", [False, True])
def test_obfuscation_of_streams_is_a_hint(client: TestClient, route: str, is_wanted: bool) -> None:
    """It pads the chunks of a stream and changes no answer; no padding is sent either way."""
    body = body_for(route, stream=True, stream_options={"include_obfuscation": is_wanted})
    answer = client.post(route, json=body)
    assert answer.status_code == 200
    assert "obfuscation" not in answer.text


def test_the_tokenizer_of_the_tests_is_that_of_the_service(client: TestClient) -> None:
    """Else the prompts of the table would not be what they seem."""
    served: Tokenizer = client.app.state.generator.prompts.tokenizer  # type: ignore[attr-defined]
    assert served.encode("aé🙂") == TOKENIZER.encode("aé🙂")
