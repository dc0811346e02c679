"""Talking to the HTTP API in tests: the smallest bodies, streams put together, errors taken apart."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.support.fake_service import MODEL_ID

Json = dict[str, Any]

COMPLETIONS, CHAT, GENERATE, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/generate", "/v1/responses"
LENGTH_NAMES = {RESPONSES: "max_output_tokens"}
ROUTES = (COMPLETIONS, CHAT, GENERATE, RESPONSES)


def body_for(route: str, prompt: str = "hi", max_tokens: int = 8, **fields: Any) -> Json:
    """A greedy request for a few tokens, in the route's own field names."""
    body: Json = {"temperature": 0, LENGTH_NAMES.get(route, "max_tokens"): max_tokens}
    if route != GENERATE:
        body["model"] = MODEL_ID
    match route:
        case "/v1/chat/completions":
            body["messages"] = [{"role": "user", "content": prompt}]
        case "/v1/responses":
            body["input"] = prompt
        case _:
            body["prompt"] = prompt
    return {**body, **fields}


def error_of(response: Any) -> Json:
    """The error of an answer, after checking that it is the contract's body and one line."""
    body = response.json()
    assert set(body) == {"error"}
    error: Json = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert isinstance(error["type"], str)
    return error


def events_of(response: Any) -> list[Json]:
    """The JSON of a stream's events, after checking the frames around them."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2] if not frame.startswith(":")]


def named_events_of(response: Any) -> list[Json]:
    """The events of a Responses stream, after checking names, numbers and that whatever is opened is closed."""
    assert response.status_code == 200, response.text
    *frames, empty = response.text.split("\n\n")
    assert empty == ""
    events: list[Json] = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    _check_items(events)
    return events


def _check_items(events: Sequence[Json]) -> None:
    """Items come one after the other: added, told piece by piece, done; the last event's output is all of them."""
    done: list[Json] = []
    told = ""
    for event in events[2:-1]:
        assert event["output_index"] == len(done), event
        match event["type"].removeprefix("response."):
            case "output_item.added":
                told = ""
            case "output_text.delta" | "function_call_arguments.delta":
                told += event["delta"]
            case "output_text.done":
                assert event["text"] == told
            case "function_call_arguments.done":
                assert event["arguments"] == told
            case "output_item.done":
                done.append(event["item"])
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert events[-1]["response"]["output"] == done


def folded_completion(events: Iterable[Mapping[str, Any]]) -> Json:
    """The unstreamed answer that a stream of completions comes to: its choices and its usage."""
    choices: dict[int, Json] = {}
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for piece in event["choices"]:
            whole = choices.setdefault(piece["index"], {**piece, "text": "", "logprobs": None, "finish_reason": None})
            assert whole["finish_reason"] is None, "nothing follows the end"
            whole["text"] += piece["text"]
            whole |= {"finish_reason": piece["finish_reason"], "stop_reason": piece["stop_reason"]}
            if piece["logprobs"] is not None:
                known = whole["logprobs"] or {name: [] for name in piece["logprobs"]}
                whole["logprobs"] = {name: known[name] + values for name, values in piece["logprobs"].items()}
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def folded_chat(events: Iterable[Mapping[str, Any]]) -> Json:
    """The unstreamed answer that a stream of a chat comes to: its choices and its usage."""
    choices: dict[int, Json] = {}
    usage = None
    for event in events:
        usage = event.get("usage") or usage
        for piece in event["choices"]:
            delta = piece["delta"]
            if piece["index"] not in choices:
                assert delta == {"role": "assistant", "content": ""}, "the first chunk opens the answer"
                message: Json = {"role": "assistant", "content": "", "refusal": None}
                choices[piece["index"]] = {**piece, "message": message, "logprobs": None}
                del choices[piece["index"]]["delta"]
                continue
            _add_delta(choices[piece["index"]], piece)
    for choice in choices.values():
        if choice["message"].get("tool_calls") and not choice["message"]["content"]:
            choice["message"]["content"] = None
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def _add_delta(choice: Json, piece: Mapping[str, Any]) -> None:
    assert choice["finish_reason"] is None, "nothing follows the end"
    message, delta = choice["message"], piece["delta"]
    message["content"] += delta.get("content", "")
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if "id" in call:
            assert call["index"] == len(calls)
            calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if piece["logprobs"] is not None:
        choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"]["content"] += piece["logprobs"]["content"]
    if piece["finish_reason"] is not None:
        choice |= {name: value for name, value in piece.items() if name not in ("delta", "logprobs", "index")}
