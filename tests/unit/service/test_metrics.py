"""Numbers of the metrics: a share of the budget that admission counts, zeros from the start, refusals and no probes."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.api.errors import ApiError
from service.engine.loop import EngineLoop
from service.engine.request import FinishReason
from service.metrics import REJECTION_REASONS, Metrics
from tests.support.api_client import body_for
from tests.support.engines import make_engine
from tests.support.fake_decoder import FakeDecoder, GatedDecoder
from tests.support.fake_service import fake_app
from tests.support.requests import make_request

KEY = "alice-0123456789abcdef"
BEARER = {"Authorization": f"Bearer {KEY}"}
PAGE_TOKENS = 64  # of the fake decoder's cache
Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of the whole app behind a key, with a limit that is soon reached."""
    settings: dict[str, Any] = {"api_keys": f"alice:{KEY}", "max_requests_per_minute": 2, "max_body_bytes": 2048}
    with TestClient(fake_app(tmp_path, FakeDecoder(), **settings), raise_server_exceptions=False) as client:
        yield client


def samples(text: str) -> dict[tuple[str, Labels], float]:
    """Every sample by name and labels, but for those that all have."""
    return {
        (
            sample.name,
            tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("model", "replica"))),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def rejected(text: str) -> dict[str, float]:
    """Refusals by reason, but for reasons that nothing was refused for."""
    found = {
        dict(labels)["reason"]: value
        for (name, labels), value in samples(text).items()
        if name.endswith("rejected_total")
    }
    assert set(found) == REJECTION_REASONS
    return {reason: value for reason, value in found.items() if value}


BUDGETS = [
    (64, 32, "a sixteenth of what the rows could hold, as a gigabyte is to sixteen long contexts"),
    (40, 32, "rows for little more than the budget"),
    (64, 16, "half of that budget"),
    (128, 32, "more rows than the budget could ever fill"),
    (64, 60, "nearly a page for each row"),
]


@pytest.mark.parametrize(("num_rows", "num_pages", "reason"), BUDGETS, ids=[row[2] for row in BUDGETS])
def test_a_full_budget_reads_full_whatever_the_rows(num_rows: int, num_pages: int, reason: str) -> None:
    """When a request waits for memory, the gauge is no further from 1 than that request is large."""
    engine, _ = make_engine(num_rows, budget=4096, kv_budget_tokens=num_pages * PAGE_TOKENS)
    assert engine.budget_ratio == 0
    for _ in range(num_pages):
        engine.add(make_request([1] * (PAGE_TOKENS - 2), 2))
    engine.step()
    assert engine.waiting, reason
    assert 1 - 1.1 / num_pages < engine.budget_ratio <= 1
    while engine.has_work:
        engine.step()
    assert engine.budget_ratio == 0


@pytest.mark.parametrize("num_rows", [1, 2, 16])
def test_a_request_that_fills_the_budget_alone_reads_one(num_rows: int) -> None:
    """Never more, though the growth kept free for it would not fit any more."""
    engine, _ = make_engine(num_rows, budget=512, kv_budget_tokens=2 * PAGE_TOKENS)
    engine.add(make_request([1] * 100, 28))
    engine.step()
    assert engine.budget_ratio == 1


def test_a_budget_in_part_reads_its_part() -> None:
    """Whole pages, and the growth that is kept free."""
    engine, _ = make_engine(16, budget=512, kv_budget_tokens=4 * PAGE_TOKENS)
    engine.add(make_request([1] * PAGE_TOKENS, PAGE_TOKENS))
    engine.step()
    assert engine.budget_ratio == pytest.approx(0.75, abs=0.01)  # two pages, and 63 tokens of growth


def test_the_gauge_is_the_engines(tmp_path: Path) -> None:
    """Scraped while a request runs."""
    decoder = GatedDecoder()
    app = fake_app(tmp_path, decoder, kv_budget_bytes=2 * PAGE_TOKENS * 128)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "/v1/generate", json=body_for("/v1/generate", "x" * 64, 60))
        assert decoder.entered.wait(20)
        assert samples(client.get("/metrics").text)["attend_kv_cache_usage_ratio", ()] == 1
        decoder.gate.set()
        assert running.result().status_code == 200


