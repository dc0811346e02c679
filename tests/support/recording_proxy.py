"""A reverse proxy that writes down what clients send: each request's body and, where it was refused, the answer.

It stands between a client and a real server on 127.0.0.1. The first part of the path names the client, so that one
proxy serves several: `/langchain/v1/models` goes to `/v1/models`.
"""

import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.support.server import free_port

HOP_HEADERS = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})
METHODS = ["GET", "POST", "OPTIONS", "DELETE"]
START_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Recorder:
    """Forwards requests to one server and appends each exchange to a file, one line of JSON."""

    server_url: str
    path: Path
    client: httpx.AsyncClient

    async def forward(self, request: Request) -> StreamingResponse:
        """Send a request on; stream the answer back."""
        sender, _, rest = request.url.path.removeprefix("/").partition("/")
        body = await request.body()
        headers = {name: value for name, value in request.headers.items() if name not in HOP_HEADERS}
        url = httpx.URL(f"{self.server_url}/{rest}", query=request.url.query.encode())
        sent = self.client.build_request(request.method, url, headers=headers, content=body)
        answer = await self.client.send(sent, stream=True)
        exchange = {"client": sender, "route": f"{request.method} /{rest}", "status": answer.status_code}
        pieces = self._pieces(answer, exchange | {"request": _json_or_text(body)})
        kept = {name: value for name, value in answer.headers.items() if name not in HOP_HEADERS}
        return StreamingResponse(pieces, answer.status_code, kept)

    async def _pieces(self, answer: httpx.Response, exchange: dict[str, Any]) -> AsyncIterator[bytes]:
        read = b""
        try:
            async for piece in answer.aiter_raw():
                read += piece
                yield piece
        finally:
            await answer.aclose()
            line = json.dumps(exchange | {"answer": _json_or_text(read)}, ensure_ascii=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _json_or_text(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


@contextmanager
def recording_proxy(server_url: str, path: Path) -> Iterator[str]:
    """Run a proxy in front of a server; yields its URL, to which a client's name is appended."""
    recorder = Recorder(server_url, path, httpx.AsyncClient(timeout=None, trust_env=False))  # noqa: S113
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request, where somebody logs
    app = Starlette(routes=[Route("/{rest:path}", recorder.forward, methods=METHODS)])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        assert time.monotonic() < deadline_s, "the recording proxy did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
