"""What is done for an HTTP request, in which order, and what it is charged."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from model.constraint import Constraint, ConstraintCompiler, ConstraintSpec
from tests.support.api_client import CHAT, GENERATE, body_for, error_of
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The constraints that are compiled, each taking a moment."""
    specs: list[str] = []
    compile_it = ConstraintCompiler.compile

    def slow(self: ConstraintCompiler, spec: ConstraintSpec) -> Constraint:
        specs.append(spec.lark)
        time.sleep(0.2)
        return compile_it(self, spec)

    monkeypatch.setattr(ConstraintCompiler, "compile", slow)
    return specs


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A service that takes one request a minute."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), max_requests_per_minute=1)) as client:
        yield client


def test_a_caller_over_a_limit_costs_no_compiling(client: TestClient, compiled: list[str]) -> None:
    """Only what is let in is worked for."""
    compiled.clear()  # of what the start itself needs
    bodies = [body_for(GENERATE, guided_regex=f"a{number}") for number in range(4)]
    statuses = [client.post(GENERATE, json=body).status_code for body in bodies]
    assert statuses == [200, 429, 429, 429]
    assert len(compiled) == 1


def test_a_draining_service_compiles_nothing(tmp_path: Path, compiled: list[str]) -> None:
    """503 at once."""
    app = fake_app(tmp_path, FakeDecoder())
    with TestClient(app) as client:
        compiled.clear()
        app.state.runtime.begin_drain()
        assert client.post(GENERATE, json=body_for(GENERATE, guided_regex="a")).status_code == 503
        assert compiled == []


def test_a_deadline_counts_from_the_arrival(tmp_path: Path, compiled: list[str]) -> None:
    """Compiling is part of the wait."""
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        answer = client.post(GENERATE, json=body_for(GENERATE, guided_regex="abc", deadline_ms=50))
        assert (answer.status_code, error_of(answer)["code"]) == (408, "deadline")
        assert answer.headers["x-should-retry"] == "false"
        assert compiled


def test_a_prompt_is_reported_once_however_many_answers_continue_it(tmp_path: Path) -> None:
    """With the first answer; the others have none."""
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        choices = client.post(CHAT, json=body_for(CHAT, n=4, prompt_logprobs=2)).json()["choices"]
        assert ["prompt_logprobs" in choice for choice in choices] == [True, False, False, False]
        body = {"model": "fake", "prompt": ["ab", "cd"], "n": 1, "best_of": 3, "prompt_logprobs": 0}
        best = client.post("/v1/completions", json=body).json()["choices"]
        assert [len(choice["prompt_logprobs"]) for choice in best] == [2, 2]


def test_more_log_probabilities_of_prompts_than_can_be_written_at_once_are_refused(tmp_path: Path) -> None:
    """They would hold up every stream."""
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        prompts = [[1] * 400] * 10
        body = {"model": "fake", "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 20}
        error = error_of(client.post("/v1/completions", json=body))
        assert error["param"] == "prompt_logprobs"
        assert "4000 prompt tokens with 20 alternatives each make 84000 log-probabilities" in error["message"]
        assert client.post("/v1/completions", json={**body, "prompt_logprobs": 1}).status_code == 200


def test_the_counts_of_a_chunk_are_those_up_to_it(tmp_path: Path) -> None:
    """However far ahead the engine is."""
    fields: dict[str, Any] = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": True}}
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        for route in (CHAT, "/v1/completions"):
            text = client.post(route, json=body_for(route, max_tokens=12, logprobs=route == CHAT or 0, **fields)).text
            chunks = [line for line in text.split("\n\n") if line.startswith("data: {")]
            counts = [int(chunk.split('"completion_tokens":')[1].split(",")[0]) for chunk in chunks]
            assert counts == sorted(counts)
            first_count = counts[1] if route == CHAT else counts[0]
            assert (first_count, counts[-1]) == (1, 12)