def test_every_series_that_can_be_known_is_zero_before_anything_happens(client: TestClient) -> None:
    """An increase from nothing to sixteen is no increase to Prometheus."""
    values = samples(client.get("/metrics", headers=BEARER).text)
    for reason in FinishReason:
        error = "engine_failed" if reason is FinishReason.ERROR else ""
        assert values["attend_requests_total", (("error", error), ("finish_reason", reason))] == 0
    for refusal in REJECTION_REASONS:
        assert values["attend_requests_rejected_total", (("reason", refusal),)] == 0
    for route in ("/v1/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses"):
        for code in (200, 400, 404, 408, 413, 415, 429, 499, 500, 503):
            assert values["attend_http_requests_total", (("code", str(code)), ("route", route))] == 0
    for route, code in (("/health", 503), ("/ready", 503), ("/v1/models", 200), ("/tokenize", 400), ("unmatched", 401)):
        assert values["attend_http_requests_total", (("code", str(code)), ("route", route))] == 0
    counters = ("prompt_tokens", "generation_tokens", "preemptions", "prefix_cache_hits", "prefix_cache_queries")
    assert all(values[f"attend_{name}_total", ()] == 0 for name in counters)


ODD_REQUESTS = [
    ("DELETE", "/v1/models", "a method that a route lacks"),
    ("GET", "/v1/chat/completions", "a route that is only posted to"),
    ("PUT", "/health", "a probe's route"),
    ("OPTIONS", "/v1/generate", "the methods of a route"),
    ("OPTIONS", "/metrics", "those of a route that is read"),
    ("HEAD", "/v1/models", "an answer without a body"),
    ("GET", "/docs", "the page of the API"),
    ("GET", "/docs/oauth2-redirect", "a page beside it"),
    ("GET", "/openapi.json", "the API for machines"),
    ("POST", "/docs", "a method that the page lacks"),
    ("GET", "/docs/files/swagger-ui.css", "a style of the page"),
    ("POST", "/docs/files/swagger-ui.css", "a method that files lack"),
    ("GET", "/nowhere", "no route"),
    ("OPTIONS", "/nowhere", "the methods of no route"),
]


@pytest.mark.parametrize(("method", "path", "reason"), ODD_REQUESTS, ids=[row[2] for row in ODD_REQUESTS])
def test_no_answer_makes_a_counter_that_was_not_there(client: TestClient, method: str, path: str, reason: str) -> None:
    """A counter born at one has no increase."""
    before = samples(client.get("/metrics", headers=BEARER).text)
    client.request(method, path, headers=BEARER)
    born = samples(client.get("/metrics", headers=BEARER).text).keys() - before.keys()
    assert not [name for name in born if name[0] == "attend_http_requests_total"], reason


GENERATE = body_for("/v1/generate")
REFUSALS: list[tuple[str, dict[str, Any], str, str]] = [
    ("unauthorized", {"json": GENERATE, "headers": {}}, "/v1/generate", "without a key"),
    ("unauthorized", {"json": GENERATE, "headers": {"Authorization": "Bearer no"}}, "/v1/generate", "a wrong key"),
    ("body_too_large", {"json": {"prompt": "x" * 3000}}, "/v1/generate", "too long"),
    ("unsupported_encoding", {"content": b"x", "headers": {**BEARER, "Content-Encoding": "br"}}, "/tokenize", "brotli"),
    ("origin_not_allowed", {"content": b"{}", "headers": {**BEARER, "Origin": "http://x"}}, "/v1/generate", "a page"),
    ("headers_too_large", {"json": GENERATE, "headers": {"x": "y" * 20_000}}, "/v1/generate", "a long header"),
    ("context_length_exceeded", {"json": {"prompt": "x" * 600}}, "/v1/generate", "more than the context"),
    ("model_not_found", {"json": {**GENERATE, "model": "gpt-4"}}, "/v1/generate", "another model"),
    ("invalid_request", {"json": {"prompt": 1}}, "/v1/generate", "a wrong field"),
    ("invalid_request", {"content": b"{"}, "/v1/chat/completions", "no JSON"),
    ("invalid_request", {"json": {}}, "/nowhere", "no route"),
]


@pytest.mark.parametrize(("reason", "options", "route", "given"), REFUSALS, ids=[row[3] for row in REFUSALS])
def test_a_refusal_is_counted_by_its_reason(
    client: TestClient, reason: str, options: dict[str, Any], route: str, given: str
) -> None:
    """Once, and under no other."""
    response = client.post(route, **{"headers": BEARER, **options})
    assert response.status_code >= 400, given
    assert rejected(client.get("/metrics", headers=BEARER).text) == {reason: 1}


