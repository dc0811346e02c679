"""Second turns as real clients send them, with their own history, replayed without the clients.

`python -m tests.clients.run --record FILE` and `python -m tests.clients.pick_recorded FILE` made the recordings.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from model.bundle import Bundle
from service.app import assemble
from service.settings import Settings
from tests.support.api_client import LENGTH_NAMES, Json
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import MODEL_ID, fake_bundle

RECORDED = Path(__file__).parents[2] / "clients" / "recorded"
LENGTH_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
CONTEXT_TOKENS = 16_384  # the fake's tokens are bytes
MAX_TOKENS = 16


def recordings() -> list[Any]:
    """Every recorded request as a parameter."""
    return [
        pytest.param(exchange["route"], exchange["request"], id=f"{file.stem}-{index}")
        for file in sorted(RECORDED.glob("*.json"))
        for index, exchange in enumerate(json.loads(file.read_text(encoding="utf-8")))
    ]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the whole app, whose context is long enough for prompts in bytes."""
    folder = tmp_path_factory.mktemp("fake")
    bundle = fake_bundle(folder)
    manifest = replace(bundle.manifest, config=replace(bundle.manifest.config, context_tokens=CONTEXT_TOKENS))
    decoder = FakeDecoder(capacity_tokens=CONTEXT_TOKENS)
    decoder.config = manifest.config
    with TestClient(assemble(Settings(bundle=folder), Bundle(folder, manifest), decoder)) as client:
        yield client


def shortened(route: str, request: Json) -> Json:
    """The same request for the fake's model and a few tokens: it answers nonsense, and would to the context's end."""
    length = next((name for name in LENGTH_FIELDS if name in request), LENGTH_NAMES.get(route, "max_tokens"))
    return {**request, "model": MODEL_ID, length: MAX_TOKENS}


@pytest.mark.parametrize(("route", "request_body"), recordings())
def test_a_second_turn_with_the_clients_own_history_is_answered(
    client: TestClient, route: str, request_body: Json
) -> None:
    """Whole or streamed, as the client asked, to the end."""
    response = client.post(route, json=shortened(route, request_body))
    assert response.status_code == 200, response.text
    assert '"error":{' not in response.text.replace(" ", "")
    if request_body.get("stream"):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.endswith("\n\n")


def test_every_client_has_a_recording() -> None:
    """A client added to the runner brings its second turn."""
    names = {file.stem for file in (RECORDED.parent / "requirements").glob("*.txt")}
    assert {file.stem for file in RECORDED.glob("*.json")} >= names | {"openai-node"}
