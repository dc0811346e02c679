"""A command of ours in this process: what it printed and how it ended."""

import sys
from dataclasses import dataclass

import pytest

from service.cli import main


@dataclass(frozen=True)
class Ended:
    """A command that has run."""

    status: object
    stdout: str
    stderr: str


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, columns: int = 80
) -> Ended:
    """Run `attend` in this process, on a terminal of a width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["attend", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return Ended(caught.value.code, out, err)
