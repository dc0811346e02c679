"""How far a command is: shown on a terminal, told line by line elsewhere."""

import io

import pytest
from rich.console import Console

from service.cli.progress import stages
from tests.support.engines import Clock


def test_elsewhere_each_stage_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log there is nothing to move."""
    with stages() as say:
        say("reading [the] weights")
        say("writing")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "reading [the] weights\nwriting\n")


def test_on_a_terminal_long_stages_stay_with_their_time_and_short_ones_go() -> None:
    """What a first start spent its time on can still be read afterwards."""
    clock, text = Clock(), io.StringIO()
    console = Console(file=text, force_terminal=True, no_color=True, width=100, get_time=clock)
    with stages(console, clock) as say:
        for line, seconds in (("checking", 0.2), ("fetching [x]", 65.0), ("writing", 3.0)):
            say(line)
            say(f"note: about {line}")
            clock.now_s += seconds
    last = text.getvalue().split("\x1b[2K")[-1] + text.getvalue().split("\x1b[2K")[-2]
    assert "✓ fetching [x] 0:01:05" in last
    assert "✓ writing      0:00:03" in last
    assert "checking" not in last
    assert text.getvalue().count("note: about checking") == 1, "said once, and never erased"


def test_an_error_in_a_stage_is_passed_on() -> None:
    """The display is ended first."""
    with pytest.raises(ValueError, match="no weights"):
        _fail_in_a_stage(Console(file=io.StringIO(), force_terminal=True))


def _fail_in_a_stage(console: Console) -> None:
    with stages(console) as say:
        say("reading")
        raise ValueError("no weights")
