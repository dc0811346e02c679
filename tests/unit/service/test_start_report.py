"""The line that a service begins with says where, what, how much, and who may call."""

from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.start_report import start_line
from tests.support.fake_decoder import FAKE_CONFIG
from tests.support.tiny_bundle import write_hollow_bundle


@pytest.mark.parametrize(
    ("settings", "has_keys", "part"),
    [
        ({}, False, "serving fake at http://127.0.0.1:8000: precision int4, "),
        ({"host": "::1", "port": 9}, False, "at http://[::1]:9: "),
        ({}, False, f"context {FAKE_CONFIG.context_tokens} tokens"),
        ({"max_context_tokens": 100}, False, "context 100 tokens"),
        ({"max_context_tokens": 10**6}, False, f"context {FAKE_CONFIG.context_tokens} tokens"),
        ({}, False, "16 rows"),
        ({"max_num_rows": 1}, False, "1 row,"),
        ({"threads": 3}, False, "3 threads"),
        ({}, False, "as many threads as usable cores ("),
        ({}, False, "API keys off"),
        ({}, True, "API keys on"),
    ],
)
def test_the_start_line_says_what_holds(settings: dict[str, Any], has_keys: bool, part: str, tmp_path: Path) -> None:
    """What is in force, not what was given."""
    bundle = write_hollow_bundle(tmp_path / "bundle", "int4")
    line = start_line(bundle, Settings(**settings), has_keys=has_keys)
    assert part in line
    assert "\n" not in line
