"""Clients that are not ours, in environments of their own, stream a chat from `attend serve --standalone`.

Separate from test_standalone.py, whose client is the one of the development environment, because these are installed
from their registries into the cache at first use. The JavaScript ones are skipped where there is no Node.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.bundle import Bundle
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
ANSWER = "The capital of France is Paris."
USAGE = {"prompt_tokens": 36, "completion_tokens": 8, "total_tokens": 44}

CLIENTS = Path(__file__).parents[1] / "clients"
OPENAI_2 = "openai==2.54.0"
MIN_NODE_MAJOR = 20
INSTALL_TIMEOUT_S = 120.0
CLIENT_TIMEOUT_S = 60.0

pytestmark = pytest.mark.model


def run(*command: str | Path, timeout_s: float, cwd: Path | None = None) -> str:
    """Run a program to its end and return what it printed; its errors are the assertion's message."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def report_of(*command: str | Path) -> Any:
    """Run a client, and read the JSON in the last line that it prints."""
    return json.loads(run(*command, timeout_s=CLIENT_TIMEOUT_S).splitlines()[-1])


def is_stamped(stamp: Path, text: str) -> bool:
    """Whether an installation was finished for exactly this text."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == text


@pytest.fixture(scope="session")
def openai_2_python(cache_dir: Path) -> Path:
    """The interpreter of an environment that has version 2 of the Python client; made once."""
    folder = cache_dir / "clients" / "openai-2"
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    wanted = f"{OPENAI_2}\nPython {sys.version}\n{sys.base_prefix}\n"
    if not is_stamped(stamp, wanted):
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder, timeout_s=CLIENT_TIMEOUT_S)
        pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--no-input")
        run(*pip, "install", "--quiet", OPENAI_2, timeout_s=INSTALL_TIMEOUT_S)
        stamp.write_text(wanted, encoding="utf-8")
    return python


@pytest.fixture(scope="session")
def node() -> str:
    """The Node on the PATH, where it is there and new enough."""
    if shutil.which("node") is None:
        pytest.skip(f"node is not on the PATH; the JavaScript clients need Node {MIN_NODE_MAJOR} or newer")
    version = run("node", "--version", timeout_s=CLIENT_TIMEOUT_S).strip()
    if int(version.removeprefix("v").split(".")[0]) < MIN_NODE_MAJOR:
        pytest.skip(f"Node {version} is too old; the JavaScript clients need Node {MIN_NODE_MAJOR} or newer")
    return "node"


@pytest.fixture(scope="session")
def js_folder(node: str, cache_dir: Path) -> Path:
    """A copy of tests/clients/js with its packages; they are installed once per lock file."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on the PATH; it installs the JavaScript clients")
    folder = cache_dir / "clients" / "js"
    shutil.copytree(CLIENTS / "js", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    lock = (folder / "package-lock.json").read_text(encoding="utf-8")
    stamp = folder / "node_modules" / "installed.txt"  # `npm ci` begins by removing it
    if not is_stamped(stamp, lock):
        npm_ci = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        run(*npm_ci, timeout_s=INSTALL_TIMEOUT_S, cwd=folder)
        stamp.write_text(lock, encoding="utf-8")
    return folder


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
