"""What guards `attend serve --standalone` from strangers and callers from each other: keys, limits, headers."""

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from model.bundle import Bundle
from tests.support.server import Server, run_attend, running_server

MODEL_ID = "smollm2-135m-instruct"
# A name for each test that spends what its key is allowed, so that they do not disturb each other.
KEYS = {name: secrets.token_hex(16) for name in ("alice", "bob", "carol", "dave")}
WRONG_KEY = secrets.token_hex(16)
REQUESTS_PER_MINUTE = 20  # a refused caller waits for 3 s at most
OPEN_PATHS = {"/health", "/ready"}
NUM_TRIES = 200  # a caller is refused long before, unless its requests take 3 s each

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server with keys and limits, which writes its request log."""
    options = ["--max-requests-per-minute", str(REQUESTS_PER_MINUTE), "--max-concurrent-requests", "2"]
    options += ["--log-requests"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ATTEND_API_KEYS", ",".join(f"{name}:{key}" for name, key in KEYS.items()))
        with running_server("--standalone", "--bundle", default_bundle.path, *options) as server:
            yield server


@pytest.fixture
def client_of(server: Server) -> Iterator[Callable[..., openai.OpenAI]]:
    """Make the official client with a key."""
    clients: list[openai.OpenAI] = []

    def make(key: str, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **options})
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that the server brings about."""
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        time.sleep(0.02)


def ask(client: openai.OpenAI) -> Any:
    """The smallest request that counts."""
    return client.completions.with_raw_response.create(model=MODEL_ID, prompt="x", max_tokens=1)


def ask_until_refused(client: openai.OpenAI) -> openai.RateLimitError:
    """Use up the key's minute."""
    for _ in range(NUM_TRIES):
        try:
            ask(client)
        except openai.RateLimitError as error:
            return error
    raise AssertionError(f"{NUM_TRIES} requests were all answered")


