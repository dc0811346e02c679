"""A stream put together is the unstreamed answer, byte for byte, whatever was asked for."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.api_client import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    RESPONSES,
    ROUTES,
    Json,
    events_of,
    folded_chat,
    folded_completion,
    named_events_of,
)
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app
from tests.support.random_requests import random_body, scripted_token
from tests.support.requests import TOKENIZER

NUM_BODIES = 60  # of each route
SEEDS = [(route, seed) for route in ROUTES for seed in range(NUM_BODIES)]
VOLATILE = ("id", "created", "created_at", "timings", "call_id", "item_id")  # differ between any two requests


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service whose model writes what is hard to stream."""
    decoder = FakeDecoder()
    decoder.next_token = scripted_token
    with TestClient(fake_app(tmp_path_factory.mktemp("streams"), decoder, prefix_cache_bytes=0)) as client:
        yield client


def settled(value: Any) -> Any:
    """A body without what differs between any two requests."""
    if isinstance(value, dict):
        return {name: settled(inner) for name, inner in value.items() if name not in VOLATILE}
    return [settled(inner) for inner in value] if isinstance(value, list) else value


def body_of(route: str, seed: int) -> Json:
    """A random request, the same in every run."""
    return random_body(route, random.Random(f"{route}{seed}"))


@pytest.mark.parametrize(("route", "seed"), SEEDS)
def test_a_stream_put_together_is_the_unstreamed_answer(client: TestClient, route: str, seed: int) -> None:
    """Text, finish reason, stop reason, log-probabilities, calls and usage."""
    body = body_of(route, seed)
    whole = client.post(route, json=body)
    assert whole.status_code == 200, whole.text
    streamed = client.post(route, json={**body, "stream": True, **stream_options(route, seed)})
    match route:
        case "/v1/completions":
            joined = folded_completion(events_of(streamed))
        case "/v1/chat/completions":
            joined = folded_chat(events_of(streamed))
        case "/v1/generate":
            joined = folded_generate(events_of(streamed))
        case _:
            joined = named_events_of(streamed)[-1]["response"]
    expected = whole.json() if route in (GENERATE, RESPONSES) else {n: whole.json()[n] for n in ("choices", "usage")}
    assert settled(joined) == settled(expected)


def stream_options(route: str, seed: int) -> Json:
    """Usage at the end, and with every other request in each chunk too."""
    if route in (GENERATE, RESPONSES):
        return {}
    return {"stream_options": {"include_usage": True, "continuous_usage_stats": seed % 2 == 1}}


def folded_generate(events: list[Json]) -> Json:
    """The last event of a native stream, after checking that the pieces before it come to the same."""
    *pieces, whole = events
    answers = whole.get("choices") or [{**whole, "index": 0}]
    for answer in answers:
        own = [piece for piece in pieces if piece.get("index", 0) == answer["index"]]
        assert "".join(piece["text"] for piece in own) == answer["text"]
        assert [piece["token_id"] for piece in own if piece["token_id"] is not None] == answer["token_ids"]
        if "logprobs" in answer and answer["logprobs"] is not None:
            assert [piece["logprobs"] for piece in own] == answer["logprobs"]
    return whole


@pytest.mark.parametrize("seed", range(NUM_BODIES))
def test_an_answer_that_nothing_stopped_is_its_tokens_decoded_at_once(client: TestClient, seed: int) -> None:
    """Pieces of characters and special tokens included: the oracle that knows nothing of streams."""
    body = body_of(GENERATE, seed) | {"stop": None, "stop_token_ids": None, "ignore_eos": True}
    answer = client.post(GENERATE, json=body).json()
    skips = body.get("skip_special_tokens", True)
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == body["max_tokens"]
    assert answer["text"] == TOKENIZER.decode(answer["token_ids"], skip_special_tokens=skips)


def test_the_random_requests_reach_every_kind_of_end(client: TestClient) -> None:
    """Else the equalities above would show little: stop strings, stop tokens, lengths, calls, split characters."""
    seen: set[str] = set()
    for route, seed in SEEDS:
        body = body_of(route, seed)
        answer = client.post(route, json=body).json()
        for choice in answer.get("choices") or answer.get("output") or [answer]:
            reason = choice.get("stop_reason")
            seen |= {str(choice.get("finish_reason")), type(reason).__name__, str(choice.get("type"))}
        seen |= {f"{route} {name}" for name in body}
    assert {"stop", "length", "tool_calls", "str", "int", "function_call", "message"} <= seen
    assert {f"{COMPLETIONS} echo", f"{CHAT} top_logprobs", f"{RESPONSES} prompt_logprobs"} <= seen
