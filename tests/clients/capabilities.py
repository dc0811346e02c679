"""What a client's script reports, one line of JSON per check, and the weather that all of them ask for.

Runs in the environments of the clients, which have nothing of Attend's: only the standard library is imported here. The
default model is too small to choose its words, so checks assert facts of the protocol and never what an answer says.
"""

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MODEL_ID = "smollm2-135m-instruct"
CAPABILITIES = ("plain", "streamed", "tools", "second turn", "streamed tools", "structured")
CITIES = ("Paris", "Berlin")
UNITS = ("C", "F")
QUESTION = "Name the capital of France."
WEATHER = "21 degrees"
MAX_TOKENS = 48
SPELLED_REPORT = '{"city": "Paris", "unit": "C"}'
ONLY = "CLIENT_ONLY_CAPABILITY"

Check = Callable[[], None] | Callable[[], Awaitable[None]]


def base_url() -> str:
    """The service's address, to the /v1."""
    return os.environ["OPENAI_BASE_URL"]


def api_key() -> str:
    """The key to send; any text where the service has none."""
    return os.environ["OPENAI_API_KEY"]


@dataclass(frozen=True)
class Outcome:
    """How one check went. error: empty when it passed."""

    row: str
    capability: str
    error: str = ""
    trace: str = ""


class Checks:
    """The checks of one script, run in the order in which they were added, on one event loop."""

    def __init__(self) -> None:
        self._checks: list[tuple[str, str, Check]] = []

    def add(self, row: str, capability: str) -> Callable[[Check], Check]:
        """Register a check: the row and the column of the table that it fills."""
        assert capability in CAPABILITIES, capability

        def register(check: Check) -> Check:
            self._checks.append((row, capability, check))
            return check

        return register

    def outcomes(self) -> Iterator[Outcome]:
        """Run them all, or those of the one capability that is asked for."""
        only = os.environ.get(ONLY)
        with asyncio.Runner() as runner:
            for row, capability, check in self._checks:
                if only in (None, capability):
                    yield _outcome(runner, row, capability, check)

    def run(self) -> None:
        """Print each outcome as a line of JSON."""
        for outcome in self.outcomes():
            print(f"\n{json.dumps(asdict(outcome))}", flush=True)


def _outcome(runner: asyncio.Runner, row: str, capability: str, check: Check) -> Outcome:
    try:
        result = check()
        if inspect.iscoroutine(result):
            runner.run(result)
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its outcome
        return Outcome(row, capability, f"{type(error).__name__}: {error}", traceback.format_exc())
    return Outcome(row, capability)


def outcome_of(line: str) -> Outcome | None:
    """The outcome that a printed line holds; None for what the client itself printed."""
    if not line.startswith('{"row": '):
        return None
    return Outcome(**json.loads(line))


def spelled_call(name: str) -> str:
    """A call as the default model writes it: told to repeat this, it calls, where a client cannot force it to."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {SPELLED_REPORT}}}\n</tool_call>'


def check_arguments(arguments: str | Mapping[str, Any]) -> None:
    """Assert that a call's arguments fit the weather's schema."""
    values = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(values) == {"city", "unit"}, values
    assert values["city"] in CITIES, values
    assert values["unit"] in UNITS, values
