"""Bodies as clients send them: compressed, called something else than JSON, marked, cut off, unfolding without end."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from service.api.content_coding import MAX_MEMBERS, decoder_for
from service.api.errors import ApiError
from service.api.request_body import RequestBody
from tests.support.api_client import ROUTES, body_for, error_of
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app

LIMIT_BYTES = 65536
ALL_ROUTES = (*ROUTES, "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the whole app."""
    app = fake_app(tmp_path_factory.mktemp("body"), FakeDecoder(), max_body_bytes=LIMIT_BYTES)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def json_for(route: str) -> bytes:
    """A body that the route answers with 200."""
    bodies: dict[str, Any] = {"/tokenize": {"prompt": "hi"}, "/detokenize": {"tokens": [104, 105]}}
    return json.dumps(bodies.get(route) or body_for(route)).encode()


def deflated(data: bytes, wbits: int) -> bytes:
    """Compressed in one of zlib's formats."""
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(data) + compressor.flush()


CALLED_OTHERWISE = [
    ("application/x-www-form-urlencoded", "what curl -d says of everything"),
    ("text/plain", "what fetch says of a string"),
    ("text/plain;charset=UTF-8", "the same, as browsers write it"),
    (None, "some HTTP libraries say nothing"),
    ("", "or say it emptily"),
    ("application/octet-stream", "what wget and proxies say of bytes"),
    ("text/json", "an older name"),
    ("text/html; charset=utf-8", "what some proxies make of it"),
    ("multipart/form-data; boundary=x", "wrongly labelled, JSON all the same"),
    ("nonsense", "no media type at all"),
]


@pytest.mark.parametrize("route", ALL_ROUTES)
@pytest.mark.parametrize(("media", "reason"), CALLED_OTHERWISE, ids=[str(row[0]) for row in CALLED_OTHERWISE])
def test_json_is_read_whatever_it_is_called(client: TestClient, route: str, media: str | None, reason: str) -> None:
    """On every route that takes a body."""
    headers = {} if media is None else {"Content-Type": media}
    response = client.post(route, content=json_for(route), headers=headers)
    assert response.status_code == 200, (reason, response.text)


@pytest.mark.parametrize(
    "media",
    ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON ;charset=UTF8", "application/a+json"],
)
def test_json_called_json_is_read_with_any_parameters(client: TestClient, media: str) -> None:
    """Names have no case, charsets change nothing."""
    response = client.post("/v1/generate", content=json_for("/v1/generate"), headers={"Content-Type": media})
    assert response.status_code == 200, response.text


NO_JSON = [
    ("application/x-www-form-urlencoded", b"prompt=hi&max_tokens=3", "a real form"),
    (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="p"\r\n\r\nhi\r\n--x--',
        "a file",
    ),
    ("text/plain", b"prompt=hi", "text"),
    ("application/xml", b"<prompt>hi</prompt>", "another language"),
    ("application/yaml", b"prompt: hi", "a third"),
    ("text/plain", b"[1, 2]", "JSON, but no object"),
]


