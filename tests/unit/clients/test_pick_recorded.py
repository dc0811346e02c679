"""Picking recorded requests: one of each shape with history, and nothing in them that names a place."""

from typing import Any

from tests.clients.pick_recorded import pick, sanitised

CHAT = "POST /v1/chat/completions"
CALL_ID = "call_0123456789abcdef0123456789abcdef"


def exchange(**request: Any) -> dict[str, Any]:
    """A recorded exchange."""
    return {"client": "one", "route": CHAT, "status": 200, "request": request}


def turns(text: str, **members: Any) -> list[dict[str, Any]]:
    """A conversation with an answer in it."""
    return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text, **members}]


def test_one_request_of_each_shape_with_history_is_kept() -> None:
    """Other texts make no other shape; other members, nulls and streaming do."""
    exchanges = [
        exchange(messages=turns("a")),
        exchange(messages=turns("b")),
        exchange(messages=turns("b", name=None)),
        exchange(messages=turns("b", name="one")),
        exchange(messages=turns("b"), stream=True),
        exchange(messages=[{"role": "user", "content": "hi"}]),
        exchange(input=[{"type": "function_call_output", "call_id": "c", "output": "o"}]),
        exchange(input="hi"),
        {"client": "one", "route": "GET /v1/models", "status": 200, "request": ""},
    ]
    kept = [item["request"] for item in pick(exchanges)]
    assert kept == [exchanges[index]["request"] for index in (0, 2, 3, 4, 6)]


def test_ids_are_numbered_and_addresses_are_removed() -> None:
    """The same id keeps its number; the name of JSON schema's draft is no address."""
    draft = "http://json-schema.org/draft-07/schema#"
    request = {"messages": [{"id": CALL_ID, "text": f"{CALL_ID} see https://example.org/x for more"}], "$schema": draft}
    message = {"id": "call_1", "text": "call_1 see (address) for more"}
    assert sanitised(request) == {"messages": [message], "$schema": draft}
