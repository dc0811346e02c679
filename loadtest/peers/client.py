"""The load client, a process of its own: N closed loops that stream completions and time every piece.

Separate from the process that watches the server, so that neither disturbs the other's clock. Reads one job as JSON
from standard input; writes a line of JSON when the window opens, one when it closes, and one with the `Observation`.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import httptools
import orjson

from loadtest.peers.answer import Answer, Observation
from loadtest.peers.prompts import SCENARIOS, PromptWriter

RETRY_S = 0.5
TICK_S = 0.25


@dataclass(frozen=True)
class Job:
    """One cell's load. `extra` goes into every request's body, for what not every server accepts."""

    port: int
    model: str
    scenario: str
    seed: str
    num_streams: int
    max_tokens: int
    warm_up_s: float  # the streams start one after the other over this time, then the window opens
    window_s: float
    longest_window_s: float  # the window goes on so long when fewer answers than streams have ended
    drain_s: float
    extra: dict[str, Any]


class StreamProtocol(asyncio.Protocol):
    """One request on a connection of its own; follows the reply's server-sent events."""

    def __init__(self, request: bytes) -> None:
        self.answer = Answer(begun_s=time.monotonic())
        self.is_over = asyncio.get_running_loop().create_future()
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError, KeyError, TypeError) as error:
            self._end(f"unreadable reply: {type(error).__name__}: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """A reply must have ended before its connection does."""
        self._end(f"connection lost: {exc or 'closed by the server'}")

    def on_body(self, body: bytes) -> None:
        """Read the events that are complete; called by the parser."""
        *lines, self._rest = (self._rest + body).split(b"\n")
        if self._parser.get_status_code() != 200:
            self._rest = b"\n".join([*lines, self._rest])
            return
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip())

    def on_message_complete(self) -> None:
        """The reply is complete; called by the parser."""
        status = self._parser.get_status_code()
        if status != 200:
            self._end(f"HTTP {status}: {self._rest[:200].decode(errors='replace')}")
        else:
            self._end_well()

    def _end_well(self) -> None:
        self._end(None if self.answer.pieces_s else "an answer without text")

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":  # not every server sends it, nor does every reply say where it ends otherwise
            self._end_well()
            return
        chunk = orjson.loads(data)
        if chunk.get("error"):
            raise ValueError(f"error event: {str(chunk['error'])[:200]}")
        for choice in chunk.get("choices") or ():
            if choice.get("text"):
                self.answer.pieces_s.append(time.monotonic())
        if usage := chunk.get("usage"):
            self.answer.prompt_tokens = usage["prompt_tokens"]
            self.answer.completion_tokens = usage["completion_tokens"]

    def _end(self, failure: str | None) -> None:
        if self.is_over.done():
            return
        self.answer.ended_s = time.monotonic()
        self.answer.failure = failure
        self.is_over.set_result(None)
        if self._transport:
            self._transport.close()


class LoadClient:
    """Runs a job's streams and keeps every answer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answers: list[Answer] = []
        self._is_closing = False

    async def run(self) -> Observation:
        """Start the streams over the warm-up, hold the window open, wait for first pieces, leave."""
        streams = [asyncio.create_task(self._stream(index)) for index in range(self.job.num_streams)]
        await asyncio.sleep(self.job.warm_up_s)
        opened_s = time.monotonic()
        _say({"event": "opened"})
        await self._hold_open(opened_s)
        closed_s = time.monotonic()
        _say({"event": "closed"})
        self._is_closing = True
        await self._drain(opened_s, closed_s)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return Observation(opened_s, closed_s, time.monotonic(), self.answers)

    async def _hold_open(self, opened_s: float) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            elapsed_s = time.monotonic() - opened_s
            num_ended = sum(1 for answer in self.answers if (answer.ended_s or 0.0) > opened_s)
            if elapsed_s >= self.job.longest_window_s:
                return
            if elapsed_s >= self.job.window_s and num_ended >= self.job.num_streams:
                return

    async def _drain(self, opened_s: float, closed_s: float) -> None:
        """Wait for the first pieces of requests begun in the window: without them TTFT would flatter a slow server."""
        while time.monotonic() < closed_s + self.job.drain_s:
            waiting = [a for a in self.answers if a.begun_s >= opened_s and not a.pieces_s and a.ended_s is None]
            if not waiting:
                return
            await asyncio.sleep(TICK_S)

    async def _stream(self, index: int) -> None:
        prompts = PromptWriter(SCENARIOS[self.job.scenario], self.job.seed, index)
        await asyncio.sleep(index * self.job.warm_up_s / self.job.num_streams)
        while not self._is_closing:
            if await self.ask(prompts.next_prompt()):
                await asyncio.sleep(RETRY_S)

    async def ask(self, prompt: str) -> str | None:
        """Send one request and follow it to its end; the failure, if any."""
        loop = asyncio.get_running_loop()
        request = self._request(prompt)
        begun_s = time.monotonic()
        try:
            transport, protocol = await loop.create_connection(
                lambda: StreamProtocol(request), "127.0.0.1", self.job.port
            )
        except OSError as error:
            self.answers.append(Answer(begun_s, ended_s=time.monotonic(), failure=f"no connection: {error}"))
            return self.answers[-1].failure
        protocol.answer.begun_s = begun_s
        self.answers.append(protocol.answer)
        try:
            await protocol.is_over
        finally:
            transport.close()
        return protocol.answer.failure

    def _request(self, prompt: str) -> bytes:
        body = orjson.dumps(
            {
                "model": self.job.model,
                "prompt": prompt,
                "max_tokens": self.job.max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.job.extra,
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.job.port}\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    observation = asyncio.run(LoadClient(Job(**json.load(sys.stdin))).run())
    _say({"event": "observation", **asdict(observation)})
