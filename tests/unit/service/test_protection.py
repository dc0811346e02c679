"""The middleware around a tiny app: who is let in, which id a request has, which headers are too much."""

import asyncio
import re
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import errors
from service.api.errors import ApiError
from service.api.keys import KeyRing
from service.api.middleware import LastResort
from service.api.protection import Authentication, HeaderLimit, RequestId
from tests.support.engines import Clock

KEY = "alice-0123456789abcdef"
RING = KeyRing.load(f"alice:{KEY}", None)
BEARER = {"Authorization": f"Bearer {KEY}"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]


def tiny_app() -> FastAPI:
    """Routes that show what the middleware has done, and ways to fail."""
    app = FastAPI()
    errors.install(app)

    @app.get("/health")
    @app.get("/ready")
    @app.get("/whoami")
    def whoami(request: Request) -> dict[str, Any]:
        return dict(request.state._state)

    @app.post("/refuse")
    def refuse() -> None:
        raise ApiError(418, "no")

    @app.get("/fail")
    def fail() -> None:
        raise KeyError("a secret of ours")

    return app


def client_of(app: ASGIApp) -> TestClient:
    """A client that neither raises the app's errors nor follows redirects."""
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False)


def guarded(ring: KeyRing = RING) -> TestClient:
    """The tiny app behind its keys."""
    return client_of(Authentication(tiny_app(), ring))


def send_raw(app: ASGIApp, headers: list[tuple[bytes, bytes]], method: str = "POST") -> list[Message]:
    """Send one request whose body must not be read, as no client library would write it."""
    sent: list[Message] = []

    async def receive() -> NoReturn:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/whoami", "headers": headers, "query_string": b""}
    run(app, scope, receive, send)
    return sent


def run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call an ASGI app to its end."""

    async def call() -> None:
        await app(scope, receive, send)

    asyncio.run(call())


class Inner:
    """An ASGI app that remembers the scopes it got and answers nothing."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)


def test_a_request_without_a_key_is_told_what_is_missing() -> None:
    """401 in the contract's body, with the challenge that HTTP wants."""
    response = guarded().get("/whoami")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"] == {
        "message": "an API key is needed; send it as Authorization: Bearer KEY",
        "type": "authentication_error",
        "param": None,
        "code": "missing_api_key",
    }


