"""docs/api.md says what the code does: its generated part is compared, its routes and fields are looked for."""

import re
from pathlib import Path
from typing import Any

import pytest

from service import api_reference
from service.schemas.field_rules import ACCEPTED, REFUSED
from tests.support.fake_decoder import FakeDecoder
from tests.support.fake_service import fake_app

DOCUMENT = api_reference.DOCUMENT.read_text(encoding="utf-8")
BODIES = api_reference.request_bodies()


@pytest.fixture
def openapi(tmp_path: Path) -> dict[str, Any]:
    """What the whole service gives at `/openapi.json`."""
    return fake_app(tmp_path, FakeDecoder()).openapi()


def section(title: str) -> str:
    """The text under a heading of the third level."""
    return DOCUMENT.split(f"\n### {title}\n")[1].split("\n### ")[0]


def compatibility_row(field: str) -> list[str]:
    """The cells of a field in the last table, behind its name and origin."""
    line = next(row for row in DOCUMENT.splitlines() if row.startswith(f"| `{field}` |") and row.count("|") == 8)
    return [cell.strip() for cell in line.split("|")][3:-1]


def test_the_document_is_up_to_date() -> None:
    """Whoever changes a schema runs one command."""
    is_current = api_reference.updated(DOCUMENT) == DOCUMENT
    assert is_current, f"docs/api.md is out of date; run: {api_reference.COMMAND}"


def test_every_route_with_a_body_is_described(openapi: dict[str, Any]) -> None:
    """By its path, in the table at the top and with a section of its own."""
    paths = {path for path, methods in openapi["paths"].items() if "requestBody" in methods.get("post", {})}
    assert paths == set(BODIES)
    for path in paths:
        assert f"`POST {path}`" in DOCUMENT.split("\n## ")[0]
        assert f"\n### POST {path}\n" in DOCUMENT


def test_every_other_route_is_named(openapi: dict[str, Any]) -> None:
    """In the table at the top; `/v1/embeddings`, which only says that it is not there, among the errors."""
    others = {path.replace("{model_id}", "{id}") for path in openapi["paths"]} - set(BODIES)
    assert [path for path in others if f"GET {path}`" not in DOCUMENT] == ["/v1/embeddings"]
    assert "`/v1/embeddings`" in DOCUMENT


@pytest.mark.parametrize("path", BODIES)
def test_every_field_of_a_body_is_in_a_table(path: str) -> None:
    """In the route's own or in that of a base to which the route's section links."""
    own = section(f"POST {path}")
    linked = re.findall(r"\[(\w+)\]", own.split("\n|")[0])
    told = "".join([own, *map(section, linked)])
    missing = [name for name in BODIES[path].model_json_schema()["properties"] if f"| `{name}` |" not in told]
    assert not missing


def test_every_link_to_a_part_of_the_document_leads_somewhere() -> None:
    """Nested models are linked from every field that holds one."""
    headings = re.findall(r"^#+ (.+)$", DOCUMENT, re.MULTILINE)
    anchors = {"".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_") for title in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENT)) <= anchors


def test_every_file_that_the_document_links_exists() -> None:
    """Examples, decisions, the operator's page."""
    folder = api_reference.DOCUMENT.parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", DOCUMENT)
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_example_is_linked() -> None:
    """One that nobody finds helps nobody."""
    folder = api_reference.DOCUMENT.parent
    examples = [file.relative_to(folder).as_posix() for file in (folder / "examples").iterdir() if file.is_file()]
    assert [name for name in examples if f"]({name})" not in DOCUMENT] == []


def test_fields_are_told_with_type_default_range_and_meaning() -> None:
    """One of each kind that the schemas have."""
    completions = section("POST /v1/completions")
    assert "| `best_of` | integer |  | 1 to 16 | Make this many answers" in completions
    assert "| `echo` | boolean | `false` |  | Return the prompt" in completions
    assert "| `model` | text | **required** |" in section("OpenAIFields")
    assert "| `top_p` | number | `1.0` | above 0, to 1 |" in section("GenerationFields")
    assert "| `seed` | integer |  | -2^63 to 2^63 - 1 |" in section("GenerationFields")


def test_the_last_table_says_what_the_models_and_the_refusals_say() -> None:
    """Honoured, honoured with one value only, without effect, refused with the reason that the service gives."""
    assert compatibility_row("temperature") == [*["honoured"] * 4, ""]
    no_store = "no effect; only `false`"
    assert compatibility_row("store") == [no_store, no_store, "only `false`", "only `false`", ACCEPTED["store"].why]
    assert compatibility_row("suffix") == [*["no effect; only empty"] * 4, ACCEPTED["suffix"].why]
    one = "no effect; only `1`"
    assert compatibility_row("best_of") == [one, "honoured", one, one, ACCEPTED["best_of"].why]
    assert compatibility_row("prompt_cache_key") == [*["no effect"] * 4, ACCEPTED["prompt_cache_key"].why]
    assert compatibility_row("web_search_options") == [*["refused"] * 4, REFUSED["web_search_options"]]


def test_every_field_of_the_rule_is_in_the_last_table() -> None:
    """Whatever is accepted without effect or refused by name is documented."""
    assert all(compatibility_row(name) for name in {*ACCEPTED, *REFUSED})


def test_what_serves_does_not_import_the_reference() -> None:
    """It is a tool of those who develop, and needs what they have installed."""
    own = Path(api_reference.__file__)
    users = [file for file in own.parent.rglob("*.py") if "api_reference" in file.read_text(encoding="utf-8")]
    assert users == [own]


def test_the_command_writes_between_the_markers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands before and behind them is kept; without --write the same is printed."""
    document = tmp_path / "api.md"
    document.write_text(f"before\n{api_reference.BEGIN}\nold\n{api_reference.END}\nbehind\n", encoding="utf-8")
    monkeypatch.setattr(api_reference, "DOCUMENT", document)
    monkeypatch.setattr("sys.argv", ["api_reference", "--write"])
    api_reference.main()
    monkeypatch.setattr("sys.argv", ["api_reference"])
    api_reference.main()
    printed = capsys.readouterr().out
    expected = f"before\n{api_reference.BEGIN}\n\n{printed}\n{api_reference.END}\nbehind\n"
    assert document.read_text(encoding="utf-8") == expected
    assert "### POST /v1/completions" in printed
