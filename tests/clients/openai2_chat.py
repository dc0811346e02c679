"""The official Python client, major version 2: chat and completions, streamed and whole, models, typed errors.

Usage: python openai2_chat.py http://127.0.0.1:8000/v1
Prints the text as it comes, then one line of JSON. Runs in an environment of its own, which has openai 2 and nothing of
Attend's; the type checker reads it with the version that Attend's development environment has.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import openai

MODEL_ID = "smollm2-135m-instruct"
CHAT: Any = {
    "model": MODEL_ID,
    "messages": [{"role": "user", "content": "Name the capital of France."}],
    "temperature": 0,
}
COMPLETION: Any = {"model": MODEL_ID, "prompt": "One, two, three,", "temperature": 0, "max_tokens": 4}


def stream_chat(client: openai.OpenAI) -> dict[str, Any]:
    """A streamed chat: its pieces, the finish reason, the usage that comes last."""
    chunks = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    pieces: list[str] = []
    finish_reason = usage = None
    for chunk in chunks:
        for choice in chunk.choices:  # none in the last chunk
            if choice.delta.content:
                pieces.append(choice.delta.content)
                print(choice.delta.content, end="", flush=True)
            finish_reason = choice.finish_reason or finish_reason
        usage = chunk.usage or usage
    print()
    return {"pieces": pieces, "finish_reason": finish_reason, "usage": usage and usage.model_dump()}


def whole_chat(client: openai.OpenAI) -> dict[str, Any]:
    """The same chat in one answer."""
    answer = client.chat.completions.create(**CHAT)
    choice = answer.choices[0]
    return {
        "text": choice.message.content,
        "finish_reason": choice.finish_reason,
        "usage": answer.usage and answer.usage.model_dump(),
    }


def completions(client: openai.OpenAI) -> dict[str, Any]:
    """The older route, streamed and whole."""
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**COMPLETION, stream=True)]
    return {
        "text": client.completions.create(**COMPLETION).choices[0].text,
        "pieces": [text for text in pieces if text],
    }


def refusal(call: Callable[[], object]) -> dict[str, Any]:
    """The typed error that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "param": error.param,
            "code": error.code,
            "message": error.message,
        }
    raise AssertionError("not refused")


def main(base_url: str) -> None:
    """Use every call once and report."""
    with openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=30) as client:
        create = client.chat.completions.create
        report = {
            "version": openai.__version__,
            "streamed": stream_chat(client),
            "whole": whole_chat(client),
            "completions": completions(client),
            "models": [model.id for model in client.models.list()],
            "unknown_model": refusal(lambda: create(**CHAT | {"model": "other"})),
            "bad_temperature": refusal(lambda: create(**CHAT | {"temperature": 9})),
            "bad_temperature_streamed": refusal(lambda: create(**CHAT | {"temperature": 9}, stream=True)),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
