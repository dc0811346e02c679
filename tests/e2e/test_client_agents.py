"""The light clients of `make clients` run their agents' loops in every test run, from the same scripts.

Separate from test_other_clients.py, which checks what these clients read of single answers and errors; the heavy
clients are in `make clients` only.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.clients.run import CLIENTS, installed, outcomes_of
from tests.support.client_environments import NodeMissingError
from tests.support.server import Server, running_server

LIGHT = ("openai-2", "openai-node", "ai-sdk")

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def server(default_bundle: Bundle) -> Iterator[Server]:
    """One server for all clients; they leave it as they found it."""
    with running_server("--standalone", "--bundle", default_bundle.path) as server:
        yield server


@pytest.mark.parametrize("name", LIGHT)
def test_a_client_chats_streams_calls_tools_and_sends_its_own_history_back(
    name: str, server: Server, cache_dir: Path
) -> None:
    """Every check of its script, among them answers that are read into a type."""
    client = next(client for client in CLIENTS if client.name == name)
    try:
        command = installed(client, cache_dir)
    except NodeMissingError as error:
        pytest.skip(str(error))
    outcomes = outcomes_of(client, command, server.url, {})
    assert [outcome for outcome in outcomes if outcome.error] == []