def routes(server: Server) -> list[tuple[str, str]]:
    """Method and path of everything that the service says it has, and of a route that it has not."""
    authorization = {"Authorization": f"Bearer {KEYS['alice']}"}
    paths = httpx.get(f"{server.url}/openapi.json", headers=authorization).json()["paths"]
    listed = [(method.upper(), path.replace("{model_id}", MODEL_ID)) for path in paths for method in paths[path]]
    return [*listed, ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/v1/none")]


def test_every_route_but_health_and_ready_needs_a_key(server: Server, client_of: Callable[..., openai.OpenAI]) -> None:
    """The client's own exception without a key and with a wrong one; whatever the route, known or not."""
    client = client_of(WRONG_KEY)
    headers_of = {"missing_api_key": {"Authorization": openai.Omit()}, "invalid_api_key": {}}
    found = routes(server)
    assert len(found) > 12
    for method, path in found:
        for code, headers in headers_of.items():
            send = partial(client.post if method == "POST" else client.get, options={"headers": headers})
            if path in OPEN_PATHS:
                assert send(server.url + path, cast_to=object) in ({"status": "ok"}, {"status": "ready"})
                continue
            with pytest.raises(openai.AuthenticationError) as refusal:
                send(server.url + path, cast_to=object)
            assert refusal.value.code == code, path
            assert refusal.value.type == "authentication_error"
            assert refusal.value.response.headers["www-authenticate"] == "Bearer"


def test_a_known_key_is_let_in_on_every_route(server: Server) -> None:
    """Answers of all kinds, but none that asks for a key."""
    authorization = {"Authorization": f"Bearer {KEYS['alice']}"}
    for method, path in routes(server):
        assert httpx.request(method, server.url + path, headers=authorization).status_code != 401, path


def test_a_known_key_completes(client_of: Callable[..., openai.OpenAI]) -> None:
    """With nothing but the client's own setting."""
    assert ask(client_of(KEYS["alice"])).parse().usage.completion_tokens == 1


def test_a_caller_over_its_minute_is_told_when_to_come_back_and_others_are_served(
    client_of: Callable[..., openai.OpenAI],
) -> None:
    """The client's RateLimitError, with both headers in agreement; another key has a minute of its own."""
    refusal = ask_until_refused(client_of(KEYS["bob"]))
    assert refusal.code == "requests_per_minute"
    assert refusal.type == "rate_limit_error"
    milliseconds = int(refusal.response.headers["retry-after-ms"])
    assert 0 < milliseconds <= 60_000 / REQUESTS_PER_MINUTE
    assert int(refusal.response.headers["retry-after"]) == -(-milliseconds // 1000)
    ask(client_of(KEYS["alice"]))


def test_the_client_that_may_retry_waits_by_itself_and_succeeds(client_of: Callable[..., openai.OpenAI]) -> None:
    """Two retries are enough, because the service says how long to wait."""
    client = client_of(KEYS["carol"], max_retries=2)
    answers = (ask(client) for _ in range(NUM_TRIES))
    retried = next(answer for answer in answers if answer.retries_taken > 0)
    assert retried.retries_taken == 1
    assert retried.parse().usage.completion_tokens == 1


def test_a_caller_with_too_many_at_a_time_is_refused_until_one_ends(
    server: Server, client_of: Callable[..., openai.OpenAI]
) -> None:
    """Streams hold their slots; leaving one gives it back."""
    client = client_of(KEYS["dave"])
    body = {"model": MODEL_ID, "prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    authorization = {"Authorization": f"Bearer {KEYS['dave']}"}
    with (
        httpx.Client(base_url=server.url, headers=authorization, timeout=60) as http,
        http.stream("POST", "/v1/completions", json=body) as first,
        http.stream("POST", "/v1/completions", json=body) as second,
    ):
        assert (first.status_code, second.status_code) == (200, 200)
        with pytest.raises(openai.RateLimitError) as refusal:
            ask(client)
        assert refusal.value.code == "concurrent_requests"
        assert refusal.value.response.headers["retry-after"] == "1"

    def is_served() -> bool:
        with contextlib.suppress(openai.RateLimitError):
            ask(client)
            return True
        return False

    wait_for(is_served, "a slot is free")


def test_keys_never_appear_in_what_the_server_prints(server: Server, client_of: Callable[..., openai.OpenAI]) -> None:
    """The request log has names; known and unknown keys stay out of it."""
    with pytest.raises(openai.AuthenticationError):
        ask(client_of(WRONG_KEY))
    ask(client_of(KEYS["alice"]))
    wait_for(lambda: '"key":"alice"' in server.output, "the request log names the caller")
    for key in (*KEYS.values(), WRONG_KEY):
        assert key not in server.output


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot be read"),
        ("# nobody yet\n", "holds no key"),
        ("secret-1\n", "line 1: the key has 8 characters"),
        ("secret-of-alice-1\nsecret-of-alice-1\n", "line 2: its key is that of"),
        ("secret of alice 12\n", "line 1: the key has a space"),
    ],
)
def test_a_bad_key_file_is_one_line_without_the_key(
    default_bundle: Bundle, tmp_path: Path, content: str | None, part: str
) -> None:
    """A service that was meant to be closed is not opened."""
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    result = run_attend("serve", "--standalone", "--bundle", default_bundle.path, "--api-keys-file", file)
    assert result.returncode != 0
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("attend: ")
    assert part in line
    assert "secret" not in result.stderr + result.stdout


def converse(server: Server, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """Send a request in pieces, asking for the server's health between them; return the answer's status and body."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
            assert httpx.get(f"{server.url}/health").status_code == 200
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            body = answer.read().partition(b"\r\n\r\n")[2]
    return status, json.loads(body)


HEAD = b"GET /health HTTP/1.1\r\nHost: attend\r\nConnection: close\r\n"


def test_headers_that_come_slowly_hold_up_nobody(server: Server) -> None:
    """Others are answered between the pieces, and the slow one in the end."""
    assert converse(server, *[HEAD[at : at + 16] for at in range(0, len(HEAD), 16)], b"\r\n") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD, b"X-Large: " + b"a" * 17_000 + b"\r\n\r\n"],
        [HEAD, *[b"X-Part-%d: " % number + b"a" * 2_000 + b"\r\n" for number in range(9)], b"\r\n"],
        [HEAD, b"".join(b"X-%d: a\r\n" % number for number in range(100)), b"\r\n"],
    ],
    ids=["one is too large", "together too large", "too many"],
)
def test_headers_beyond_the_limit_are_answered_431_and_the_server_goes_on(server: Server, pieces: list[bytes]) -> None:
    """Even on a route that is open to everybody."""
    status, body = converse(server, *pieces)
    assert status == 431
    assert body["error"]["code"] == "headers_too_large"
    assert httpx.get(f"{server.url}/health").status_code == 200
