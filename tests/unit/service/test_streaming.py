"""Events on the wire: chunks put together from encoded parts, and batches of events with an end in them."""

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.generation import Generation
from service.api.streaming import EventStream, UsageFrames
from service.engine.loop import RequestStream
from service.engine.request import FinishReason, Request, TokenEvent
from service.schemas.chat import ChatCompletionRequest
from tests.support.requests import make_request

BODY = ChatCompletionRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]})


class Choices:
    """A writer whose choices say what they were made of."""

    def __init__(self, *, is_plain: bool) -> None:
        self.is_plain = is_plain

    def opening(self) -> Iterable[dict[str, Any]]:
        """Nothing."""
        return ()

    def of_text(self, index: int, text: str) -> dict[str, Any]:
        """One piece."""
        return {"index": index, "delta": {"content": text}, "finish_reason": None}

    def chunks(self, index: int, event: TokenEvent) -> list[dict[str, Any]]:
        """One piece, if there is text."""
        return [self.of_text(index, event.text)] if event.text else []


def generation_of(stream: RequestStream | None = None) -> Generation:
    """As far as a stream looks at one."""
    fake = SimpleNamespace(id='a"b', created=7, model_id="modèle", stream=stream, closed=0)
    fake.take = lambda event: Generation.take(
        cast(Generation, SimpleNamespace(_indices={event.request: 0}, _num_told=[0])), event
    )
    fake.close = lambda: None
    return cast(Generation, fake)


def event_of(request: Request, text: str, reason: FinishReason | None = None, error: str | None = None) -> TokenEvent:
    """One event."""
    return TokenEvent(request, 1, text, 1, finish_reason=reason, error=error)


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=8))))
def test_plain_chunks_equal_those_encoded_whole(pieces: list[tuple[int, str]]) -> None:
    """Whatever the text and the answer's index: byte for byte."""
    request = make_request([1], 4)
    plain, whole = (
        UsageFrames(generation_of(), "chunk", BODY, Choices(is_plain=is_plain)) for is_plain in (True, False)
    )
    for index, text in pieces:
        event = event_of(request, text)
        expected = [orjson.dumps(payload) for payload in whole.write(index, event)]
        assert list(plain.write(index, event)) == expected


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.DEADLINE])
def test_events_before_a_failure_in_one_batch_are_sent(reason: FinishReason) -> None:
    """What came together with the failure is not lost, the failure is the last event, and no [DONE] follows."""
    request = make_request([1], 4)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def scenario() -> None:
        stream = RequestStream([request], lambda _request: None)
        for event in (event_of(request, "one"), event_of(request, " two"), event_of(request, "", reason, "it broke")):
            stream.deliver(event)
        frames = UsageFrames(generation_of(stream), "chunk", BODY, Choices(is_plain=True))
        answer = EventStream(generation_of(stream), frames)
        await answer({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    asyncio.run(scenario())
    events = [
        json.loads(part[6:]) for part in b"".join(message.get("body", b"") for message in sent).split(b"\n\n") if part
    ]
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == ["one", " two"]
    assert set(events[-1]) == {"error"}
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
