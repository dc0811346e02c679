"""Paths with slashes too many, HEAD and OPTIONS: they find their route, and keys look at the same path as routes do."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from service.api.request_line import RequestLine, clean_path
from tests.support.api_client import body_for, error_of
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import MODEL_ID, fake_app

KEY = "alice-0123456789abcdef"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the whole app that follows no redirects: nothing may need one."""
    app = fake_app(tmp_path_factory.mktemp("line"), FakeDecoder())
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The same behind a key."""
    app = fake_app(tmp_path_factory.mktemp("locked"), FakeDecoder(), api_keys=f"alice:{KEY}")
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def ask(client: TestClient, method: str, path: str, **options: Any) -> Any:
    """Send a path as it is spelt: an absolute URL, since a client joins and so changes a relative one."""
    return client.request(method, f"http://testserver{path}", **options)


SPELLINGS = [
    ("/v1/chat/completions/", "a base URL and a path, both with a slash"),
    ("//v1/chat/completions", "a base URL that ends with a slash"),
    ("/v1//chat/completions", "OPENAI_BASE_URL=…/v1/ and a client that adds another"),
    ("/v1/chat//completions//", "both"),
    ("///v1///chat///completions///", "many"),
    ("/%2Fv1/chat/completions", "a slash that a proxy has encoded"),
]


@pytest.mark.parametrize(("path", "reason"), SPELLINGS, ids=[row[0] for row in SPELLINGS])
def test_slashes_too_many_find_their_route(client: TestClient, path: str, reason: str) -> None:
    """Without a redirect, which would lose the body."""
    response = ask(client, "POST", path, json=body_for("/v1/chat/completions"))
    assert response.status_code == 200, (reason, response.text)


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/v1//models", "//v1/models//", "/health/", "//metrics", "/version/", "/docs/", "/ready//"]
)
def test_routes_that_are_read_are_found_too(client: TestClient, path: str) -> None:
    """`/v1/models/` is the list, not the model without a name."""
    response = ask(client, "GET", path)
    assert response.status_code == 200
    if "models" in path:
        assert [card["id"] for card in response.json()["data"]] == [MODEL_ID]


@pytest.mark.parametrize("path", ["/v1/v1/models", "/V1/models", "/v1 /models", "/v1/model/"])
def test_nothing_but_slashes_is_forgiven(client: TestClient, path: str) -> None:
    """Another path is another path."""
    response = ask(client, "GET", path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "route_not_found"


MODEL_PATHS = [
    ("/v1/models/org/name", "as Hugging Face names models"),
    ("/v1/models/org%2Fname", "encoded, as careful clients do"),
    ("/v1/models/org%2fname/", "with a slash behind"),
    ("/v1/models//org//name", "doubled"),
    ("/v1/models/hf%3Aorg/name", "with a scheme"),
]


@pytest.mark.parametrize(
    "path", ["/v1/models/org/name", "/v1/models/org%2Fname", "/v1/models//org/name/", "/v1/models/org%2fname//"]
)
def test_a_served_model_with_a_slash_in_its_id_is_found(tmp_path: Path, path: str) -> None:
    """However the slash is written."""
    app = fake_app(tmp_path, FakeDecoder())
    manifest = app.state.generator.manifest
    named = replace(manifest, config=replace(manifest.config, model_id="org/name"))
    app.state.generator = replace(app.state.generator, manifest=named)
    with TestClient(app) as client:
        assert ask(client, "GET", path).json()["id"] == "org/name"


@pytest.mark.parametrize(("path", "reason"), MODEL_PATHS, ids=[row[0] for row in MODEL_PATHS])
def test_a_model_id_with_slashes_is_looked_up_whole(client: TestClient, path: str, reason: str) -> None:
    """The answer names it."""
    response = ask(client, "GET", path)
    assert response.status_code == 404, reason
    assert error_of(response)["code"] == "model_not_found"
    assert "org/name' is not served here" in error_of(response)["message"]


PROTECTED = ["//v1/models", "/v1/models/", "/%2Fv1/models", "//metrics", "/docs/", "/health/x", "//health//x/"]


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_no_spelling_of_a_path_gets_around_the_keys(locked: TestClient, method: str, path: str) -> None:
    """401, as for the plain path."""
    assert ask(locked, method, path).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/health/", "//health", "/%2Fready", "/ready//"])
def test_probes_need_no_key_however_they_are_spelt(locked: TestClient, path: str) -> None:
    """What is open is the route, and the keys see the same path as the routes."""
    assert ask(locked, "GET", path).status_code == ask(locked, "HEAD", path).status_code == 200
    assert ask(locked, "POST", path).status_code == 401


def test_the_metrics_count_by_route_however_a_path_is_spelt(client: TestClient) -> None:
    """A client's own spelling is never a label."""
    for path in ("//v1//models/", "/v1/models/some/thing", "/a/b/c", "/x//y/"):
        ask(client, "GET", path)
    text = client.get("/metrics").text
    assert 'route="/v1/models"' in text
    assert not any(spelling in text for spelling in ("//", "some/thing", "/a/b", "/x"))


READ_ROUTES = ["/health", "/ready", "/version", "/metrics", "/metrics/targets", "/v1/models", "/openapi.json", "/docs"]


@pytest.mark.parametrize("path", READ_ROUTES)
def test_head_is_answered_as_get_without_a_body(client: TestClient, path: str) -> None:
    """Same status, same type, nothing behind."""
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/generate/", "OPTIONS, POST"),
        ("/tokenize", "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/metrics/targets", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_says_what_a_route_answers_and_so_does_405(client: TestClient, path: str, allowed: str) -> None:
    """204 with `Allow`; any other method 405 with the same."""
    options, wrong = client.options(path), client.delete(path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allowed, b"")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed)
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert allowed in error_of(wrong)["message"]


def test_options_of_no_route_is_a_404(client: TestClient) -> None:
    """As any other method."""
    assert client.options("/nowhere").status_code == 404


@pytest.mark.parametrize(("given", "clean"), [("", "/"), ("//", "/"), ("/a", "/a"), ("/a/", "/a"), ("a//b", "/a/b")])
def test_a_clean_path_begins_with_a_slash_and_has_no_empty_part(given: str, clean: str) -> None:
    """Cleaning twice changes nothing."""
    assert clean_path(given) == clean == clean_path(clean)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_not_http_passes_through(kind: str) -> None:
    """The same scope, untouched."""
    seen: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        raise AssertionError("nothing is received")

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is sent")

    scope: Scope = {"type": kind}
    asyncio.run(RequestLine(app)(scope, receive, send))
    assert seen[0] is scope
