"""Clients that are not ours, in environments of their own, stream a chat from `attend serve --standalone`.

Separate from test_standalone.py, whose client is the one of the development environment, because these are installed
from their registries into the cache at first use. The JavaScript ones are skipped where there is no Node.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.bundle import Bundle
from tests.support.client_environments import (
    CLIENTS,
    NodeMissingError,
    find_node,
    node_environment,
    python_environment,
    run,
)
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
ANSWER = "The capital of France is Paris."
USAGE = {"prompt_tokens": 36, "completion_tokens": 8, "total_tokens": 44}

CLIENT_TIMEOUT_S = 60.0

pytestmark = pytest.mark.model


def report_of(*command: str | Path) -> Any:
    """Run a client, and read the JSON in the last line that it prints."""
    return json.loads(run(*command, timeout_s=CLIENT_TIMEOUT_S).splitlines()[-1])


@pytest.fixture(scope="session")
def openai_2_python(cache_dir: Path) -> Path:
    """The interpreter of an environment that has version 2 of the Python client; made once."""
    return python_environment(cache_dir, "openai-2")


@pytest.fixture(scope="session")
def node() -> str:
    """The Node on the PATH, where it is there and new enough."""
    try:
        return find_node()
    except NodeMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def js_folder(node: str, cache_dir: Path) -> Path:
    """A copy of tests/clients/js with its packages."""
    return node_environment(cache_dir)


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server for all clients; they leave it as they found it."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server:
        yield server


def test_version_2_of_the_python_client_chats_completes_and_raises_its_own_errors(
    openai_2_python: Path, server: Server
) -> None:
    """Every call that it shares with version 3, which test_standalone.py uses."""
    report = report_of(openai_2_python, "-I", CLIENTS / "openai2_chat.py", f"{server.url}/v1")
    assert report["version"].startswith("2.")
    streamed, whole = report["streamed"], report["whole"]
    assert "".join(streamed["pieces"]) == whole["text"] == ANSWER
    assert len(streamed["pieces"]) > 1
    assert streamed["finish_reason"] == whole["finish_reason"] == "stop"
    assert streamed["usage"].items() >= USAGE.items()
    assert whole["usage"].items() >= USAGE.items()
    assert report["completions"]["text"].startswith(" four")
    assert "".join(report["completions"]["pieces"]) == report["completions"]["text"]
    assert len(report["completions"]["pieces"]) > 1
    assert report["models"] == [MODEL_ID]
    assert report["unknown_model"]["class"] == "NotFoundError"
    assert "is not served here" in report["unknown_model"]["message"]
    for refused in (report["bad_temperature"], report["bad_temperature_streamed"]):
        assert refused["class"] == "BadRequestError"
        assert refused["param"] == "temperature"


def test_the_javascript_client_chats_and_throws_its_own_errors(node: str, js_folder: Path, server: Server) -> None:
    """The npm package `openai`: streamed, whole, the models, and the class of what it throws."""
    report = report_of(node, js_folder / "openai_chat.mjs", f"{server.url}/v1")
    streamed, whole = report["streamed"], report["whole"]
    assert "".join(streamed["pieces"]) == whole["text"] == ANSWER
    assert len(streamed["pieces"]) > 1
    assert streamed["finishReason"] == whole["finishReason"] == "stop"
    assert streamed["usage"].items() >= USAGE.items()
    assert whole["usage"].items() >= USAGE.items()
    assert report["models"] == [MODEL_ID]
    assert report["unknownModel"]["class"] == "NotFoundError"
    assert report["unknownModel"]["code"] == "model_not_found"
    for refused in (report["badTemperature"], report["badTemperatureStreamed"]):
        assert refused["class"] == "BadRequestError"
        assert refused["param"] == "temperature"


def test_the_ai_sdk_streams_a_chat_with_its_finish_reason_and_usage(node: str, js_folder: Path, server: Server) -> None:
    """The npm package `ai` with `@ai-sdk/openai-compatible`: its names for the same things, and its one error class."""
    report = report_of(node, js_folder / "ai_chat.mjs", f"{server.url}/v1")
    streamed, whole = report["streamed"], report["whole"]
    assert "".join(streamed["pieces"]) == whole["text"] == ANSWER
    assert len(streamed["pieces"]) > 1
    assert streamed["finishReason"] == whole["finishReason"] == "stop"
    assert streamed["usage"] == whole["usage"] == {"inputTokens": 36, "outputTokens": 8, "totalTokens": 44}
    assert report["badTemperature"]["class"] == report["unknownModel"]["class"] == "AI_APICallError"
    assert report["badTemperature"]["status"] == 400
    assert report["badTemperature"]["message"].startswith("temperature")
    assert report["unknownModel"]["status"] == 404


def test_plain_fetch_reads_the_event_stream(node: str, server: Server) -> None:
    """No package: what a web page reads of the wire, to the closing [DONE]."""
    report = report_of(node, CLIENTS / "js" / "fetch_chat.mjs", f"{server.url}/v1")
    streamed = report["streamed"]
    assert streamed["contentType"].startswith("text/event-stream")
    assert "".join(streamed["pieces"]) == ANSWER
    assert len(streamed["pieces"]) > 1
    assert streamed["finishReason"] == "stop"
    assert streamed["usage"].items() >= USAGE.items()
    assert streamed["last"] == "[DONE]"
    assert report["badTemperature"]["status"] == 400
    assert report["badTemperature"]["param"] == "temperature"
    assert report["unknownModel"]["status"] == 404
    assert report["unknownModel"]["code"] == "model_not_found"
