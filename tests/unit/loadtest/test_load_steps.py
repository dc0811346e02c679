"""A climb's arithmetic: what counts in which step, where the knee is, and which thresholds fail the run."""

import csv
import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from loadtest.load_report import REPORT_BODY, Thresholds, steps_table, write_files
from loadtest.load_steps import Step, StepRecorder, StreamEvent, find_knee, parse_steps, percentile
from tests.support.engines import Clock


def a_step(
    num_streams: int = 1,
    tokens_per_s: float = 100.0,
    ttft_s: float | None = 0.1,
    num_completed: int = 10,
    num_failed: int = 0,
) -> Step:
    """Returns a step whose p50 and p95 are the same."""
    return Step(num_streams, tokens_per_s, 20, ttft_s, ttft_s, 0.01, 0.02, num_completed, num_failed, num_refused=0)


def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed() -> None:
    """Nearest rank: of 1 to 20, half are up to 10, and 95 in 100 up to 19."""
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 0.5) == 10
    assert percentile(values, 0.95) == 19
    assert percentile([7.0], 0.95) == 7


def test_no_values_have_no_percentile() -> None:
    """A step without a first token must not look like one with a TTFT of 0."""
    assert percentile([], 0.5) is None


def test_the_knee_is_the_last_step_that_paid_for_its_wait() -> None:
    """From 16 to 32 streams throughput gains 5 % while TTFT doubles: the knee is at 16."""
    steps = [a_step(1, 80, 0.1), a_step(4, 180, 0.3), a_step(16, 250, 1.0), a_step(32, 262, 2.0)]
    assert find_knee(steps) == 2


@pytest.mark.parametrize(
    "following",
    [a_step(2, 110.0, 0.15), a_step(2, 109.0, 0.149)],
    ids=["throughput grows by a tenth", "TTFT grows by less than half"],
)
def test_one_sign_alone_is_no_knee(following: Step) -> None:
    """Slower but more productive, or flat but as quick: the climb goes on."""
    assert find_knee([a_step(1, 100.0, 0.1), following]) is None


def test_a_step_without_a_first_token_shows_the_knee_before_it() -> None:
    """A service that stops answering has passed its knee; but a step that measured nothing is none itself."""
    silent = a_step(4, 0.0, None)
    assert find_knee([a_step(1), silent]) == 0
    assert find_knee([silent, silent]) is None


def test_a_single_step_shows_no_knee() -> None:
    """There is nothing to compare it with."""
    assert find_knee([a_step()]) is None
    assert find_knee([]) is None


def test_times_count_once_a_step_has_settled() -> None:
    """Of 20 s the first 5 settle: the other 15 give tokens per second, gaps, and the TTFT of requests sent in them."""
    clock = Clock()
    recorder = StepRecorder(20.0, clock)
    recorder.begin_step(4)
    clock.now_s += 4
    recorder.add(StreamEvent.TEXT_GAP, 9.0, is_failure=False)
    clock.now_s += 2
    recorder.add(StreamEvent.FIRST_TEXT, 2.0, is_failure=False)
    recorder.add(StreamEvent.FIRST_TEXT, 1.0, is_failure=False)
    for _ in range(28):
        recorder.add(StreamEvent.TEXT_GAP, 0.02, is_failure=False)
    clock.now_s += 14
    step = recorder.end_step()
    assert (step.num_ttfts, step.ttft_p50_s, step.ttft_p95_s) == (1, 1.0, 1.0)
    assert (step.inter_token_p50_s, step.inter_token_p95_s) == (0.02, 0.02)
    assert step.output_tokens_per_s == 2.0


@pytest.mark.parametrize("is_last", [False, True], ids=["in the next step", "after the climb"])
def test_a_late_first_token_counts_for_the_step_that_sent_its_request(is_last: bool) -> None:
    """The longest waits are a step's own, even when they outlast it; its tokens per second stay as they were."""
    clock = Clock()
    recorder = StepRecorder(20.0, clock)
    recorder.begin_step(4)
    clock.now_s += 20
    recorder.end_step()
    if not is_last:
        recorder.begin_step(16)
    clock.now_s += 10
    recorder.add(StreamEvent.FIRST_TEXT, 12.0, is_failure=False)
    (step,) = recorder.steps
    assert step.ttft_p95_s == 12.0
    assert step.output_tokens_per_s == 0


def test_ends_count_while_a_step_settles_and_after_the_last_one() -> None:
    """No failure is lost: neither the first second's nor that of an answer which outlives the climb."""
    clock = Clock()
    recorder = StepRecorder(20.0, clock)
    recorder.begin_step(4)
    recorder.add(StreamEvent.END, 1.0, is_failure=True)
    recorder.add(StreamEvent.REFUSAL, 0.1, is_failure=False)
    clock.now_s += 20
    recorder.end_step()
    recorder.add(StreamEvent.END, 1.0, is_failure=False)
    recorder.add(StreamEvent.REFUSAL, 0.1, is_failure=True)
    (step,) = recorder.steps
    assert (step.num_completed, step.num_failed, step.num_refused) == (1, 2, 1)


