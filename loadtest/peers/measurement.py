"""From an `Observation` to the numbers of one cell. Pure.

Tokens are counted in the window in which they arrive. A piece of text may hold several tokens, so each piece of an
answer counts as that answer's tokens (from the reply's usage) divided by its pieces; an answer cut off before its
usage came counts as the others did on average. Inter-token time is the gap between two pieces, per token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.load_steps import percentile
from loadtest.peers.answer import Answer, Observation


@dataclass(frozen=True)
class Load:
    """What the clients of one cell saw. Seconds; percentiles are None where nothing arrived."""

    window_s: float
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    inter_token_p50_s: float | None
    inter_token_p95_s: float | None
    num_answers: int  # that ended well in the window
    num_errors: int
    first_error: str | None
    prompt_tokens: float | None  # means, as the server counts them
    answer_tokens: float | None

    @property
    def output_tokens(self) -> float:
        """Tokens that arrived in the window."""
        return self.tokens_per_s * self.window_s


def load_of(observation: Observation) -> Load:
    """Compute a cell's numbers."""
    opened_s, closed_s = observation.opened_s, observation.closed_s
    usual_weight = _usual_weight(observation.answers)
    num_tokens, gaps_s = 0.0, list[float]()
    for answer in observation.answers:
        weight = _weight(answer) or usual_weight
        num_tokens += weight * sum(1 for at_s in answer.pieces_s if opened_s <= at_s < closed_s)
        gaps_s += [gap_s / weight for at_s, gap_s in _gaps(answer) if opened_s <= at_s < closed_s]
    ttfts_s = list(_ttfts(observation))
    ended = [a for a in observation.answers if a.ended_s is not None and opened_s <= a.ended_s < closed_s]
    failures = [a.failure for a in ended if a.failure is not None]
    good = [a for a in ended if a.failure is None]
    return Load(
        window_s=closed_s - opened_s,
        tokens_per_s=num_tokens / (closed_s - opened_s),
        ttft_p50_s=percentile(ttfts_s, 0.5),
        ttft_p95_s=percentile(ttfts_s, 0.95),
        inter_token_p50_s=percentile(gaps_s, 0.5),
        inter_token_p95_s=percentile(gaps_s, 0.95),
        num_answers=len(good),
        num_errors=len(failures),
        first_error=failures[0] if failures else None,
        prompt_tokens=_mean([a.prompt_tokens for a in good if a.prompt_tokens is not None]),
        answer_tokens=_mean([a.completion_tokens for a in good if a.completion_tokens is not None]),
    )


def _weight(answer: Answer) -> float | None:
    """Tokens per piece of text; None when the server did not say how many tokens there were."""
    if not answer.completion_tokens or not answer.pieces_s:
        return None
    return answer.completion_tokens / len(answer.pieces_s)


def _usual_weight(answers: Sequence[Answer]) -> float:
    return _mean([weight for answer in answers if (weight := _weight(answer))]) or 1.0


def _gaps(answer: Answer) -> Iterator[tuple[float, float]]:
    """(arrival, seconds since the piece before) of each piece but the first."""
    for before_s, at_s in zip(answer.pieces_s, answer.pieces_s[1:], strict=False):
        yield at_s, at_s - before_s


def _ttfts(observation: Observation) -> Iterator[float]:
    """Seconds to first text of the requests begun in the window; at least the wait so far where none ever came."""
    for answer in observation.answers:
        if observation.opened_s <= answer.begun_s < observation.closed_s and answer.failure is None:
            yield (answer.pieces_s[0] if answer.pieces_s else observation.drained_s) - answer.begun_s


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
