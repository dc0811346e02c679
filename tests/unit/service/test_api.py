"""The HTTP API over a fake decoder: every route, every error of the contract."""

import asyncio
import json
import math
import re
import time
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from model.tokenizer import IncrementalDetokenizer
from service.api.generation import Generator
from service.metrics import METRIC_NAMES
from tests.support.fake_decoder import FakeDecoder, GatedDecoder, expected_tokens
from tests.support.fake_service import MODEL_ID, fake_app
from tests.support.requests import TOKENIZER

CHAT = {"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8}
COMPLETION = {"model": MODEL_ID, "prompt": "hi", "temperature": 0, "max_tokens": 8}


@pytest.fixture
def decoder() -> FakeDecoder:
    """The decoder behind the client."""
    return FakeDecoder()


@pytest.fixture
def client(tmp_path: Path, decoder: FakeDecoder) -> Iterator[TestClient]:
    """A client of the whole app; errors of the app come back as answers, as they do over a network."""
    with TestClient(fake_app(tmp_path, decoder, max_body_bytes=65536), raise_server_exceptions=False) as client:
        yield client


def answer_to(prompt: str, count: int) -> str:
    """What the fake model says after a prompt."""
    return TOKENIZER.decode(expected_tokens(TOKENIZER.encode(prompt), count))


def events(response: Any) -> list[Any]:
    """The JSON of a stream's events; checks the frame around them."""
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def test_a_chat_answer_has_the_fields_that_openai_clients_read(client: TestClient) -> None:
    """Id, object, model, message, finish reason and usage; the prompt went through the template."""
    body = client.post("/v1/chat/completions", json=CHAT).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL_ID
    prompt = "<user>hi\n<assistant>"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": answer_to(prompt, 8),
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "length"
    counts = {"prompt_tokens": len(prompt), "completion_tokens": 8, "total_tokens": len(prompt) + 8}
    assert body["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}


def test_a_completion_continues_text_or_token_ids_alike(client: TestClient) -> None:
    """A prompt and its own ids give one answer."""
    text = client.post("/v1/completions", json=COMPLETION).json()
    ids = client.post("/v1/completions", json={**COMPLETION, "prompt": TOKENIZER.encode("hi")}).json()
    assert text["choices"] == ids["choices"]
    assert text["choices"][0]["text"] == answer_to("hi", 8)
    assert text["object"] == "text_completion"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
def test_a_stream_joined_is_the_unstreamed_answer(client: TestClient, path: str, body: dict[str, Any]) -> None:
    """Same text, same finish reason, one usage chunk at the end when asked for."""
    whole = client.post(path, json=body).json()
    chunks = events(client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    *parts, last = chunks
    choices = [chunk["choices"][0] for chunk in parts]
    texts = [choice.get("text", choice.get("delta", {}).get("content", "")) or "" for choice in choices]
    assert "".join(texts) == whole["choices"][0].get("text", whole["choices"][0].get("message", {}).get("content"))
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


def test_the_native_route_needs_only_a_prompt(client: TestClient) -> None:
    """Greedy, ids and timings in the answer."""
    body = client.post("/v1/generate", json={"prompt": "hi", "max_tokens": 5}).json()
    assert body["token_ids"] == expected_tokens(TOKENIZER.encode("hi"), 5)
    assert body["text"] == TOKENIZER.decode(body["token_ids"])
    assert body["finish_reason"] == "length"
    assert set(body["timings"]) == {"queue_s", "prefill_s", "decode_s"}
    assert client.post("/v1/generate", json={"prompt": "hi"}).json()["usage"]["completion_tokens"] == 128


def test_the_native_stream_ends_with_the_whole_answer(client: TestClient) -> None:
    """An event per token, then the body of an unstreamed answer."""
    *pieces, whole = events(client.post("/v1/generate", json={"prompt": "hi", "max_tokens": 5, "stream": True}))
    assert [piece["token_id"] for piece in pieces] == whole["token_ids"]
    assert "".join(piece["text"] for piece in pieces) == whole["text"]


def test_max_tokens_of_a_chat_defaults_to_what_the_context_holds(client: TestClient) -> None:
    """Both of OpenAI's names for it work, and neither means the rest of the context."""
    body = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    assert client.post("/v1/chat/completions", json=body).json()["usage"]["total_tokens"] == 512
    few = client.post("/v1/chat/completions", json={**body, "max_completion_tokens": 3}).json()
    assert few["usage"]["completion_tokens"] == 3


def test_a_seed_repeats_an_answer_and_no_seed_does_not(client: TestClient) -> None:
    """Sampling is reproducible on demand. The fake's logits are nearly flat, so chance alone would not repeat."""
    body = {**COMPLETION, "temperature": 1.0, "max_tokens": 16}
    texts = [client.post("/v1/completions", json={**body, "seed": 7}).json()["choices"][0]["text"] for _ in range(2)]
    free = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len({texts[0], *free}) == 3


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client: TestClient, as_list: bool) -> None:
    """One string or a list; not shown; finish reason `stop`."""
    text = answer_to("hi", 8)
    stop = text[3]
    body = client.post("/v1/completions", json={**COMPLETION, "stop": [stop, "never"] if as_list else stop}).json()
    assert body["choices"][0]["text"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"


NOT_JSON = '{"model": '
BAD_REQUESTS: list[tuple[str, Any, int, str | None, str]] = [
    ("/v1/completions", {**COMPLETION, "model": "gpt-4"}, 404, "model", "'gpt-4' is not served here; served: 'fake'"),
    ("/v1/completions", {"model": MODEL_ID}, 400, "prompt", "prompt is missing"),
    ("/v1/completions", {**COMPLETION, "prompt": ""}, 400, "prompt", "the prompt is empty"),
    ("/v1/completions", {**COMPLETION, "prompt": []}, 400, "prompt", "the prompt is empty"),
    ("/v1/completions", {**COMPLETION, "prompt": [1, 257]}, 400, "prompt", "token id 257 is out of range"),
    ("/v1/completions", {**COMPLETION, "prompt": [1, 2**70]}, 400, "prompt.1", "less than or equal"),
    ("/v1/completions", {**COMPLETION, "prompt": [1.5]}, 400, "prompt.0", "valid integer"),
    ("/v1/completions", {**COMPLETION, "prompt": {"a": 1}}, 400, "prompt", "valid string"),
    ("/v1/completions", {**COMPLETION, "prompt": None}, 400, "prompt", "prompt is missing"),
    ("/v1/completions", {**COMPLETION, "prompt": "x" * 600}, 400, "prompt", "the prompt has 600 tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 0}, 400, "max_tokens", "give at least 1"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 600}, 400, "max_tokens", "max_tokens is 600"),
    ("/v1/completions", {**COMPLETION, "max_tokens": "8"}, 400, "max_tokens", "valid integer (given: '8')"),
    ("/v1/completions", {**COMPLETION, "temperature": -0.1}, 400, "temperature", "greater than or equal to 0"),
    ("/v1/completions", {**COMPLETION, "temperature": 2.1}, 400, "temperature", "less than or equal to 2"),
    ("/v1/completions", {**COMPLETION, "temperature": math.nan}, 400, "temperature", "temperature"),
    ("/v1/completions", {**COMPLETION, "top_p": 0}, 400, "top_p", "greater than 0"),
    ("/v1/completions", {**COMPLETION, "top_p": math.inf}, 400, "top_p", "top_p"),
    ("/v1/completions", {**COMPLETION, "seed": 2**64}, 400, "seed", "less than"),
    ("/v1/completions", {**COMPLETION, "seed": True}, 400, "seed", "valid integer"),
    ("/v1/completions", {**COMPLETION, "stop": "x" * 513}, 400, "stop", "at most 512 characters"),
    ("/v1/completions", {**COMPLETION, "stop": ["a"] * 17}, 400, "stop", "at most 16 items"),
    ("/v1/completions", {**COMPLETION, "stream": "yes"}, 400, "stream", "valid boolean"),
    ("/v1/completions", {**COMPLETION, "n": 17}, 400, "n", "less than or equal to 16"),
    ("/v1/completions", {**COMPLETION, "frequency": 1}, 400, "frequency", "frequency is not a field of this request"),
    (
        "/v1/completions",
        {**COMPLETION, "stream_options": {"include_sage": True}},
        400,
        "stream_options.include_sage",
        "not a field",
    ),
    ("/v1/completions", [], 400, None, "must be a JSON object"),
    ("/v1/completions", NOT_JSON, 400, None, "not valid JSON"),
    ("/v1/completions", b"\xff\xfe{}", 400, None, "JSON"),
    ("/v1/chat/completions", {**CHAT, "messages": []}, 400, "messages", "at least 1 item"),
    (
        "/v1/chat/completions",
        {**CHAT, "messages": [{"role": "robot", "content": "x"}]},
        400,
        "messages.0.role",
        "'system'",
    ),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user"}]}, 400, "messages.0.content", "missing"),
    ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 5}, 400, "max_tokens", "not both"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x" * 600}]}, 400, "messages", "has 6"),
    (
        "/v1/chat/completions",
        {"model": MODEL_ID, "messages": CHAT["messages"], "max_completion_tokens": 900},
        400,
        "max_completion_tokens",
        "it must be from 1 to",
    ),
    ("/v1/completions", {**COMPLETION, "n": True}, 400, "n", "valid integer"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 10**4000}, 400, "max_tokens", "less than or equal"),
    ("/v1/completions", {**COMPLETION, "top-p": 1}, 400, "top-p", "top-p is not a field of this request"),
    ("/v1/completions", {**COMPLETION, "prompt": "a\ud800b"}, 400, "prompt", "lone surrogate"),
    ("/v1/completions", {**COMPLETION, "stop": ["\udc00"]}, 400, "stop.0", "unicode string"),
    (
        "/v1/chat/completions",
        {**CHAT, "messages": [{"role": "user", "content": "a\ud800b"}]},
        400,
        "messages.0.content",
        "lone surrogate",
    ),
    (
        "/v1/chat/completions",
        {**CHAT, "my-key": 1},
        400,
        "my-key",
        "my-key is not a field",
    ),
    ("/v1/generate", {"prompt": "x" * 10000}, 400, "prompt", "characters; the context of 512 tokens cannot hold more"),
    ("/v1/generate", {}, 400, "prompt", "prompt is missing"),
    ("/v1/generate", {"prompt": "x" * 70000}, 413, None, "larger than 65536 bytes"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "message"), BAD_REQUESTS)
def test_bad_input_gets_its_code_its_field_and_one_clear_message(
    client: TestClient, path: str, body: Any, status: int, param: str | None, message: str
) -> None:
    """The contract's error body; what is wrong and what is allowed; and the service still answers."""
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_a_body_without_a_declared_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    """Chunked bodies are counted while they are read."""

    def pieces() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 1024

    response = client.post("/v1/generate", content=pieces(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_unknown_routes_and_methods_use_the_same_error_body(client: TestClient) -> None:
    """404 and 405, both in JSON."""
    missing, wrong = client.get("/v2/none"), client.get("/v1/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "route_not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


def test_a_model_without_a_template_refuses_chat(tmp_path: Path) -> None:
    """A base model says which route to use instead."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), chat_template=None)) as client:
        error = client.post("/v1/chat/completions", json=CHAT).json()["error"]
        assert "has no chat template; use /v1/completions" in error["message"]


def test_a_full_queue_answers_429_with_retry_after(tmp_path: Path) -> None:
    """Refused, not queued without bound."""
    decoder = GatedDecoder(num_rows=1)
    app = fake_app(tmp_path, decoder, max_waiting_requests=1)
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, "/v1/completions", json=COMPLETION)
        assert decoder.entered.wait(20)
        waiting = pool.submit(client.post, "/v1/completions", json=COMPLETION)
        while app.state.generator.engine_loop.num_waiting < 1:
            time.sleep(0.01)
        response = client.post("/v1/completions", json=COMPLETION)
        decoder.gate.set()
        assert running.result().status_code == waiting.result().status_code == 200
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_draining_answers_503_with_retry_after_and_is_not_ready(tmp_path: Path) -> None:
    """Alive, but taking no new work."""
    app = fake_app(tmp_path, FakeDecoder())
    with TestClient(app) as client:
        assert client.get("/ready").status_code == 200
        app.state.runtime.begin_drain()
        response = client.post("/v1/completions", json=COMPLETION)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert response.json()["error"]["code"] == "draining"
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_a_dead_engine_fails_requests_with_500_then_503_and_health_turns_false(
    client: TestClient, decoder: FakeDecoder
) -> None:
    """The web server lives, the answer says that the engine does not."""
    decoder.fail_at_call = 3
    failed = client.post("/v1/completions", json=COMPLETION)
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "engine_failed"
    assert "injected" not in failed.text
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503
    assert client.post("/v1/completions", json=COMPLETION).status_code == 503
    assert "attend_engine_alive{" in client.get("/metrics").text
    assert samples(client)["attend_engine_alive"] == 0


def test_an_unexpected_error_is_a_500_that_leaks_nothing_and_is_counted(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks in a route: the contract's body, the reason in the log only, and the metric sees it."""

    def broken(_self: Generator, _model: str | None) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(Generator, "check_model", broken)
    response = client.post("/v1/completions", json=COMPLETION)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert re.search(r'http_requests_total{code="500",.*} 1.0', client.get("/metrics").text)


def test_text_that_cannot_be_made_ends_its_request_and_no_other(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that fails on one answer must not stop the engine."""
    real = IncrementalDetokenizer.push
    monkeypatch.setattr(IncrementalDetokenizer, "push", lambda *_: 1 / 0)
    assert client.post("/v1/completions", json=COMPLETION).json()["error"]["code"] == "engine_failed"
    monkeypatch.setattr(IncrementalDetokenizer, "push", real)
    assert client.get("/health").status_code == 200
    assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_probes_may_ask_with_head(client: TestClient) -> None:
    """Some load balancers do."""
    assert client.head("/health").status_code == client.head("/ready").status_code == 200


def test_a_stream_that_fails_ends_with_an_error_event(client: TestClient, decoder: FakeDecoder) -> None:
    """200 has been sent; the error follows as the last event, and there is no [DONE]."""
    decoder.fail_at_call = 4
    response = client.post("/v1/completions", json={**COMPLETION, "stream": True})
    assert response.status_code == 200
    *_, last, empty = response.text.split("\n\n")
    assert empty == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_gone_before_the_answer_begins_cancels_its_request(tmp_path: Path, is_streamed: bool) -> None:
    """The connection closes right behind the body: no ghost runs to its max_tokens."""
    decoder = GatedDecoder()
    app = fake_app(tmp_path, decoder)
    body = json.dumps({"prompt": "hi", "max_tokens": 500, "stream": is_streamed}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(_message: MutableMapping[str, Any]) -> None:
        await asyncio.sleep(0)  # a real connection yields here, and the disconnect overtakes the first event

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            decoder.gate.set()
            loop = app.state.generator.engine_loop
            for _ in range(500):
                if loop.num_in_flight == 0:
                    return
                await asyncio.sleep(0.01)
            pytest.fail("the request still runs")

    asyncio.run(scenario())
    text = app.state.metrics.expose()[0].decode()
    assert re.search(r'^attend_requests_total{.*finish_reason="cancelled".*} 1.0$', text, re.MULTILINE), text


def test_models_are_listed_and_found_by_id(client: TestClient) -> None:
    """One model, and a 404 for any other."""
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["object"], card["context_tokens"]) == (MODEL_ID, "model", 512)
    assert client.get(f"/v1/models/{MODEL_ID}").json() == card
    assert client.get("/v1/models/org/other").json()["error"]["code"] == "model_not_found"


def test_version_and_docs_are_served(client: TestClient) -> None:
    """What runs, and the interactive documentation with its schema."""
    assert client.get("/version").json()["model"] == MODEL_ID
    assert client.get("/docs").status_code == 200
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


def test_prometheus_finds_the_service_through_its_own_route(client: TestClient) -> None:
    """HTTP service discovery: a list of groups of host:port."""
    assert client.get("/metrics/targets").json() == [{"targets": ["127.0.0.1:8000"], "labels": {}}]


def samples(client: TestClient) -> dict[str, float]:
    """Each sample by name; values of several label sets are added up."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def test_metrics_add_up_and_are_exactly_those_of_the_contract(client: TestClient) -> None:
    """Counts of requests and tokens equal what was sent; every named metric exists and no other."""
    for _ in range(3):
        client.post("/v1/completions", json=COMPLETION)
    client.post("/v1/completions", json={**COMPLETION, "prompt": ""})
    values = samples(client)
    assert values["attend_generation_tokens_total"] == 24
    assert values["attend_prompt_tokens_total"] == 6
    assert values["attend_requests_total"] == 3
    assert values["attend_time_to_first_token_seconds_count"] == 3
    assert values["attend_inter_token_latency_seconds_count"] == 21
    assert values["attend_e2e_request_latency_seconds_count"] == 3
    assert values["attend_requests_running"] == values["attend_requests_waiting"] == values["attend_batch_rows"] == 0
    suffixes = ("_bucket", "_sum", "_count")
    families = {name.removesuffix(next((s for s in suffixes if name.endswith(s)), "")) for name in values}
    assert families == METRIC_NAMES
    text = client.get("/metrics").text
    assert 'route="/v1/completions"' in text
    assert 'code="400"' in text