def test_each_event_counts_in_its_own_step() -> None:
    """The samples of one step do not reach into the next."""
    clock = Clock()
    recorder = StepRecorder(4.0, clock)
    for num_streams, ttft_s in ((1, 0.5), (2, 0.7)):
        recorder.begin_step(num_streams)
        clock.now_s += 3
        recorder.add(StreamEvent.FIRST_TEXT, ttft_s, is_failure=False)
        clock.now_s += 1
        recorder.end_step()
    assert [(step.num_streams, step.ttft_p95_s) for step in recorder.steps] == [(1, 0.5), (2, 0.7)]


@pytest.mark.parametrize(("passed_s", "is_due"), [(19.0, False), (20.0, True)])
def test_a_step_is_due_when_its_time_has_passed(passed_s: float, is_due: bool) -> None:
    """Its settling is part of its time."""
    clock = Clock()
    recorder = StepRecorder(20.0, clock)
    recorder.begin_step(1)
    clock.now_s += passed_s
    assert recorder.is_step_due is is_due


def test_a_step_that_was_cut_short_is_not_among_the_steps() -> None:
    """A climb interrupted in its first step has measured none."""
    recorder = StepRecorder(20.0, Clock())
    assert recorder.is_step_due
    recorder.begin_step(1)
    assert recorder.steps == []


def test_steps_within_the_thresholds_pass() -> None:
    """Values that equal what is allowed are allowed, and only the stated load's TTFT is judged."""
    steps = [a_step(16, ttft_s=2.5, num_completed=99, num_failed=1), a_step(32, ttft_s=30.0)]
    assert Thresholds(max_error_rate=0.01, ttft_at=16, max_ttft_p95_s=2.5).missed(steps) == []


def test_a_slow_first_token_at_the_stated_load_is_missed() -> None:
    """The line says what was measured and what is allowed."""
    missed = Thresholds(ttft_at=16, max_ttft_p95_s=2.5).missed([a_step(1), a_step(16, ttft_s=2.75)])
    assert missed == ["TTFT p95 at 16 streams is 2.750 s; allowed is 2.5 s"]


def test_a_time_that_was_not_measured_is_missed() -> None:
    """An interrupted climb, or a service that sends nothing, must not pass."""
    thresholds = Thresholds(ttft_at=16, max_ttft_p95_s=2.5)
    assert thresholds.missed([a_step(1)]) == [
        "TTFT p95 was not measured, the run ended below 16 streams; allowed is 2.5 s"
    ]
    assert thresholds.missed([a_step(1), a_step(16, ttft_s=None)]) == [
        "TTFT p95 at 16 streams was not measured, no request of its settled time got one; allowed is 2.5 s"
    ]


def test_errors_are_judged_step_by_step() -> None:
    """Three of a hundred at one step are not hidden by the good steps around it."""
    steps = [a_step(1, num_completed=900), a_step(16, num_completed=97, num_failed=3), a_step(32, num_completed=900)]
    missed = Thresholds(max_error_rate=0.01).missed(steps)
    assert missed == ["error rate at 16 streams is 3.00% (3 of 100 requests); allowed is 1.00%"]


def test_a_climb_in_which_nothing_ended_is_missed() -> None:
    """No requests have no error rate, but a run that proves nothing must not pass."""
    (line,) = Thresholds().missed([a_step(num_completed=0)])
    assert "no request came to an end" in line
    assert Thresholds().missed([]) == [line]


@pytest.mark.parametrize(("text", "steps"), [("", ()), ("1", (1,)), ("1,4, 16", (1, 4, 16))])
def test_steps_are_numbers_that_rise(text: str, steps: tuple[int, ...]) -> None:
    """No text is no climb: -u, -r and -t decide as ever."""
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["0", "4,1", "4,4", "1,,4", "1,x", "-1", "1.5", " "])
def test_steps_that_do_not_rise_are_refused(text: str) -> None:
    """The message names what was given and shows what is allowed."""
    with pytest.raises(ArgumentTypeError, match="is no climb; give numbers of streams that rise"):
        parse_steps(text)


def test_the_table_marks_the_knee() -> None:
    """And shows a dash where nothing was measured."""
    _, first, second = steps_table([a_step(4), a_step(16, 50.0, None)]).splitlines()
    assert first.endswith("<- knee")
    assert "-" in second.split()
    assert "knee" not in second


def test_the_files_stand_beside_the_report_and_the_table_in_it(tmp_path: Path) -> None:
    """CSV and JSON hold every step; what was missed is in the JSON and in the page."""
    report = tmp_path / "load.html"
    report.write_text(f"<body>{REPORT_BODY}</body>")
    write_files(report, [a_step(4), a_step(16, 50.0, None)], ["too slow, 2 > 1"])
    with (tmp_path / "load-steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["num_streams"], row["is_knee"], row["ttft_p50_s"]) for row in rows] == [
        ("4", "True", "0.1"),
        ("16", "False", ""),
    ]
    written = json.loads((tmp_path / "load-steps.json").read_text())
    assert [step["num_streams"] for step in written["steps"]] == [4, 16]
    assert written["missed"] == ["too slow, 2 > 1"]
    page = report.read_text()
    assert page.index("missed: too slow, 2 &gt; 1") < page.index(REPORT_BODY)
