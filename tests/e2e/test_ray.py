"""`attend serve` as users start it: the default model under Ray Serve, behind HAProxy, with real clients."""

import json
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from model.bundle import Bundle
from tests.support.processes import is_alive, replicas
from tests.support.server import Server, running_server

MODEL_ID = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "Name the capital of France."}]
MAX_RESIDENT_MB = 900

pytestmark = [pytest.mark.model, pytest.mark.ray]


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """Two replicas behind one address."""
    with running_server("--bundle", default_bundle.path, "--replicas", "2", "--threads", "1") as server:
        yield server


def test_the_openai_client_gets_its_answer_streamed_and_not(server: Server) -> None:
    """Only the base URL differs from any other provider."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        whole = client.chat.completions.create(model=MODEL_ID, messages=QUESTION, temperature=0)
        stream: Any = client.chat.completions.create(model=MODEL_ID, messages=QUESTION, temperature=0, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert whole.choices[0].message.content == text == "The capital of France is Paris."


def test_errors_pass_through_the_proxy_as_they_are(server: Server) -> None:
    """The contract's body and code, not the proxy's."""
    response = httpx.post(f"{server.url}/v1/completions", json={"model": "other", "prompt": "x"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_prometheus_can_reach_the_metrics_of_every_replica(server: Server) -> None:
    """Each replica is a target of its own, and labels its metrics with its own name."""
    (group,) = httpx.get(f"{server.url}/metrics/targets").json()
    assert len(group["targets"]) == 2
    names = set()
    for target in group["targets"]:
        text = httpx.get(f"http://{target}/metrics").text
        (alive,) = [line for line in text.splitlines() if line.startswith("attend_engine_alive{")]
        assert alive.endswith(" 1.0")
        names.add(alive)
    assert len(names) == 2


def test_each_replica_stays_under_900_mb_and_has_no_torch(server: Server) -> None:
    """Resident memory of the processes that hold the model, and what they have mapped."""
    processes = replicas(psutil.Process(server.process.pid))
    assert len(processes) == 2
    for process in processes:
        assert process.memory_info().rss / 1e6 < MAX_RESIDENT_MB
        assert not [mapped.path for mapped in process.memory_maps() if "libtorch" in mapped.path]


def test_a_drain_finishes_running_streams_and_leaves_no_process(default_bundle: Bundle) -> None:
    """SIGTERM in the middle of a stream: its last event comes, and everything that was started has ended."""
    with running_server("--bundle", default_bundle.path) as server:
        started = psutil.Process(server.process.pid).children(recursive=True)
        body = {"prompt": "Once upon a time", "max_tokens": 300, "stream": True, "temperature": 0.7, "seed": 3}
        with httpx.stream("POST", f"{server.url}/v1/generate", json=body, timeout=60) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.signal(signal.SIGTERM)
            rest = [line for line in [first, *lines] if line]
        assert rest[-1] == "data: [DONE]"
        whole = json.loads(rest[-2].removeprefix("data: "))
        assert whole["finish_reason"] in ("length", "stop")
        assert "".join(json.loads(line[6:])["text"] for line in rest[:-2]) == whole["text"]
        assert server.wait() == 0
        assert "Traceback" not in server.output
        assert not [process for process in started if is_alive(process)]