@pytest.mark.parametrize("route", ALL_ROUTES)
@pytest.mark.parametrize(("media", "body", "reason"), NO_JSON, ids=[row[2] for row in NO_JSON])
def test_what_is_no_json_is_refused_by_its_type(
    client: TestClient, route: str, media: str, body: bytes, reason: str
) -> None:
    """400 that names what was sent and what to send."""
    response = client.post(route, content=body, headers={"Content-Type": media})
    assert response.status_code == 400, reason
    error = error_of(response)
    assert error["code"] == "invalid_json"
    assert f"sent as {media.partition(';')[0]} and is no JSON object" in error["message"]
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize("media", ["text/plain", "application/json", None])
@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b" \n\t", b"\r\n\r\n"])
def test_a_byte_order_mark_and_space_before_a_body_are_no_part_of_it(
    client: TestClient, prefix: bytes, media: str | None
) -> None:
    """Editors on Windows write the one, here-documents the other."""
    headers = {} if media is None else {"Content-Type": media}
    response = client.post("/v1/generate", content=prefix + json_for("/v1/generate"), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("media", ["text/plain", "application/json", None])
def test_broken_json_is_called_broken_whatever_its_type(client: TestClient, media: str | None) -> None:
    """A body that means to be JSON gets JSON's message."""
    headers = {} if media is None else {"Content-Type": media}
    error = error_of(client.post("/v1/generate", content=b'{"prompt": ', headers=headers))
    assert error["code"] == "invalid_json"
    assert "not valid JSON" in error["message"]


PLAIN = json_for("/v1/generate")
HALVES = PLAIN[:10], PLAIN[10:]
CODED = [
    ("gzip", gzip.compress(PLAIN), "the usual one"),
    ("GZIP", gzip.compress(PLAIN), "names have no case"),
    ("x-gzip", gzip.compress(PLAIN), "its old name"),
    ("gzip", b"".join(gzip.compress(half) for half in HALVES), "two members, as cat a.gz b.gz makes"),
    ("gzip", gzip.compress(PLAIN) + bytes(512), "padded with zeros, as tapes are"),
    ("gzip", gzip.compress(b"\xef\xbb\xbf" + PLAIN), "with a mark inside"),
    ("gzip", gzip.compress(PLAIN, 0), "stored, not compressed"),
    ("deflate", deflated(PLAIN, 15), "as the standard says"),
    ("deflate", deflated(PLAIN, -15), "as some clients do it"),
    ("identity", PLAIN, "nothing done, and said so"),
    ("identity, gzip", gzip.compress(PLAIN), "a list with one that changes something"),
    ("", PLAIN, "empty"),
]


@pytest.mark.parametrize(("coding", "body", "reason"), CODED, ids=[row[2] for row in CODED])
@pytest.mark.parametrize("media", ["application/json", "text/plain"])
def test_a_compressed_body_is_read(client: TestClient, coding: str, body: bytes, reason: str, media: str) -> None:
    """The answer is that of the plain body."""
    headers = {"Content-Type": media, "Content-Encoding": coding}
    response = client.post("/v1/generate", content=body, headers=headers)
    assert response.status_code == 200, (reason, response.text)
    plain = client.post("/v1/generate", content=PLAIN, headers={"Content-Type": "application/json"})
    assert response.json()["text"] == plain.json()["text"]


def test_a_compressed_body_may_come_in_any_pieces(client: TestClient) -> None:
    """Without a declared length, a byte at a time."""
    body = gzip.compress(HALVES[0]) + gzip.compress(HALVES[1])
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    pieces = (body[at : at + 1] for at in range(len(body)))
    assert client.post("/v1/generate", content=pieces, headers=headers).status_code == 200


UNREAD = ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "aes128gcm", "utf-8", "gz", "*"]


