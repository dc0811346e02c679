"""Answer: when each piece of one streamed reply came. What the client sends to the process that computes from it."""

from dataclasses import dataclass, field


@dataclass
class Answer:
    """One request. Times are seconds of one monotonic clock; None: has not happened."""

    begun_s: float
    pieces_s: list[float] = field(default_factory=list)  # arrival of each non-empty piece of text
    ended_s: float | None = None
    prompt_tokens: int | None = None  # from the reply's usage
    completion_tokens: int | None = None
    failure: str | None = None


@dataclass
class Observation:
    """All requests of one cell, and the window in which they count."""

    opened_s: float
    closed_s: float
    drained_s: float  # until then the first pieces of requests begun in the window were waited for
    answers: list[Answer]
