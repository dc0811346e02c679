"""Raises the load by steps until the knee, and fails the run that misses a threshold.

Locust would use a shape that stands in its locustfile always; this one is installed only when `--steps` asks for it.
"""

import sys
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from geventhttpclient import HTTPClient
from locust import LoadTestShape, log
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.load_report import Thresholds, steps_table, write_files
from loadtest.load_steps import StepRecorder, StreamEvent, find_knee, parse_steps

ANSWER_TIMEOUT_S = 5.0  # a service that cannot list its models by then is not one to load


def add_options(parser: LocustArgumentParser) -> None:
    """Adds the options of a climb to Locust's command line."""

    def add(name: str, kind: Any, default: Any, text: str) -> None:
        variable = "LOADTEST_" + name.upper().replace("-", "_")
        parser.add_argument(
            f"--{name}", env_var=variable, type=kind, default=default, help=text, include_in_web_ui=False
        )

    add("steps", parse_steps, "", "Numbers of streams to climb by, such as 1,4,16; none: -u, -r and -t decide.")
    add("step-seconds", float, 20.0, "Length of a step, its settling included.")
    add("max-error-rate", float, 0.0, "Share of a step's requests that may fail, 0 to 1.")
    add("ttft-at", int, 0, "The step whose TTFT is judged, in streams; 0: none.")
    add("max-ttft-p95-s", float, 2.5, "Longest TTFT p95 allowed at that step.")


class StepClimb(LoadTestShape):
    """One step after another, up to the one that shows the knee (and to the one that a threshold is about)."""

    abstract = True  # keeps Locust from taking it by itself

    def __init__(self, levels: tuple[int, ...], at_least: int, recorder: StepRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Locust's shapes have no types
        self._waiting = list(levels)
        self._at_least = at_least
        self._recorder = recorder
        self._streams = 0

    def tick(self) -> tuple[int, float] | None:
        """Returns the streams that should run now, all new ones started at once; None when the climb is over."""
        if self._recorder.is_step_due:
            if self._streams:
                step = self._recorder.end_step()
                print(f"{step.load}: {step.output_tokens_per_s:.1f} tokens/s", flush=True)
            if not self._waiting or self._has_climbed_enough():
                return None
            self._streams = self._waiting.pop(0)
            self._recorder.begin_step(self._streams)
        return self._streams, float(self._streams)

    def _has_climbed_enough(self) -> bool:
        return self._streams >= self._at_least and find_knee(self._recorder.steps) is not None


class ClimbVerdict:
    """Judges a climb that has ended: Locust's exit status, the files, and what to say below Locust's own tables."""

    def __init__(self, recorder: StepRecorder, thresholds: Thresholds) -> None:
        self._recorder = recorder
        self._thresholds = thresholds
        self._lines: list[str] = []

    def judge(self, environment: Environment, **_: Any) -> None:
        """Sets the exit status: 1 when a threshold was missed; failed requests alone do not fail the run."""
        options: Any = environment.parsed_options
        runner: Any = environment.runner
        steps = self._recorder.steps
        missed = self._thresholds.missed(steps)
        self._lines = [steps_table(steps), *(f"missed: {line}" for line in missed)]
        if missed:
            environment.process_exit_code = 1
        elif not runner.exceptions and not log.unhandled_greenlet_exception:
            environment.process_exit_code = 0
        report = Path(options.html_file or "")
        if report.is_file():
            self._lines += [f"wrote {path}" for path in write_files(report, steps, missed)]

    def show(self, **_: Any) -> None:
        """Prints the verdict."""
        print("\n" + "\n".join(self._lines), flush=True)


def install(environment: Environment, host: str) -> None:
    """Makes this run a climb, as the options say.

    Raises:
        SystemExit: an option does not fit a climb, or no service answers.
    """
    options: Any = environment.parsed_options
    if not options.headless or options.master or options.worker:
        sys.exit("--steps climbs with --headless and in one process: leave out --master, --worker and --processes")
    if options.step_seconds <= 0:
        sys.exit(f"--step-seconds is {options.step_seconds:g}; give more than 0")
    if not 0 <= options.max_error_rate <= 1:
        sys.exit(f"--max-error-rate is {options.max_error_rate:g}; give a share, 0 to 1")
    if options.ttft_at and options.ttft_at not in options.steps:
        levels = ",".join(map(str, options.steps))
        sys.exit(f"--ttft-at is {options.ttft_at}, which is no step of {levels}; name one of them, or 0 to judge none")
    _require_service(host, options.api_key)
    recorder = StepRecorder(options.step_seconds)
    verdict = ClimbVerdict(recorder, Thresholds(options.max_error_rate, options.ttft_at, options.max_ttft_p95_s))

    def record(name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
        recorder.add(StreamEvent(name), response_time / 1000, is_failure=exception is not None)

    environment.shape_class = StepClimb(options.steps, options.ttft_at, recorder)
    events: Any = environment.events  # Locust's hooks have no types
    events.request.add_listener(record)
    events.quitting.add_listener(verdict.judge)
    events.quit.add_listener(verdict.show)


def _require_service(host: str, api_key: str) -> None:
    """Asks for the models once, so that a run against nothing ends at once and in one line."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        client = HTTPClient.from_url(host, connection_timeout=ANSWER_TIMEOUT_S, network_timeout=ANSWER_TIMEOUT_S)
        status = client.get("/v1/models", headers).status_code
        client.close()
    except (OSError, HTTPException, ValueError) as error:
        sys.exit(f"no service answers at {host} ({error}); start one with `make serve`, or name another with --host")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        sys.exit(f"the service at {host} refuses this API key or its absence; give one with LOADTEST_API_KEY")
