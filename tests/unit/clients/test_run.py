"""The runner of the real clients: its table, and what it hands to a client's process."""

import json
from dataclasses import asdict

from tests.clients.capabilities import Checks, Outcome, outcome_of
from tests.clients.run import client_environment, table


def test_the_table_shows_what_passed_what_failed_and_what_was_not_tried() -> None:
    """Two checks of one cell fail together if one of them does; failures are named below."""
    outcomes = [
        Outcome("one", "plain"),
        Outcome("one", "structured"),
        Outcome("one", "structured", "ValueError: no", "line\n" * 9),
        Outcome("another", "with a key"),
    ]
    lines = table(outcomes).splitlines()
    assert lines[1].split() == ["one", "ok", "-", "-", "-", "-", "FAILED", "-"]
    assert lines[2].split() == ["another", "-", "-", "-", "-", "-", "-", "ok"]
    assert "one, structured: ValueError: no" in lines
    assert lines.count("line") == 6
    assert lines[-1] == "3 of 4 checks passed"


def test_an_outcome_is_found_among_what_a_client_prints() -> None:
    """Other lines are the client's own, also those in JSON."""
    outcome = Outcome("row", "tools", "error", "trace")
    assert outcome_of(json.dumps(asdict(outcome))) == outcome
    assert outcome_of('{"event": "log"}') is None
    assert outcome_of("row") is None


def test_checks_report_each_outcome_and_go_on_after_a_failure() -> None:
    """Plain functions and coroutines, in order."""
    checks = Checks()

    @checks.add("row", "plain")
    def passes() -> None:
        pass

    @checks.add("row", "tools")
    async def fails() -> None:
        raise ValueError("no")

    outcomes = list(checks.outcomes())
    assert [(outcome.capability, outcome.error) for outcome in outcomes] == [("plain", ""), ("tools", "ValueError: no")]
    assert "raise ValueError" in outcomes[1].trace


def test_a_client_reaches_this_machine_only() -> None:
    """Proxies that do not exist for every other host, and a home folder of its own."""
    environment = client_environment("http://127.0.0.1:8000", "/home-of-the-test")
    assert environment["OPENAI_BASE_URL"] == "http://127.0.0.1:8000/v1"
    assert environment["HOME"] == "/home-of-the-test"
    assert environment["https_proxy"] == environment["HTTPS_PROXY"] == "http://127.0.0.1:9"
    assert environment["no_proxy"] == "127.0.0.1"
