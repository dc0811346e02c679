"""The standalone server's socket: heads are bounded in bytes and in time, and say why."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from service import http_protocol
from service.http_protocol import MAX_HEAD_BYTES, GuardedProtocol
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app
from tests.support.server import free_port

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def port(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that waits for heads half a second, over the decoder that a test names."""
    decoder = getattr(request, "param", FakeDecoder)()
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.5)
    config = uvicorn.Config(
        fake_app(tmp_path, decoder),
        port=free_port(),
        http=GuardedProtocol,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield config.port
    server.should_exit = True
    thread.join()


def connect(port: int) -> socket.socket:
    """A connection that gives up after ten seconds."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass  # closed while we still sent
    return b"".join(parts)


def code_of(answer: bytes) -> tuple[int, str]:
    """Status and the contract's code."""
    head, body = answer.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_head_without_end_is_cut_off(port: int) -> None:
    """Complete lines, but never the empty one: 431 after the bound, and the connection is closed."""
    with connect(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * (MAX_HEAD_BYTES // 8 + 1))
        assert code_of(read_all(connection)) == (431, "headers_too_large")


def test_a_head_that_takes_too_long_is_cut_off(port: int) -> None:
    """408 for whoever began, nothing for whoever never did."""
    with connect(port) as slow, connect(port) as silent:
        slow.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
        assert code_of(read_all(slow)) == (408, "headers_timeout")
        assert read_all(silent) == b""


def test_what_is_no_http_gets_the_contracts_body(port: int) -> None:
    """400, closed."""
    with connect(port) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert code_of(read_all(connection)) == (400, "invalid_http")


def test_requests_one_after_the_other_and_slow_answers_are_left_alone(port: int) -> None:
    """Keep-alive works; the time between two requests and the time of an answer are no head."""
    with connect(port) as connection:
        for _ in range(3):
            connection.sendall(REQUEST)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)
        body = json.dumps({"prompt": "hi", "max_tokens": 400, "stream": True}).encode()
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body[:10])
        time.sleep(0.7)  # a slow body is the app's business
        connection.sendall(body[10:])
        assert b"[DONE]" in read_all(connection)


class SlowDecoder(FakeDecoder):
    """Takes its time for every token."""

    def decode(self, token_ids: Any, past_tokens: Any) -> Any:
        """As the fake, later."""
        time.sleep(0.2)
        return super().decode(token_ids, past_tokens)


@pytest.mark.parametrize("port", [SlowDecoder], indirect=True)
def test_an_answer_may_take_longer_than_a_head(port: int) -> None:
    """The timer is the head's: a stream of a second and a half goes on to its end."""
    body = json.dumps({"prompt": "hi", "max_tokens": 8, "stream": True}).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with connect(port) as connection:
        connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" in answer
    assert b"headers_timeout" not in answer


def test_a_body_larger_than_a_head_may_be_is_the_apps_business(port: int) -> None:
    """Read in one piece with its head or not: the app answers, here that the prompt is too long."""
    body = json.dumps({"prompt": "x" * 300_000}).encode()
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with connect(port) as connection:
        connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
        assert code_of(read_all(connection)) == (400, "context_length_exceeded")
