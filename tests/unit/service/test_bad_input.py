"""Bad input: its code, its field, one clear message, every time, and nobody else notices."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.api_client import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    RESPONSES,
    ROUTES,
    body_for,
    error_of,
    events_of,
    folded_completion,
)
from tests.support.bad_inputs import BAD_INPUTS, BadInput
from tests.support.fake_decoder import FakeDecoder, expected_tokens
from tests.support.fake_service import fake_app
from tests.support.requests import TOKENIZER
from tests.support.stepped_decoder import SteppedDecoder

HEADERS = {"Content-Type": "application/json"}
TEMPLATE_BOMBS = [
    "{{ 7*7 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ messages[0].__class__.__mro__ }}",
    "{% raise %}{{ raise_exception('no') }}",
    "{% endfor %}{% endif %}",
    "{# a comment #}",
    "{%- set messages = [] -%}",
    "<|end|>",
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One service for the whole table: it has to outlive it. Its errors come back as answers."""
    app = fake_app(tmp_path_factory.mktemp("bad"), FakeDecoder())
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def refuse(client: TestClient, case: BadInput) -> None:
    """Send one bad input and check its answer."""
    response = client.post(case.route, content=case.content, headers=HEADERS)
    assert response.status_code == case.status, response.text[:500]
    error = error_of(response)
    assert (error["param"], error["type"]) == (case.param, "invalid_request_error"), error
    assert case.message in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize("case", BAD_INPUTS, ids=lambda case: case.name)
def test_bad_input_gets_its_code_its_field_and_one_clear_message(client: TestClient, case: BadInput) -> None:
    """The contract's error body, whatever was sent; and the next request is answered."""
    refuse(client, case)
    assert client.post(COMPLETIONS, json=body_for(COMPLETIONS, max_tokens=1)).status_code == 200


def test_the_table_is_long_and_names_each_case_once() -> None:
    """At least eighty, and their names tell them apart."""
    names = Counter(case.name for case in BAD_INPUTS)
    assert len(names) >= 80
    assert names.most_common(1)[0][1] == 1


def test_a_healthy_stream_goes_on_beside_every_bad_input(tmp_path: Path) -> None:
    """A step of the answer for each refusal, and it ends with its own text."""
    decoder = SteppedDecoder()
    num_tokens = len(BAD_INPUTS) + 2
    body = body_for(COMPLETIONS, max_tokens=num_tokens, stream=True, stream_options={"include_usage": True})
    with (
        TestClient(fake_app(tmp_path, decoder), raise_server_exceptions=False) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.post, COMPLETIONS, json=body)
        assert decoder.entered.wait(20)
        try:
            for case in BAD_INPUTS:
                decoder.allow(1)
                refuse(client, case)
            assert not running.done()
        finally:
            decoder.allow(num_tokens)
        answer = folded_completion(events_of(running.result(20)))
    prompt_ids = TOKENIZER.encode("hi")
    assert answer["choices"][0]["text"] == TOKENIZER.decode(expected_tokens(prompt_ids, num_tokens))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == num_tokens


@pytest.mark.parametrize("bomb", TEMPLATE_BOMBS)
def test_templates_in_messages_are_text(client: TestClient, bomb: str) -> None:
    """Nothing of a request is ever executed: the prompt has the braces as they were sent."""
    rendered = f"<user>{bomb}\n<assistant>"
    chat = client.post(CHAT, json=body_for(CHAT, bomb)).json()
    prompt_ids = TOKENIZER.encode(rendered, parse_special=False)
    assert chat["usage"]["prompt_tokens"] == len(prompt_ids)
    answer = TOKENIZER.decode(expected_tokens(prompt_ids, 8))
    assert chat["choices"][0]["message"]["content"] == answer
    response = client.post(RESPONSES, json=body_for(RESPONSES, bomb)).json()
    assert response["output"][0]["content"][0]["text"] == answer
    tokens = client.post("/tokenize", json={"messages": [{"role": "user", "content": bomb}]}).json()["tokens"]
    shown = client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert shown == rendered


@pytest.mark.parametrize("bomb", TEMPLATE_BOMBS)
@pytest.mark.parametrize("route", [COMPLETIONS, GENERATE])
def test_templates_in_prompts_are_text(client: TestClient, route: str, bomb: str) -> None:
    """The same for prompts that no template touches."""
    body = client.post(route, json=body_for(route, bomb)).json()
    assert (body.get("choices") or [body])[0]["text"] == answer_to(bomb)


def answer_to(prompt: str) -> str:
    """Eight tokens of the fake model."""
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), 8))


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_never_ignored(client: TestClient, route: str) -> None:
    """A misspelt field is named; nothing is silently dropped."""
    response = client.post(route, json=body_for(route, temprature=1))
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "temprature is not a field of this request; did you mean temperature?",
        "type": "invalid_request_error",
        "param": "temprature",
        "code": "unknown_field",
    }
