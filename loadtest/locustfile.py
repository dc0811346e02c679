"""Locust user that streams completions and reports what a reader of the stream would feel.

Locust's own HTTP clients time a reply as one block. A stream is judged by its first token and by the gaps after
it, so this user reads the events itself and fires its own: `TTFT`, `inter-token` and `e2e`, one row per endpoint.
"""

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, ClassVar

from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPSocketPoolResponse
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest import climb
from loadtest.load_steps import StreamEvent

CONNECT_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 120.0  # longest wait for the next byte: a long queue is slow, not dead
DEFAULT_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0  # an absurd Retry-After must not idle a user for the rest of the run

VOCABULARY = (
    "river stone amber quiet harbour lantern copper meadow signal winter garden thread marble engine morning paper "
    "island shadow timber orchid valley compass silver candle bridge cotton thunder window feather museum bottle "
    "planet saddle velvet beacon cellar ribbon market falcon pepper tunnel canvas hollow jacket magnet needle oyster "
    "pigeon quarry rocket summer teapot violin walnut yellow zipper anchor basket cavern desert"
)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # Locust's hooks have no types
def add_options(parser: LocustArgumentParser) -> None:
    """Adds the options of this file to Locust's command line and web form."""
    parser.add_argument(
        "--model-id", env_var="LOADTEST_MODEL_ID", default="smollm2-135m-instruct", help="Model to ask for."
    )
    parser.add_argument(
        "--max-tokens", env_var="LOADTEST_MAX_TOKENS", type=int, default=64, help="Longest answer, tokens."
    )
    parser.add_argument(
        "--prompt-seed", env_var="LOADTEST_PROMPT_SEED", type=int, default=0, help="Same seed, same prompts."
    )
    parser.add_argument(
        "--api-key", env_var="LOADTEST_API_KEY", default="", is_secret=True, help="Sent as a bearer token."
    )
    climb.add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]  # Locust's hooks have no types
def climb_when_asked(environment: Environment, **_: Any) -> None:
    """Leaves the load to `--steps` where it is given."""
    options: Any = environment.parsed_options
    if options.steps:
        climb.install(environment, environment.host or StreamingUser.host)


@dataclass(frozen=True)
class PromptSize:
    """A kind of prompt: its length in words and its share of the traffic."""

    num_words: int
    weight: int


SHORT = PromptSize(num_words=16, weight=5)
MEDIUM = PromptSize(num_words=150, weight=4)
LONG = PromptSize(num_words=600, weight=1)
PROMPT_SIZES = (SHORT, MEDIUM, LONG)


class PromptWriter:
    """Writes an endless, reproducible series of prompts.

    Words are drawn at random so that no two prompts share a prefix: a prefix cache would otherwise flatter the numbers.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._words = VOCABULARY.split()

    def next_prompt(self) -> str:
        """Returns the next prompt, its size drawn by weight."""
        (size,) = self._random.choices(PROMPT_SIZES, weights=[size.weight for size in PROMPT_SIZES])
        return "Tell a story with these words: " + " ".join(self._random.choices(self._words, k=size.num_words))


class StreamError(Exception):
    """The stream did not keep its contract. The text groups the failures in Locust's report, so it holds no ids."""


def server_sent_events(response: HTTPSocketPoolResponse) -> Iterator[tuple[bytes, bytes]]:
    """Yields (event name, data) the moment each data line arrives; the name is empty for ordinary events.

    One data line is one event: OpenAI's format never splits an event over several lines.
    """
    name = b""
    while line := response.readline(b"\n"):
        field, _, value = line.rstrip(b"\r\n").partition(b":")
        if not field and not value:
            name = b""
        elif field == b"event":
            name = value.strip()
        elif field == b"data":
            yield name, value.strip()


def decode_chunk(name: bytes, data: bytes) -> dict[str, Any]:
    """Returns one event's JSON object.

    Raises:
        StreamError: the event is an error, or no JSON object.
    """
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise StreamError("event is not JSON") from error
    if not isinstance(chunk, dict):
        raise StreamError("event is not a JSON object")
    if name == b"error" or chunk.get("error"):
        raise StreamError(f"error event: {error_text(chunk)}")
    return chunk


def error_text(body: dict[str, Any]) -> str:
    """Returns the code, else the type, of an OpenAI error body: what groups well, unlike its message."""
    error = body.get("error")
    if not isinstance(error, dict):
        return "unknown"
    return str(error.get("code") or error.get("type") or "unknown")


def new_text(choice: dict[str, Any]) -> str:
    """Returns the text that a choice adds, from either endpoint; a chat's first chunk adds none, only the role."""
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or ""


def retry_after_s(response: HTTPSocketPoolResponse) -> float | None:
    """Returns the seconds that the server asks to wait, or None when it does not say (or says it as a date)."""
    value = response.get("retry-after")
    return min(float(value), LONGEST_RETRY_S) if isinstance(value, str) and value.isdecimal() else None


def refusal_text(body: bytes) -> str:
    """Returns the error code of a reply that is no stream; a proxy in front may answer in something else than JSON."""
    try:
        return error_text(json.loads(body))
    except (ValueError, AttributeError):
        return "body is not an error object"


