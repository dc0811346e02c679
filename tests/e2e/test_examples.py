"""The programs of docs/examples run as they are, against `attend serve --standalone` with an API key.

Separate from test_other_clients.py because these are what readers copy: their output is what the document promises.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.support.server import Server, running_server

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
KEY = "key-of-the-examples-0123456789"
ANSWER = "The capital of France is Paris."
EXAMPLE_TIMEOUT_S = 120.0

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server for all examples, closed to those without the key."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ATTEND_API_KEYS", f"examples:{KEY}")  # a server started here inherits it
        with running_server("--standalone", "--bundle", default_bundle.path) as server:
            yield server


def finished(server: Server, *command: str | Path, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "SERVER_URL": server.url, "SERVER_KEY": key},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=EXAMPLE_TIMEOUT_S,
        check=False,
    )


def output_of(server: Server, *command: str | Path) -> str:
    """What an example prints; its errors are the assertion's message."""
    done = finished(server, *command)
    assert done.returncode == 0, f"{command[-1]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_curl_shows_each_kind_of_request(server: Server) -> None:
    """One section each, and the answers that greedy decoding always gives."""
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("curl.sh needs curl and bash")
    sections = output_of(server, "bash", EXAMPLES / "curl.sh").split("== ")[1:]
    simplest, chat, streamed, logprobs, structured, tokens = sections
    assert '"text":" a place' in simplest
    assert f'"content":"{ANSWER}"' in chat
    assert streamed.count("chat.completion.chunk") > 5
    assert '"completion_tokens":8' in streamed
    assert streamed.rstrip().endswith("data: [DONE]")
    assert '"tokens":[" four",","]' in logprobs
    assert r"{\"city\": \"Paris\", \"is_capital\": " in structured
    assert '"token_strs":["The"," sea"," is"]' in tokens


def test_the_chat_example_prints_the_answer_whole_and_streamed(server: Server) -> None:
    """And the field of a refused request."""
    lines = output_of(server, sys.executable, EXAMPLES / "openai_chat.py").splitlines()
    assert lines == [f"whole: {ANSWER}", f"streamed: {ANSWER}", "8 tokens", "refused: temperature invalid_value"]


def test_the_structured_example_prints_a_city_that_fits_its_class(server: Server) -> None:
    """Its parts are bounded, so that the model ends."""
    printed = output_of(server, sys.executable, EXAMPLES / "structured.py")
    assert printed.startswith('{"name":"Paris","continent":"Europe","inhabitants":')


def test_the_tools_example_calls_the_function_and_answers_with_its_result(server: Server) -> None:
    """21 degrees is what the function gives; the model cannot know it."""
    called, answer = output_of(server, sys.executable, EXAMPLES / "tools.py").split("\n", 1)
    assert called == 'called: get_temperature {"city": "Paris"}'
    assert answer.startswith("answer: ")
    assert "21" in answer


def test_the_javascript_example_prints_the_streamed_answer(server: Server) -> None:
    """To the usage in the last chunk."""
    if shutil.which("node") is None:
        pytest.skip("fetch_stream.mjs needs Node")
    assert output_of(server, "node", EXAMPLES / "fetch_stream.mjs").splitlines() == [ANSWER, "8 tokens"]


def test_an_example_with_a_wrong_key_fails_with_the_reason(server: Server) -> None:
    """The key reaches the service, and the service asks for it."""
    done = finished(server, sys.executable, EXAMPLES / "openai_chat.py", key="wrong-key-0123456789")
    assert done.returncode != 0
    assert "no known API key" in done.stderr