@pytest.mark.parametrize("route", ["/v1/generate", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("coding", UNREAD)
def test_another_coding_is_refused_by_name(client: TestClient, route: str, coding: str) -> None:
    """415, the body not even looked at, and what is read instead."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = client.post(route, content=b"\x00\x01", headers=headers)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate, identity"
    error = error_of(response)
    assert error["code"] == "unsupported_encoding"
    assert f"'{coding}'" in error["message"]


BROKEN = [
    ("gzip", gzip.compress(PLAIN)[:-1], "ends too early", "without its last byte"),
    ("gzip", gzip.compress(PLAIN)[:5], "ends too early", "within its head"),
    ("gzip", gzip.compress(PLAIN)[:-8], "ends too early", "without its checksum"),
    ("gzip", gzip.compress(PLAIN)[:-8] + bytes(8), "damaged", "with another checksum"),
    ("gzip", PLAIN, "damaged", "not compressed at all"),
    ("gzip", gzip.compress(PLAIN) + b"more", "damaged", "with something behind it"),
    ("gzip", gzip.compress(PLAIN) + gzip.compress(b" ")[:12], "ends too early", "with half a second member"),
    ("gzip", gzip.compress(b"") * (MAX_MEMBERS + 1), "too many members", "made of nothing, many times"),
    ("deflate", deflated(PLAIN, 15)[:-3], "ends too early", "cut off"),
    ("deflate", deflated(PLAIN, 15) * 2, "follows its end", "twice"),
    ("deflate", b"\xff\xff\xff", "damaged", "noise"),
]


@pytest.mark.parametrize(("coding", "body", "message", "reason"), BROKEN, ids=[row[3] for row in BROKEN])
def test_a_damaged_body_is_a_400_that_says_how(
    client: TestClient, coding: str, body: bytes, message: str, reason: str
) -> None:
    """Never a 500, never half a body taken for a whole one."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = client.post("/v1/generate", content=body, headers=headers)
    assert response.status_code == 400, reason
    error = error_of(response)
    assert error["code"] == "invalid_encoding"
    assert message in error["message"]


BOMB = gzip.compress(bytes(50_000_000))
BOMBS = [
    ("gzip", BOMB, "one member"),
    ("gzip", gzip.compress(bytes(LIMIT_BYTES + 1)), "one byte over"),
    ("gzip", gzip.compress(bytes(40_000)) * 2, "two halves, each allowed"),
    ("gzip", gzip.compress(bytes(LIMIT_BYTES)) + gzip.compress(b" "), "full, and a space more"),
    ("deflate", deflated(bytes(50_000_000), 15), "as deflate"),
    ("deflate", deflated(bytes(50_000_000), -15), "as bare deflate"),
]


@pytest.mark.parametrize(("coding", "body", "reason"), BOMBS, ids=[row[2] for row in BOMBS])
def test_a_body_that_unfolds_beyond_the_limit_is_refused(
    client: TestClient, coding: str, body: bytes, reason: str
) -> None:
    """413, as for a plain one of that size."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = client.post("/v1/generate", content=body, headers=headers)
    assert response.status_code == 413, reason
    assert error_of(response)["code"] == "body_too_large"


def test_a_body_that_unfolds_to_the_limit_is_read(client: TestClient) -> None:
    """The last byte allowed is allowed."""
    body = gzip.compress(PLAIN + b" " * (LIMIT_BYTES - len(PLAIN)))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post("/v1/generate", content=body, headers=headers).status_code == 200


def test_a_bomb_is_never_held_in_memory() -> None:
    """Fifty megabytes in zeros take no more than the limit and what zlib itself needs."""
    tracemalloc.start()
    try:
        decoder = decoder_for(["gzip"], LIMIT_BYTES)
        with pytest.raises(ApiError):
            decoder.feed(BOMB)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT_BYTES
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_decoded_or_refused(pieces: list[bytes], coding: str) -> None:
    """No other exception, whatever comes."""
    decoder = decoder_for([coding], 1000)
    with suppress(ApiError):
        assert sum(len(decoder.feed(piece)) for piece in pieces) <= 1000
        decoder.finish()


def read_through(messages: list[Message]) -> list[Message]:
    """What an app that reads until the client leaves gets of these messages."""
    received: list[Message] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while not received or received[-1]["type"] == "http.request":
            received.append(await receive())

    async def receive() -> Message:
        return messages.pop(0)

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is answered")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(RequestBody(app, LIMIT_BYTES)(scope, receive, send))
    return received


def test_a_body_reaches_the_app_in_one_piece_and_then_the_clients_leaving() -> None:
    """What follows the body is passed on as it is."""
    pieces: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]
    pieces += [{"type": "http.request", "body": b"}"}, {"type": "http.disconnect"}]
    assert read_through(pieces) == [
        {"type": "http.request", "body": b"{}", "more_body": False},
        {"type": "http.disconnect"},
    ]


def test_a_client_that_leaves_within_its_body_is_seen_leaving() -> None:
    """Half a body is no body."""
    half: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert read_through(half) == [{"type": "http.disconnect"}]


def test_a_route_that_takes_no_body_is_not_bothered_by_one(client: TestClient) -> None:
    """Headers about a body that nobody reads refuse nothing."""
    response = client.request("GET", "/v1/models", headers={"Content-Encoding": "br", "Content-Type": "image/png"})
    assert response.status_code == 200