class StreamReader:
    """Follows one answer: reports its tokens as they come, then proves that it ended as a stream must."""

    def __init__(self, environment: Environment, endpoint: str) -> None:
        self._environment = environment
        self._endpoint = endpoint
        self._started = time.perf_counter()
        self._last_text_at: float | None = None
        self._completion_tokens: int | None = None
        self._is_finished = False

    def follow(self, response: HTTPSocketPoolResponse) -> None:
        """Reads the stream to its end.

        Raises:
            StreamError: an error event, or an end without a finish reason, a usage or `[DONE]`.
        """
        is_done = False
        for name, data in server_sent_events(response):
            if is_done:
                raise StreamError("event after [DONE]")
            # Read on after it: leaving before the server has closed the stream would look like a vanished client.
            is_done = data == b"[DONE]"
            if not is_done:
                self._take(decode_chunk(name, data))
        if not is_done:
            raise StreamError("stream ended without [DONE]")
        if not self._is_finished:
            raise StreamError("stream ended without a finish_reason")
        if self._completion_tokens is None:
            raise StreamError("stream ended without a usage")

    def _take(self, chunk: dict[str, Any]) -> None:
        try:
            for choice in chunk.get("choices") or ():
                if new_text(choice):
                    self._report_text()
                self._is_finished = self._is_finished or bool(choice.get("finish_reason"))
            if usage := chunk.get("usage"):
                self._completion_tokens = int(usage["completion_tokens"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StreamError("event has not the shape of a completion chunk") from error

    def _report_text(self) -> None:
        now = time.perf_counter()
        if self._last_text_at is None:
            self._fire(StreamEvent.FIRST_TEXT, now - self._started, num_tokens=1)
        else:
            self._fire(StreamEvent.TEXT_GAP, now - self._last_text_at, num_tokens=1)
        self._last_text_at = now

    def report_end(self, failure: Exception | None = None) -> None:
        """Fires the request's one `e2e` event."""
        self._fire(StreamEvent.END, time.perf_counter() - self._started, self._completion_tokens or 0, failure)

    def report_refusal(self, response: HTTPSocketPoolResponse) -> None:
        """Reports a reply that is no stream: as a failed `e2e`, or, for a full queue, in a row of its own.

        A 429 that says when to come back is the contract at work, so it must not count among the failures.
        """
        body = response.read()
        if response.status_code != HTTPStatus.TOO_MANY_REQUESTS:
            self.report_end(StreamError(f"HTTP {response.status_code}: {refusal_text(body)}"))
            return
        failure = StreamError("429 without a Retry-After in seconds") if retry_after_s(response) is None else None
        self._fire(StreamEvent.REFUSAL, time.perf_counter() - self._started, 0, failure)

    def _fire(self, name: StreamEvent, elapsed_s: float, num_tokens: int, failure: Exception | None = None) -> None:
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # Locust's hooks have no types
            request_type=self._endpoint,
            name=name.value,
            response_time=elapsed_s * 1000,
            response_length=num_tokens,
            exception=failure,
            context={},
        )


class StreamingUser(User):
    """A client that asks, reads its stream to the end, and asks again at once (a closed loop)."""

    host = "http://127.0.0.1:8000"
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def on_start(self) -> None:
        """Gives this user its own prompts; the worker's index keeps a distributed run from repeating them."""
        worker = getattr(self.environment.runner, "worker_index", 0)
        seed = f"{self._options.prompt_seed}/{worker}/{next(self._numbers)}"
        self._prompts = PromptWriter(seed)
        self._client = HTTPClient.from_url(
            self.host, connection_timeout=CONNECT_TIMEOUT_S, network_timeout=SILENCE_TIMEOUT_S
        )

    def on_stop(self) -> None:
        """Closes the connection of a stream that the end of the run cut short."""
        self._client.close()

    @task(3)
    def chat(self) -> None:
        """Streams POST /v1/chat/completions."""
        messages = [{"role": "user", "content": self._prompts.next_prompt()}]
        self._stream("chat", "/v1/chat/completions", {"messages": messages})

    @task(1)
    def completion(self) -> None:
        """Streams POST /v1/completions."""
        self._stream("completion", "/v1/completions", {"prompt": self._prompts.next_prompt()})

    @property
    def _options(self) -> Any:
        return self.environment.parsed_options

    def _stream(self, endpoint: str, path: str, prompt: dict[str, Any]) -> None:
        """Sends one request and reports its end, whatever it is; then waits where the server asked for it."""
        body = {
            "model": self._options.model_id,
            "max_tokens": self._options.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **prompt,
        }
        reader = StreamReader(self.environment, endpoint)
        try:
            with self._post(path, body) as response:
                if response.status_code == HTTPStatus.OK:
                    reader.follow(response)
                    reader.report_end()
                    return
                reader.report_refusal(response)
                pause_s = retry_after_s(response)
        except (StreamError, OSError, HTTPException) as failure:
            reader.report_end(failure)
            pause_s = None
        # A server that is down or full must not be hammered, nor the report filled with one failure.
        time.sleep(DEFAULT_RETRY_S if pause_s is None else pause_s)

    def _post(self, path: str, body: dict[str, Any]) -> HTTPSocketPoolResponse:
        # One connection per stream: a kept-alive one may be closed by the server during a Retry-After pause, and
        # a POST must not be sent twice, so the next request would fail for no fault of the server's.
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Connection": "close"}
        if self._options.api_key:
            headers["Authorization"] = f"Bearer {self._options.api_key}"
        return self._client.request("POST", path, json.dumps(body).encode(), headers)
