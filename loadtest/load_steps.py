"""What a climb of load measured, step by step, and where its knee is.

Apart from Locust, which patches the whole process when it is imported: the arithmetic that fails a run is tested
without it.
"""

import math
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

SETTLING_SHARE = 0.25  # of a step: its new streams all start at once, which no steady load does
KNEE_THROUGHPUT_RATIO = 1.1
KNEE_TTFT_RATIO = 1.5


class StreamEvent(StrEnum):
    """What a streaming user reports; the values are the rows of Locust's report."""

    FIRST_TEXT = "TTFT"
    TEXT_GAP = "inter-token"
    END = "e2e"
    REFUSAL = "refused (429)"


@dataclass(frozen=True)
class Step:
    """One level of load, measured. A time is None where nothing was there to be timed."""

    num_streams: int
    output_tokens_per_s: float
    num_ttfts: int  # how many requests the TTFT's percentiles are of
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    inter_token_p50_s: float | None
    inter_token_p95_s: float | None
    num_completed: int
    num_failed: int
    num_refused: int

    @property
    def load(self) -> str:
        """The load in words, for a line of text."""
        return f"{self.num_streams} stream{'' if self.num_streams == 1 else 's'}"

    @property
    def num_requests(self) -> int:
        """Requests that came to an end, refusals aside: a full queue that says so is no error."""
        return self.num_completed + self.num_failed

    @property
    def error_rate(self) -> float:
        """Share of requests that failed, 0-1; 0 where none came to an end."""
        return self.num_failed / self.num_requests if self.num_requests else 0.0


@dataclass
class StepSamples:
    """One level of load while it lasts. Ends of requests count from its first second, times once it has settled."""

    num_streams: int
    measured_from_s: float  # on the recorder's clock
    measured_until_s: float = math.inf
    num_texts: int = 0
    ttfts_s: list[float] = field(default_factory=list)
    text_gaps_s: list[float] = field(default_factory=list)
    num_completed: int = 0
    num_failed: int = 0
    num_refused: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the time to measure has passed."""
        return self.measured_until_s < math.inf

    def measures(self, at_s: float) -> bool:
        """Whether a moment lies within the time that is measured."""
        return self.measured_from_s <= at_s < self.measured_until_s

    def summary(self) -> Step:
        """Returns the step as measured so far; one piece of text is one token. The step must be over."""
        return Step(
            num_streams=self.num_streams,
            output_tokens_per_s=self.num_texts / (self.measured_until_s - self.measured_from_s),
            num_ttfts=len(self.ttfts_s),
            ttft_p50_s=percentile(self.ttfts_s, 0.50),
            ttft_p95_s=percentile(self.ttfts_s, 0.95),
            inter_token_p50_s=percentile(self.text_gaps_s, 0.50),
            inter_token_p95_s=percentile(self.text_gaps_s, 0.95),
            num_completed=self.num_completed,
            num_failed=self.num_failed,
            num_refused=self.num_refused,
        )


class StepRecorder:
    """Files every event under a step: a TTFT under the one its request was sent in, others under the running one.

    By the time it came, a step's longest TTFTs would count for the next step, and the last step's for none. Ends that
    come after the last step count for it too: they are answers to its requests.
    """

    def __init__(self, step_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._step_s = step_s
        self._clock = clock
        self._samples: list[StepSamples] = []

    @property
    def steps(self) -> list[Step]:
        """The steps whose time has passed."""
        return [samples.summary() for samples in self._samples if samples.is_over]

    @property
    def is_step_due(self) -> bool:
        """Whether the running step has had its time (or none has begun)."""
        return not self._samples or self._clock() >= self._samples[-1].measured_from_s + self._measured_share_s

    def begin_step(self, num_streams: int) -> None:
        """Starts a step; the one before it must have ended."""
        self._samples.append(StepSamples(num_streams, self._clock() + self._step_s * SETTLING_SHARE))

    def end_step(self) -> Step:
        """Ends the running step's measurement and returns it."""
        samples = self._samples[-1]
        samples.measured_until_s = self._clock()
        return samples.summary()

    def add(self, event: StreamEvent, elapsed_s: float, is_failure: bool) -> None:
        """Counts one event; nothing counts before the first step."""
        if not self._samples:
            return
        samples = self._samples[-1]
        if is_failure:
            samples.num_failed += 1
        elif event is StreamEvent.END:
            samples.num_completed += 1
        elif event is StreamEvent.REFUSAL:
            samples.num_refused += 1
        else:
            self._add_text(event, self._clock(), elapsed_s)

    def _add_text(self, event: StreamEvent, now_s: float, elapsed_s: float) -> None:
        running = self._samples[-1]
        if running.measures(now_s):
            running.num_texts += 1
            if event is StreamEvent.TEXT_GAP:
                running.text_gaps_s.append(elapsed_s)
        if event is StreamEvent.FIRST_TEXT:
            for samples in self._samples:
                if samples.measures(now_s - elapsed_s):
                    samples.ttfts_s.append(elapsed_s)

    @property
    def _measured_share_s(self) -> float:
        return self._step_s * (1 - SETTLING_SHARE)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the smallest value that at least `share` (0-1) of the values do not exceed; None of no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def find_knee(steps: Sequence[Step]) -> int | None:
    """Returns the index of the knee, or None when the climb has not shown one.

    The knee is the first step after which more streams only wait longer: at the next step, output tokens per second
    are less than 1.1 times as many, and the median TTFT is at least 1.5 times as long (or no first token has come).
    """
    for index, (step, following) in enumerate(pairwise(steps)):
        if step.ttft_p50_s is None:
            continue
        is_flat = following.output_tokens_per_s < KNEE_THROUGHPUT_RATIO * step.output_tokens_per_s
        is_slower = following.ttft_p50_s is None or following.ttft_p50_s >= KNEE_TTFT_RATIO * step.ttft_p50_s
        if is_flat and is_slower:
            return index
    return None


def parse_steps(text: str) -> tuple[int, ...]:
    """Reads the value of `--steps`: numbers of streams, each above the one before it; none of no text.

    Raises:
        ArgumentTypeError: it is something else.
    """
    steps = tuple(int(part) if part.strip().isdecimal() else 0 for part in text.split(",")) if text else ()
    if any(step <= previous for previous, step in pairwise((0, *steps))):
        raise ArgumentTypeError(f"{text!r} is no climb; give numbers of streams that rise, such as 1,4,16")
    return steps
