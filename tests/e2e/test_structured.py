"""Answers that must have a form, sampled hot from the real model and checked by a validator that is not ours."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema
import pytest

from model.bundle import Bundle
from tests.support.random_schemas import Schema, random_schema, random_tool
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
MESSAGES = [{"role": "system", "content": "Write data."}, {"role": "user", "content": "Go."}]
NUM_SCHEMAS = 200
NUM_TOOLS = 24
NUM_CONCURRENT = 16
MAX_TOKENS = 700  # far more than any of these answers needs

pytestmark = [pytest.mark.model, pytest.mark.alone, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Answer:
    """An answer in its form. is_cut: it ended for want of tokens. text: JSON."""

    is_cut: bool
    text: str


Asker = Callable[[httpx.Client, int], tuple[Schema, Answer]]


@pytest.fixture(scope="module")
def http(default_bundle: Bundle) -> Iterator[httpx.Client]:
    """A client of one server."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server, _client(server) as client:
        yield client


def _client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=300, limits=httpx.Limits(max_connections=NUM_CONCURRENT))


def post(http: httpx.Client, path: str, seed: int, **fields: Any) -> Any:
    """Ask for a hot answer; with the same seed it is the same."""
    body = {"model": MODEL_ID, "temperature": 1.0, "seed": seed, **fields}
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat_answer(http: httpx.Client, seed: int) -> tuple[Schema, Answer]:
    """A chat completion with `response_format`."""
    schema = random_schema(seed)
    form = {"type": "json_schema", "json_schema": {"name": "data", "schema": schema}}
    fields = {"messages": MESSAGES, "max_tokens": MAX_TOKENS, "response_format": form}
    choice = post(http, "/v1/chat/completions", seed, **fields)["choices"][0]
    return schema, Answer(choice["finish_reason"] != "stop", choice["message"]["content"])


def completion_answer(http: httpx.Client, seed: int) -> tuple[Schema, Answer]:
    """A completion with vLLM's `structured_outputs`."""
    schema = random_schema(seed)
    fields = {"prompt": "Data: ", "max_tokens": MAX_TOKENS, "structured_outputs": {"json": schema}}
    choice = post(http, "/v1/completions", seed, **fields)["choices"][0]
    return schema, Answer(choice["finish_reason"] != "stop", choice["text"])


def response_answer(http: httpx.Client, seed: int) -> tuple[Schema, Answer]:
    """A response with `text.format`."""
    schema = random_schema(seed)
    form = {"format": {"type": "json_schema", "name": "data", "schema": schema}}
    response = post(http, "/v1/responses", seed, input="Data", max_output_tokens=MAX_TOKENS, text=form)
    return schema, Answer(response["status"] != "completed", response["output"][0]["content"][0]["text"])


def tool_answer(http: httpx.Client, seed: int) -> tuple[Schema, Answer]:
    """The arguments of the one call of a chat completion that must call."""
    tool = random_tool(seed)
    fields = {"messages": MESSAGES, "max_tokens": MAX_TOKENS, "tools": [tool], "tool_choice": "required"}
    choice = post(http, "/v1/chat/completions", seed, parallel_tool_calls=False, **fields)["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert call["function"]["name"] == tool["function"]["name"]
    is_cut = choice["finish_reason"] != "tool_calls"
    return tool["function"]["parameters"], Answer(is_cut, call["function"]["arguments"])


def fault_of(schema: Schema, answer: Answer) -> str | None:
    """What is wrong with an answer."""
    if answer.is_cut:
        return "it did not end"
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return str(error).split("\n", 1)[0]
    return None


def faults(http: httpx.Client, ask: Callable[[int], Asker], seeds: range) -> list[str]:
    """Ask with every seed, NUM_CONCURRENT at a time; describe what is wrong, the smallest schema first."""

    def one(seed: int) -> tuple[int, str] | None:
        schema, answer = ask(seed)(http, seed)
        fault = fault_of(schema, answer)
        shown = json.dumps(schema)
        return None if fault is None else (len(shown), f"seed {seed}: {fault}\n  {shown}\n  {answer.text}")

    with ThreadPoolExecutor(NUM_CONCURRENT) as pool:
        return [text for _, text in sorted(found for found in pool.map(one, seeds) if found is not None)]


def test_two_hundred_random_schemas_are_all_kept(http: httpx.Client) -> None:
    """By chats, completions and responses in turn, sixteen at a time, at temperature 1."""
    askers = (chat_answer, completion_answer, response_answer)
    assert not faults(http, lambda seed: askers[seed % 3], range(NUM_SCHEMAS))


def test_the_arguments_of_random_tools_fit_their_parameters(http: httpx.Client) -> None:
    """A call that is required has arguments that the function can take."""
    assert not faults(http, lambda _: tool_answer, range(1000, 1000 + NUM_TOOLS))
