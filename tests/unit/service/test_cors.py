"""Web pages of other origins: off by default, and where they are let in, every answer says so."""

import asyncio
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from service.api.cors import Cors
from service.api.generation import Generator
from service.settings import Settings
from tests.support.api_client import body_for, error_of
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app

KEY = "alice-0123456789abcdef"
PAGE, STRANGER = "https://app.example", "https://evil.example"
ORIGINS = f"{PAGE}, http://localhost:5173/"
EXPOSED = ("x-request-id", "x-process-time", "Server-Timing", "Retry-After", "retry-after-ms")
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


def client_of(folder: Path, **settings: Any) -> TestClient:
    """A client of the whole app."""
    return TestClient(fake_app(folder, FakeDecoder(), **settings), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Two origins are listed."""
    with client_of(tmp_path_factory.mktemp("cors"), cors_origins=ORIGINS, max_body_bytes=2048) as client:
        yield client


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The same with a key, and a limit that is soon reached."""
    folder = tmp_path_factory.mktemp("locked")
    keyed = {"api_keys": f"alice:{KEY}", "max_requests_per_minute": 1}
    with client_of(folder, cors_origins=ORIGINS, **keyed) as client:
        yield client


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/generate", "/v1/models", "/nowhere", "/tokenize/"])
@pytest.mark.parametrize("origin", [PAGE, "http://localhost:5173"])
def test_a_preflight_needs_no_key(locked: TestClient, route: str, origin: str) -> None:
    """Browsers send none with it; whatever header the page wants to send is allowed."""
    response = locked.options(route, headers={"Origin": origin, **PREFLIGHT})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "Origin" in response.headers["vary"]
    assert response.headers["x-request-id"]


def test_a_page_on_the_internet_may_call_a_service_on_the_own_machine(client: TestClient) -> None:
    """Browsers ask for that apart."""
    headers = {"Origin": PAGE, **PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    assert client.options("/v1/generate", headers=headers).headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("origin", [STRANGER, "null", "https://app.example.evil.example", "https://app.example:8443"])
def test_a_preflight_from_elsewhere_is_refused(client: TestClient, origin: str) -> None:
    """In the contract's body, and without the header that would let the browser go on."""
    response = client.options("/v1/generate", headers={"Origin": origin, **PREFLIGHT})
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    assert error_of(response)["code"] == "cors_refused"


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_a_preflight_for_a_method_that_no_route_has_is_refused(client: TestClient, method: str) -> None:
    """Of those that need one; the others are the routes' business."""
    headers = {"Origin": PAGE, "Access-Control-Request-Method": method}
    assert client.options("/v1/generate", headers=headers).status_code == 400


def test_every_kind_of_answer_may_be_read_by_the_page(
    client: TestClient, locked: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors above all, whichever layer answers: without the header a page sees nothing but "network error"."""
    origin = {"Origin": PAGE}
    bearer = {**origin, "Authorization": f"Bearer {KEY}"}
    body = body_for("/v1/generate")
    answers = {
        200: client.post("/v1/generate", json=body, headers=origin),
        400: client.post("/v1/generate", json={}, headers=origin),
        401: locked.post("/v1/generate", json=body, headers=origin),
        404: client.get("/nowhere", headers=origin),
        405: client.get("/v1/generate", headers=origin),
        413: client.post("/v1/generate", json={"prompt": "x" * 3000}, headers=origin),
        415: client.post("/v1/generate", content=b"x", headers={**origin, "Content-Encoding": "br"}),
        431: client.get("/v1/models", headers={**origin, "x": "y" * 20_000}),
    }
    locked.post("/v1/generate", json=body, headers=bearer)
    answers[429] = locked.post("/v1/generate", json=body, headers=bearer)
    monkeypatch.setattr(Generator, "check_model", lambda *_: 1 / 0)
    answers[500] = client.post("/v1/generate", json=body, headers=origin)
    assert {status: answer.status_code for status, answer in answers.items()} == {status: status for status in answers}
    for answer in answers.values():
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert set(EXPOSED) <= set(answer.headers["access-control-expose-headers"].split(", "))
    assert answers[429].headers["retry-after-ms"]


def test_a_stream_may_be_read_by_the_page(client: TestClient) -> None:
    """Its headers go out before anything is known of its end."""
    body = body_for("/v1/chat/completions", stream=True)
    response = client.post("/v1/chat/completions", json=body, headers={"Origin": PAGE})
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "[DONE]" in response.text


def test_an_origin_that_is_not_listed_gets_answers_that_its_browser_hides(client: TestClient) -> None:
    """The protocol's way: the header is missing. Programs, which send no origin, never see any of it."""
    for headers in ({"Origin": STRANGER}, {}):
        response = client.post("/v1/generate", json=body_for("/v1/generate"), headers=headers)
        assert response.status_code == 200
        assert "access-control-allow-origin" not in response.headers


def test_it_is_off_unless_origins_are_listed(tmp_path: Path) -> None:
    """No header, and a preflight is an OPTIONS like any other."""
    with client_of(tmp_path) as client:
        answers = [
            client.options("/v1/generate", headers={"Origin": PAGE, **PREFLIGHT}),
            client.post("/v1/generate", json=body_for("/v1/generate"), headers={"Origin": PAGE}),
        ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_star_lets_every_page_in(tmp_path: Path) -> None:
    """With a star in the answer, also for a page from a file."""
    with client_of(tmp_path, cors_origins="*") as client:
        for origin in (PAGE, STRANGER, "null"):
            preflight = client.options("/v1/generate", headers={"Origin": origin, **PREFLIGHT})
            answer = client.post("/v1/generate", content=b'{"prompt": "hi"}', headers={"Origin": origin})
            assert preflight.status_code == answer.status_code == 200
            assert {each.headers["access-control-allow-origin"] for each in (preflight, answer)} == {"*"}


SIMPLE = [
    ("text/plain", "what fetch sends of a string"),
    ("text/plain; application/json", "a type that only looks like JSON's"),
    ("application/x-www-form-urlencoded", "what a form sends"),
    ("multipart/form-data; boundary=x", "what a form with a file sends"),
    (None, "what fetch sends of bytes"),
    ("TEXT/PLAIN", "in capitals"),
]


@pytest.mark.parametrize(("media", "reason"), SIMPLE, ids=[str(row[0]) for row in SIMPLE])
@pytest.mark.parametrize("setting", [None, ORIGINS])
def test_a_strangers_page_cannot_send_work_without_asking(
    tmp_path: Path, setting: str | None, media: str | None, reason: str
) -> None:
    """Browsers send these without a preflight, so the service refuses them itself: 403, nothing is computed."""
    decoder = FakeDecoder()
    headers = {"Origin": STRANGER, **({} if media is None else {"Content-Type": media})}
    with TestClient(fake_app(tmp_path, decoder, cors_origins=setting)) as client:
        response = client.post("/v1/generate", content=b'{"prompt": "hi"}', headers=headers)
    assert response.status_code == 403, reason
    assert error_of(response)["code"] == "origin_not_allowed"
    assert decoder.num_calls == 0


WELCOME = [
    ({}, "a program: it sends no origin"),
    ({"Origin": PAGE}, "a listed page"),
    ({"Origin": "http://testserver"}, "a page of the service itself"),
    ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"}, "the same behind a proxy that renames it"),
    ({"Origin": STRANGER, "Content-Type": "application/json"}, "a browser that has asked, or no browser"),
]


@pytest.mark.parametrize(("headers", "reason"), WELCOME, ids=[row[1] for row in WELCOME])
def test_everybody_else_may_send_json_by_any_name(client: TestClient, headers: dict[str, str], reason: str) -> None:
    """200."""
    response = client.post(
        "/v1/generate", content=b'{"prompt": "hi"}', headers={"Content-Type": "text/plain", **headers}
    )
    assert response.status_code == 200, reason


BAD_ORIGINS = [
    "app.example",
    "https://app.example/path",
    "https://*.example",
    "https://",
    "http://a b",
    "*, x",
    "http://u@h",
]


@pytest.mark.parametrize("value", BAD_ORIGINS)
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(value: str) -> None:
    """It would never match, and nobody would know why."""
    with pytest.raises(ValidationError, match="is no origin; write scheme://host"):
        Settings(cors_origins=value)


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        (None, ()),
        ("", ()),
        (" , ", ()),
        ("*", ("*",)),
        ("HTTPS://App.Example/", (PAGE,)),
        ("null,chrome-extension://abc", ("null", "chrome-extension://abc")),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
    ],
)
def test_origins_are_read_as_browsers_spell_them(value: str | None, origins: tuple[str, ...]) -> None:
    """In lower case, without a slash behind."""
    assert Settings(cors_origins=value).origins == origins


def test_no_token_of_a_stream_costs_a_coroutine_more() -> None:
    """What the server's `send` returns is handed on as it is, but for the start of the answer."""
    handed_on: list[Awaitable[None]] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            awaitable = send({"type": "http.response.body", "body": b"x", "more_body": True})
            assert awaitable is handed_on[-1]
            await awaitable

    async def call() -> None:
        async def receive() -> Message:
            raise AssertionError("nothing is received")

        def send(_message: Message) -> Awaitable[None]:
            handed_on.append(asyncio.sleep(0))
            return handed_on[-1]

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"origin", PAGE.encode())]}
        await Cors(app, [PAGE])(scope, receive, send)

    asyncio.run(call())
    assert len(handed_on) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("https://app.example:443", "https://app.example", id="the port that https has anyway"),
        pytest.param("http://localhost:80", "http://localhost", id="the port that http has anyway"),
        pytest.param("http://localhost:080/", "http://localhost", id="the same with a zero and a slash"),
        pytest.param("https://localhost:80", "https://localhost:80", id="the other scheme's port stays"),
        pytest.param("http://localhost:5173", "http://localhost:5173", id="a port that says something stays"),
        pytest.param("https://b\u00fccher.example", "https://xn--bcher-kva.example", id="an umlaut"),
        pytest.param("https://B\u00dcCHER.example:8443", "https://xn--bcher-kva.example:8443", id="capitals, a port"),
        pytest.param("http://[::1]:80", "http://[::1]", id="an address of version 6"),
        pytest.param("http://[::1]:3000", "http://[::1]:3000", id="the same with a port"),
        pytest.param("chrome-extension://abcdef", "chrome-extension://abcdef", id="an extension's"),
        pytest.param("NULL", "null", id="a file's"),
        pytest.param("*", "*", id="all"),
    ],
)
def test_origins_are_compared_as_browsers_spell_them(given: str, expected: str) -> None:
    """Another spelling of the same origin would never match."""
    assert Settings(cors_origins=given).origins == (expected,)


@pytest.mark.parametrize(
    "given", ["https://a..example", "https://:80", "http://x:99999", "http://x:port", "http://" + "a" * 64]
)
def test_an_origin_that_no_browser_could_send_is_refused(given: str) -> None:
    """By what it is, when the service starts."""
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=given)