def test_a_limit_of_a_key_and_a_full_queue_are_counted_apart(client: TestClient, tmp_path: Path) -> None:
    """Both are 429."""
    for _ in range(5):
        client.post("/v1/generate", json=GENERATE, headers=BEARER)
    assert rejected(client.get("/metrics", headers=BEARER).text) == {"requests_per_minute": 3}
    decoder = GatedDecoder(num_rows=1)
    app = fake_app(tmp_path, decoder, max_waiting_requests=1)
    with TestClient(app) as crowded, ThreadPoolExecutor(4) as pool:
        running = pool.submit(crowded.post, "/v1/generate", json=GENERATE)
        assert decoder.entered.wait(20)
        crowd = [pool.submit(crowded.post, "/v1/generate", json=GENERATE) for _ in range(3)]
        while sum(each.done() for each in crowd) < 2:
            time.sleep(0.01)
        decoder.gate.set()
        assert sorted(each.result().status_code for each in [running, *crowd]) == [200, 200, 429, 429]
        assert rejected(crowded.get("/metrics").text) == {"queue_full": 2}


def test_draining_and_a_dead_engine_refuse_requests_and_not_probes(tmp_path: Path) -> None:
    """503 is how `/ready` speaks; no user was turned away by it."""
    decoder = FakeDecoder()
    app = fake_app(tmp_path, decoder)
    with TestClient(app) as client:
        app.state.runtime.begin_drain()
        assert client.get("/ready").status_code == 503
        assert rejected(client.get("/metrics").text) == {}
        assert client.post("/v1/generate", json=GENERATE).status_code == 503
        assert rejected(client.get("/metrics").text) == {"draining": 1}


def test_probes_scrapes_and_readers_are_never_counted_as_refused(client: TestClient) -> None:
    """Whatever they are answered: without a key, on no route, with another method."""
    for path in ("/metrics", "/ready", "/version", "/nowhere", "/v1/generate", "/v1/models/none"):
        client.get(path)
        client.get(path, headers=BEARER)
    assert rejected(client.get("/metrics", headers=BEARER).text) == {}


def test_what_failed_or_was_left_after_it_had_begun_is_no_refusal(tmp_path: Path) -> None:
    """It is among the requests that ended."""
    decoder = FakeDecoder()
    decoder.fail_at_call = 3
    with TestClient(fake_app(tmp_path, decoder), raise_server_exceptions=False) as client:
        assert client.post("/v1/generate", json=GENERATE).status_code == 500
        text = client.get("/metrics").text
        assert rejected(text) == {}
        ended = (("error", "engine_failed"), ("finish_reason", "error"))
        assert samples(text)["attend_requests_total", ended] == 1


def test_a_reason_that_nobody_foresaw_counts_as_an_invalid_request() -> None:
    """The set of labels is bounded."""
    metrics = Metrics(CollectorRegistry(), "m", "0")
    metrics.count_rejection(ApiError(400, "new", code="newest").code or "")
    assert rejected(metrics.expose()[0].decode()) == {"invalid_request": 1}


def test_every_replica_says_how_many_there_should_be(tmp_path: Path) -> None:
    """As the service was started."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), replicas=3)) as client:
        assert samples(client.get("/metrics").text)["attend_replicas_wanted", ()] == 3


@pytest.mark.parametrize(("fails", "alive"), [(True, 0), (False, 1)])
def test_an_engine_that_was_told_to_stop_is_not_reported_dead(fails: bool, alive: float) -> None:
    """Or each shutdown would wake somebody; one that has failed is, also while it is being stopped."""
    engine, decoder = make_engine()
    decoder.always_fails = fails
    loop = EngineLoop(engine, max_waiting_requests=8, stall_timeout_s=30)
    metrics = Metrics(CollectorRegistry(), "m", "0")
    metrics.watch(loop)

    async def scenario() -> None:
        loop.start()
        stream = loop.submit(make_request([1, 2], 3))
        _ = [event async for event in stream.events()]
        loop.stop()

    asyncio.run(scenario())
    assert not loop.is_healthy
    assert samples(metrics.expose()[0].decode())["attend_engine_alive", ()] == alive
