"""A minimal /v1/completions over a library: server-sent events in OpenAI's format, one thread per connection.

The engine runs in one thread of its own and hands each request's tokens to the thread that answers it through a queue.
"""

import argparse
import json
import os
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

from loadtest.peers.shims.token_bytes import TextStream, token_bytes

MODEL = "peer"


@dataclass(eq=False)
class Submission:
    """One request on its way through the engine. `events` gets lists of token ids, then None, or an exception."""

    prompt: str | list[int]
    max_tokens: int
    ignore_eos: bool
    events: "queue.SimpleQueue[list[int] | Exception | None]" = field(default_factory=queue.SimpleQueue)
    prompt_tokens: int = 0
    is_abandoned: bool = False  # the client has gone


class Backend(Protocol):
    """What a library must offer. It is made and called in the engine thread alone."""

    def begin(self, submission: Submission) -> None:
        """Take a request into the engine; sets `prompt_tokens`."""

    def step(self) -> bool:
        """Advance; put tokens and ends into the submissions' queues. False: there was nothing to do."""

    def score(self, token_ids: Sequence[int]) -> list[float | None]:
        """Log-probability of each token given those before it; None for the first."""


def parse_arguments(description: str) -> argparse.Namespace:
    """The options that all shims share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True, help="requests computed together at most")
    parser.add_argument("--max-context-tokens", type=int, required=True)
    parser.add_argument("--no-prefix-cache", action="store_true")
    return parser.parse_args()


class EngineThread(threading.Thread):
    """The only thread that touches the library."""

    def __init__(self, make_backend: Callable[[], Backend]) -> None:
        super().__init__(daemon=True)
        self._make_backend = make_backend
        self.is_ready = threading.Event()
        self._inbox: queue.SimpleQueue[Submission | tuple[Sequence[int], queue.SimpleQueue[Any]]] = queue.SimpleQueue()

    def submit(self, submission: Submission) -> None:
        """Hand over a request; from any thread."""
        self._inbox.put(submission)

    def score(self, token_ids: Sequence[int]) -> list[float | None]:
        """Score a text; from any thread, waits.

        Raises:
            Exception: whatever the library raised.
        """
        reply: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox.put((token_ids, reply))
        result = reply.get()
        if isinstance(result, Exception):
            raise result
        return list(result)

    def run(self) -> None:
        """Take what has arrived, step, sleep only when there is nothing to do. A step that fails ends the server."""
        is_busy = False
        try:
            backend = self._make_backend()
            self.is_ready.set()
            while True:
                while not is_busy or not self._inbox.empty():
                    self._take(backend, self._inbox.get())
                    is_busy = True
                is_busy = backend.step()
        finally:
            traceback.print_exc()
            os._exit(1)  # a server whose engine is dead must not look alive

    @staticmethod
    def _take(backend: Backend, item: Submission | tuple[Sequence[int], "queue.SimpleQueue[Any]"]) -> None:
        reply: queue.SimpleQueue[Any] = item.events if isinstance(item, Submission) else item[1]
        try:
            if isinstance(item, Submission):
                backend.begin(item)
            else:
                reply.put(backend.score(item[0]))
        except Exception as error:  # noqa: BLE001 - whatever a library raises belongs to the request
            traceback.print_exc()
            reply.put(error)


def serve(make_backend: Callable[[], Backend], tokenizer_json: Path, port: int) -> None:
    """Make the backend in its thread, then answer on 127.0.0.1 until stopped."""
    engine = EngineThread(make_backend)
    engine.start()
    engine.is_ready.wait()
    table = token_bytes(tokenizer_json)

    class Handler(CompletionHandler):
        pass

    Handler.engine, Handler.table = engine, table
    Server(("127.0.0.1", port), Handler).serve_forever()


class Server(ThreadingHTTPServer):
    """Room for all clients to connect at once."""

    request_queue_size = 256
    daemon_threads = True


class CompletionHandler(BaseHTTPRequestHandler):
    """GET /health, GET /v1/models, POST /v1/completions: streamed, or with `echo` and `logprobs` for scoring."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine: EngineThread
    table: Sequence[bytes]

    def log_message(self, *_: Any) -> None:
        """No line per request."""

    def do_GET(self) -> None:
        """Health and the model's name."""
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        """Complete or score."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            if body.get("echo"):
                self._score(body)
            elif body.get("stream"):
                self._stream(body)
            else:
                self._send(400, {"error": {"message": "stream must be true", "type": "invalid_request_error"}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _score(self, body: dict[str, Any]) -> None:
        try:
            logprobs = self.engine.score(body["prompt"])
        except Exception as error:  # noqa: BLE001 - the client is told, whatever it was
            self._send(500, {"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error"}})
            return
        self._send(200, {"choices": [{"index": 0, "text": "", "logprobs": {"token_logprobs": logprobs}}]})

    def _stream(self, body: dict[str, Any]) -> None:
        submission = Submission(body["prompt"], body.get("max_tokens", 16), bool(body.get("ignore_eos")))
        self.engine.submit(submission)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self._follow(submission)
        finally:
            submission.is_abandoned = True

    def _follow(self, submission: Submission) -> None:
        text, num_tokens, finish_reason = TextStream(self.table), 0, "stop"
        while (event := submission.events.get()) is not None:
            if isinstance(event, Exception):
                self._event({"error": {"message": f"{type(event).__name__}: {event}", "type": "server_error"}})
                return
            num_tokens += len(event)
            self._event({"choices": [{"index": 0, "text": text.add(event), "finish_reason": None}]})
        if num_tokens >= submission.max_tokens:
            finish_reason = "length"
        self._event({"choices": [{"index": 0, "text": "", "finish_reason": finish_reason}]})
        usage = {"prompt_tokens": submission.prompt_tokens, "completion_tokens": num_tokens}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(
            b"data: " + json.dumps({"object": "text_completion", "model": MODEL, **chunk}).encode() + b"\n\n"
        )

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
