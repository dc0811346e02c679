"""Names that a model is served under: every listed one is accepted and listed, answers say the first."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from service.settings import Settings
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import MODEL_ID, fake_app

NAMES = ("tiny", "org/tiny", "gpt-4o-mini")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/generate": {"prompt": "hi", "max_tokens": 2},
    "/tokenize": {"prompt": "hi"},
}


def client_of(folder: Path, names: str | None) -> TestClient:
    """A client of an app that serves under these names."""
    return TestClient(fake_app(folder, FakeDecoder(), served_model_name=names))


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_accepted_and_answers_say_the_first(tmp_path: Path, route: str, name: str) -> None:
    """Clients with a model's name built in work unchanged."""
    with client_of(tmp_path, ",".join(NAMES)) as client:
        answer = client.post(route, json={"model": name, **BODIES[route]})
        assert answer.status_code == 200, answer.text
        assert answer.json().get("model", "tiny") == "tiny"


def test_every_name_is_listed_and_found(tmp_path: Path) -> None:
    """Each as a card of its own; /version and the metrics say the first."""
    with client_of(tmp_path, ",".join(NAMES)) as client:
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == list(NAMES)
        for card in cards:
            assert client.get(f"/v1/models/{card['id']}").json() == card
        assert client.get("/version").json()["model"] == "tiny"
        assert 'model="tiny"' in client.get("/metrics").text


@pytest.mark.parametrize("name", [MODEL_ID, "other", "Tiny", ""])
def test_no_other_name_is_accepted(tmp_path: Path, name: str) -> None:
    """Nor the bundle's own, once names are given; the error lists them."""
    with client_of(tmp_path, ",".join(NAMES)) as client:
        answer = client.post("/v1/completions", json={"model": name, **BODIES["/v1/completions"]})
        assert answer.status_code == 404
        assert "served: 'tiny', 'org/tiny', 'gpt-4o-mini'" in answer.json()["error"]["message"]
        assert client.get(f"/v1/models/{name or '_'}").status_code == 404


def test_without_names_the_bundles_own_is_served(tmp_path: Path) -> None:
    """As before."""
    with client_of(tmp_path, None) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == [MODEL_ID]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tiny", ("tiny",)),
        (" tiny , other ", ("tiny", "other")),
        ("a,b,a", ("a", "b")),
        ("org/name:tag", ("org/name:tag",)),
        (None, ()),
    ],
)
def test_names_are_separated_by_commas(given: str | None, expected: tuple[str, ...]) -> None:
    """Blanks around them and repetitions count for nothing."""
    assert Settings(served_model_name=given).served_model_names == expected


@pytest.mark.parametrize("given", ["", " ", ",", "a,,b", "a,", "a\nb"])
def test_an_empty_name_is_refused(given: str) -> None:
    """Most likely a variable that was not set."""
    with pytest.raises(ValidationError, match="give one name or several with commas between them"):
        Settings(served_model_name=given)


@pytest.mark.parametrize("given", ["org//model", "//model", "model//", "good,org//model", "a///b", "/model", "model/"])
def test_a_name_that_no_address_can_hold_is_refused(given: str) -> None:
    """Doubled slashes are one to the router, and those at the ends none: GET /v1/models/NAME would never find it."""
    with pytest.raises(ValidationError, match="slash"):
        Settings(served_model_name=given)
