"""What the command shows of itself: numbers as numbers, choices as choices, at any width."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from model.bundle_writer import DEVICES
from model.precision import PRECISION_NAMES
from service.cli.options import choice, setting_parameters
from service.settings import Settings
from tests.support.terminal import Ended, run_here

COMMANDS = (
    ["export"],
    ["serve"],
    ["generate"],
    ["chat"],
    ["bench", "quality"],
    ["bench", "engine"],
    ["bench", "stall"],
    ["bench", "speculation"],
)
PRECISIONS = "[fp32|int8|w8a8|int4]"
VALUES = r"INTEGER|INTEGER RANGE|FLOAT|FLOAT RANGE|TEXT|PATH|SOURCE|\[[^]]+\]"


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Ask a command for help."""

    def ask(command: list[str], columns: int = 80) -> Ended:
        return run_here(monkeypatch, capsys, *command, "--help", columns=columns)

    return ask


def entries(shown: str) -> dict[str, str]:
    """Each option's entry as one line, by its first flag."""
    options = shown.partition("Options:\n")[2]
    found = re.split(r"\n  (?=--)", "\n" + options.rstrip())
    return {entry.split()[0].rstrip(","): " ".join(entry.split()) for entry in found if entry.strip()}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_option_shows_what_its_value_is(helped: Any, command: list[str], columns: int) -> None:
    """By the names of the field, and no option is cut off, however narrow the terminal."""
    ended = helped(command, columns)
    assert ended.status == 0
    assert not re.search(r"--\S*…|<(int|float|str|bool|path)", entries(ended.stdout).__repr__())
    for flag, entry in entries(ended.stdout).items():
        is_switch = re.match(rf"{flag}( / --no-\S+)? [A-Z]", entry) and not re.match(rf"{flag} ({VALUES}) ", entry)
        assert is_switch or re.match(rf"{flag} ({VALUES}) ", entry), entry


@pytest.mark.parametrize(
    ("command", "entry", "reason"),
    [
        (["serve"], "--port INTEGER RANGE", "a whole number with bounds"),
        (["serve"], "[env var: ATTEND_PORT; default: 8000; 1<=x<=65535]", "variable, default and bounds"),
        (["serve"], "--starvation-s FLOAT RANGE", "seconds may have a fraction"),
        (["serve"], "default: 60.0; 0<x<=3600]", "an open bound"),
        (["serve"], "[env var: ATTEND_MAX_CONTEXT_TOKENS; default: 0; x>=0]", "no upper bound"),
        (["serve"], f"--precision {PRECISIONS}", "a choice"),
        (["serve"], "--log-requests / --no-log-requests Write", "a switch takes no value"),
        (["serve"], "--bundle PATH", "a path"),
        (["export"], f"--precision {PRECISIONS}", "a choice"),
        (["export"], "--device [cpu]", "a choice of one"),
        (["generate"], "--max-tokens INTEGER RANGE", "a whole number with a bound"),
        (["generate"], "--temperature FLOAT RANGE", "a number with bounds"),
        (["generate"], "--seed INTEGER The", "a whole number without bounds"),
        (["generate"], f"--precision {PRECISIONS}", "a choice"),
        (["generate"], "env var: ATTEND_BUNDLE", "a variable outside the service, too"),
        (["bench", "stall"], "--chunk-tokens INTEGER RANGE", "a whole number with a bound"),
        (["bench", "quality"], "--max-tokens INTEGER RANGE", "a whole number with a bound"),
    ],
)
def test_numbers_and_choices_are_shown_as_such(helped: Any, command: list[str], entry: str, reason: str) -> None:
    """A reader knows what to give without trying."""
    assert entry in " ".join(helped(command).stdout.split()), reason


def test_every_setting_but_the_keys_is_an_option_with_its_variable(helped: Any) -> None:
    """A setting that is added to settings.py appears by itself."""
    shown = " ".join(helped(["serve"]).stdout.split())
    for name in Settings.model_fields:
        is_secret = name == "api_keys"
        is_shown = re.search(rf"env var: ATTEND_{name.upper()}[;\]]", shown) is not None
        assert is_shown != is_secret, name


class Kind(StrEnum):
    """A choice as a class."""

    ONE = "one"
    TWO = "two"


class EveryKind(BaseSettings):
    """Settings of kinds that there are not yet."""

    count: int = Field(default=3, description="C.")
    few: int | None = Field(default=None, gt=1, lt=9, description="F.")
    share: float = Field(default=0.5, le=1, description="S.")
    mode: Literal["refuse", "ignore"] = Field(default="refuse", description="M.")
    maybe_mode: Literal["refuse", "ignore"] | None = Field(default=None, description="O.")
    kind: Kind = Field(default=Kind.ONE, description="K.")
    is_on: bool = Field(default=True, description="I.")
    folder: Path | None = Field(default=None, description="P.")
    name: str | None = Field(default=None, description="N.")
    token: SecretStr | None = Field(default=None, description="T.")
    made: Path = Field(default_factory=lambda: Path("/made"), description="D.")


@pytest.mark.parametrize(
    ("name", "metavar", "facts"),
    [
        ("count", "INTEGER", "default: 3"),
        ("few", "INTEGER RANGE", "1<x<9"),
        ("share", "FLOAT RANGE", "default: 0.5; x<=1"),
        ("mode", "[refuse|ignore]", "default: refuse"),
        ("maybe_mode", "[refuse|ignore]", ""),
        ("kind", "[one|two]", "default: one"),
        ("is_on", None, "default: true"),
        ("folder", "PATH", ""),
        ("name", "TEXT", ""),
        ("made", "PATH", "default: /made"),
    ],
)
def test_a_setting_of_any_kind_becomes_an_option(name: str, metavar: str | None, facts: str) -> None:
    """Numbers, bounds, choices, switches, paths; each of them optional too."""
    (parameter,) = [each for each in setting_parameters(settings=EveryKind) if each.name == name]
    option = parameter.annotation.__metadata__[0]
    assert option.metavar == metavar
    assert option.help.endswith(f"[env var: ATTEND_{name.upper()}{'; ' if facts else ''}{facts}]")


def test_a_secret_is_no_option() -> None:
    """A command line can be read by every user of the machine."""
    assert "token" not in {parameter.name for parameter in setting_parameters(settings=EveryKind)}


def test_the_choices_shown_are_those_of_the_exporter(helped: Any) -> None:
    """They stand apart from the code that is loaded only for an export."""
    shown = helped(["export"]).stdout
    assert choice(PRECISION_NAMES) in shown
    assert choice(DEVICES) in shown


@pytest.mark.parametrize("command", [[], ["bench"], *COMMANDS])
def test_the_short_form_asks_for_help_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """As most commands' does."""
    ended = run_here(monkeypatch, capsys, *command, "-h")
    assert ended.status == 0
    assert "Usage: attend" in ended.stdout