@pytest.mark.parametrize("value", ["", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer alice"])
def test_a_wrong_key_is_refused_and_not_repeated(value: str) -> None:
    """401 with its own code."""
    response = guarded().get("/whoami", headers={"Authorization": value})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "alice" not in response.text


def test_two_authorization_headers_are_none() -> None:
    """A proxy in front may have looked at the other one."""
    sent = send_raw(Authentication(Inner(), RING), [(b"authorization", f"Bearer {KEY}".encode())] * 2)
    assert sent[0]["status"] == 401
    assert b"invalid_api_key" in sent[1]["body"]


@settings(deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda key: b"Bearer " + key))
def test_any_bytes_in_the_header_are_answered_401(value: bytes) -> None:
    """Never an error of the service, and never an inner call."""
    inner = Inner()
    sent = send_raw(Authentication(inner, RING), [(b"authorization", value)])
    assert sent[0]["status"] == 401
    assert inner.scopes == []


def test_the_route_learns_the_callers_name() -> None:
    """The key's name, never the key."""
    assert guarded().get("/whoami", headers=BEARER).json() == {"caller": "alice"}


def test_with_an_open_ring_everybody_is_anonymous() -> None:
    """Also who sends a key: it was asked of nobody."""
    client = guarded(KeyRing())
    assert client.get("/whoami").json() == {"caller": "anonymous"}
    assert client.get("/whoami", headers=BEARER).json() == {"caller": "anonymous"}


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_readiness_may_be_read_without_a_key_and_nothing_else_done(path: str) -> None:
    """GET and HEAD pass (405 is the tiny app's answer); every other method is refused before the routes."""
    client = guarded()
    statuses = {method: client.request(method, path).status_code for method in METHODS}
    assert statuses == {**dict.fromkeys(METHODS, 401), "GET": 200, "HEAD": 405}


@pytest.mark.parametrize(
    "path",
    ["/", "/whoami", "/nowhere", "/docs", "/openapi.json", "/health/", "/health/x", "//health", "/Health", "/%2Fready"],
)
def test_every_other_path_is_refused_by_default(path: str) -> None:
    """By every method, OPTIONS too, and whether it exists or not, so that nothing tells which do."""
    client = guarded()
    assert {client.request(method, path).status_code for method in METHODS} == {401}


def test_the_body_of_a_refused_request_is_never_read() -> None:
    """`receive` is not called, for keys as for headers."""
    many = [(b"x", b"y")] * 101
    assert send_raw(Authentication(Inner(), RING), [])[0]["status"] == 401
    assert send_raw(HeaderLimit(Inner()), many)[0]["status"] == 431


@pytest.mark.parametrize("given_id", ["a", "A-z_0.9:", "req-1", "x" * 128])
def test_a_well_formed_request_id_is_kept(given_id: str) -> None:
    """On the answer and for the route."""
    response = client_of(RequestId(tiny_app())).get("/whoami", headers={"X-Request-Id": given_id})
    assert response.headers["x-request-id"] == given_id
    assert response.json() == {"request_id": given_id}


@pytest.mark.parametrize("given_ids", [[], [b""], [b"x" * 129], [b"a b"], [b"a\n"], [b"\xff"], [b"a", b"b"]])
def test_any_other_request_id_is_replaced(given_ids: list[bytes]) -> None:
    """None, empty, too long, other characters, two: the request goes on under an id of ours."""
    inner = Inner()
    send_raw(RequestId(inner), [(b"x-request-id", value) for value in given_ids])
    assert re.fullmatch(r"req-[0-9a-f]{32}", inner.scopes[0]["state"]["request_id"])


def test_each_request_gets_an_id_of_its_own() -> None:
    """Two requests, two ids."""
    client = client_of(RequestId(tiny_app()))
    assert client.get("/whoami").json() != client.get("/whoami").json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/whoami", 200), ("GET", "/nowhere", 404), ("POST", "/refuse", 418), ("GET", "/fail", 500)],
)
def test_every_answer_carries_its_id_and_its_time(method: str, path: str, status: int) -> None:
    """Errors too, also the one that nobody expected."""
    client = client_of(RequestId(LastResort(tiny_app())))
    response = client.request(method, path, headers={"X-Request-Id": "mine"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert re.fullmatch(r"\d+\.\d{6}", response.headers["x-process-time"])


def test_refusals_of_the_other_middleware_carry_an_id_too() -> None:
    """In the order of the service: the id outside, keys and headers inside."""
    client = client_of(RequestId(HeaderLimit(Authentication(tiny_app(), RING))))
    assert client.get("/whoami").headers["x-request-id"]
    assert client.get("/whoami", headers={"x": "y" * 20_000}).headers["x-request-id"]
    assert client.get("/whoami", headers={**BEARER, "X-Request-Id": "mine"}).json() == {
        "request_id": "mine",
        "caller": "alice",
    }


def test_the_process_time_ends_where_the_answer_begins() -> None:
    """What a stream takes afterwards is not in it; an id that something further inside set is replaced."""
    clock = Clock()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now_s += 1.5
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"another")]})
        clock.now_s += 10
        await send({"type": "http.response.body", "body": b"late"})

    response = client_of(RequestId(stream, clock)).get("/", headers={"X-Request-Id": "mine"})
    assert response.headers["x-process-time"] == "1.500000"
    assert response.headers.get_list("x-request-id") == ["mine"]
    assert response.text == "late"


@pytest.mark.parametrize(("num_headers", "status"), [(3, 200), (4, 431)])
def test_more_headers_than_allowed_are_refused(num_headers: int, status: int) -> None:
    """The limit itself is allowed; the contract's body says what was given and what is allowed."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    sent = send_raw(HeaderLimit(answer, max_headers=3), [(b"a", b"b")] * num_headers)
    assert sent[0]["status"] == status


def test_headers_larger_than_allowed_are_refused_and_the_limit_named() -> None:
    """Names count as values do."""
    inner = Inner()
    limit = HeaderLimit(inner, max_header_bytes=10)
    assert send_raw(limit, [(b"abc", b"def"), (b"g", b"hij")]) == []
    assert len(inner.scopes) == 1
    start, body = send_raw(limit, [(b"abc", b"def"), (b"gh", b"hij")])
    assert start["status"] == 431
    assert b'"code":"headers_too_large"' in body["body"]
    assert b"the request has 2 headers with 11 bytes; at most 100 headers with 10 bytes are allowed" in body["body"]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_not_http_passes_through(kind: str) -> None:
    """The same scope, untouched."""
    inner = Inner()
    scope: Scope = {"type": kind}
    for app in (Authentication(inner, RING), RequestId(inner), HeaderLimit(inner)):
        run(app, scope, None, None)  # type: ignore[arg-type]  # nothing is received or sent
    assert inner.scopes == [{"type": kind}] * 3
