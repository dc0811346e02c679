"""GET /docs: the interactive documentation, whole without a network."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app

LOADED = re.compile(r"""(?:src|href)=["']([^"']+)["']""")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of the whole app."""
    with TestClient(fake_app(tmp_path, FakeDecoder())) as client:
        yield client


def test_the_page_names_nothing_of_another_host(client: TestClient) -> None:
    """No script, style, picture or validator from elsewhere."""
    page = client.get("/docs").text
    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", page) == []
    assert '"validatorUrl": null' in page


def test_everything_that_the_page_loads_is_served(client: TestClient) -> None:
    """Script, style and icon, each of its type."""
    page = client.get("/docs").text
    loaded = [*LOADED.findall(page), *re.findall(r"url: '([^']+)'", page)]
    kinds = {path.rpartition(".")[2]: client.get(path) for path in loaded}
    assert kinds.keys() == {"js", "css", "png", "json"}
    assert all(answer.status_code == 200 for answer in kinds.values())
    assert "javascript" in kinds["js"].headers["content-type"]
    assert kinds["css"].headers["content-type"].startswith("text/css")
    assert "url(http" not in kinds["css"].text


def test_the_page_behind_a_prefix_loads_from_below_it(client: TestClient) -> None:
    """As a proxy that serves it elsewhere says."""
    page = TestClient(client.app, root_path="/llm").get("/docs").text
    assert all(path.startswith("/llm/") for path in LOADED.findall(page))


@pytest.mark.parametrize("path", ["/redoc", "/docs/files", "/docs/files/nothing.js", "/docs/files/../../app.py"])
def test_there_is_nothing_else_there(client: TestClient, path: str) -> None:
    """Redoc fetches a picture from its maker, so it is off; only the page's own files are served."""
    assert client.get(path).status_code == 404


def test_the_files_are_behind_the_key_too(tmp_path: Path) -> None:
    """As every route but the probes."""
    with TestClient(fake_app(tmp_path, FakeDecoder(), api_keys="alice:0123456789abcdef")) as client:
        assert {client.get(path).status_code for path in ("/docs", "/docs/files/swagger-ui.css", "/openapi.json")} == {
            401
        }


def test_the_metrics_name_the_files_as_one_route(client: TestClient) -> None:
    """Never by what a client asks for below it."""
    client.get("/docs/files/swagger-ui.css")
    client.get("/docs/files/some/thing")
    assert "swagger-ui" not in client.get("/metrics").text
    assert "some/thing" not in client.get("/metrics").text
