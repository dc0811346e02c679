"""Results: everything one run found out, as it is kept in loadtest/results/."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One contestant under one load in one round. `load` is measurement.Load as a dictionary; None where it failed."""

    contestant: str
    scenario: str
    num_streams: int
    round_number: int
    load: Mapping[str, Any] | None
    cpu_s: float = 0.0  # of the server's processes, in the window
    peak_memory_bytes: int = 0  # proportional set size of the server's processes
    foreign_cores: float = 0.0  # cores that others than server and client kept busy in the window: noise
    failure: str | None = None

    @property
    def cpu_s_per_1000_tokens(self) -> float | None:
        """CPU seconds of the server per 1,000 tokens of answer."""
        if self.load is None or not self.load["tokens_per_s"]:
            return None
        return float(1000 * self.cpu_s / (self.load["tokens_per_s"] * self.load["window_s"]))


@dataclass
class Results:
    """One run. Failures name what kept a contestant out altogether."""

    started: str
    hardware: Mapping[str, Any]
    options: Mapping[str, Any]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    start_s: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    perplexities: dict[str, float | str] = field(default_factory=dict)  # a number, or why there is none
    cells: list[Cell] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write as JSON, replacing what was there in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "cells": [Cell(**cell) for cell in content["cells"]]})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no results of a run: {error}") from None
