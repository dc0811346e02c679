"""Sampler: logits -> one token id. Pure, and seeded per request.

Separate from the engine so that the distribution can be tested alone. The noise of a token depends on the request's
seed and the token's position only (a counter-based generator, Salmon et al. 2011), never on what else is in the batch
or on how often the request was interrupted.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_TEMPERATURE = 2.0
NUM_CANDIDATES = 512  # nucleus sampling first looks at this many tokens; nearly always they hold the mass


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a token. temperature: 0 (greedy) to 2. top_p: mass of the nucleus, (0, 1]. seed: 64 bits.

    Raises:
        ValueError: a value out of range or not a number; the message names the field and the range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range; NaN fails each comparison."""
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature is {self.temperature}; it must be from 0 to {MAX_TEMPERATURE:g}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit in 64 bits")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


def sample(logits: npt.NDArray[np.float32], params: SamplingParams, position: int) -> int:
    """Choose a token.

    logits: float32 [V]. position: index of the token in prompt plus answer; with the seed it decides the noise.
    Returns the token's id.
    """
    largest = logits.max()
    if params.is_greedy or not np.isfinite(largest):  # nothing to weigh where one is infinite or not a number
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, and so a weight of 0, is right
        weights = np.exp((logits.astype(np.float64) - largest) / params.temperature)  # the largest is 1
    noise = _uniform(params.seed, position)
    if params.top_p < 1.0:
        return _sample_nucleus(weights, params.top_p, noise)
    return _pick(weights, noise)


def _sample_nucleus(weights: npt.NDArray[np.float64], top_p: float, noise: float) -> int:
    """Sample among the most likely tokens that together reach `top_p` (Holtzman et al. 2020).

    Ties are ordered by token id, so the nucleus is the same whichever way it was found.
    """
    target = top_p * weights.sum()
    for num_candidates in (NUM_CANDIDATES, len(weights)):
        ids = _largest(weights, num_candidates)
        cumulative = weights[ids].cumsum()
        if cumulative[-1] >= target or num_candidates == len(weights):
            break
    size = min(int(np.searchsorted(cumulative, target)) + 1, len(ids))
    return int(ids[_pick(weights[ids[:size]], noise)])


def _largest(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Ids of (at least) the `count` largest weights, by falling weight, then rising id."""
    if count < len(weights):
        threshold = np.partition(weights, len(weights) - count)[len(weights) - count]
        ids = np.flatnonzero(weights >= threshold)
    else:
        ids = np.arange(len(weights))
    return ids[np.argsort(-weights[ids], kind="stable")]


def _pick(weights: npt.NDArray[np.float64], noise: float) -> int:
    """Inverse of the cumulative distribution at `noise`, uniform in [0, 1)."""
    cumulative = weights.cumsum()
    return min(int(np.searchsorted(cumulative, noise * cumulative[-1], side="right")), len(weights) - 1)


def _uniform(seed: int, position: int) -> float:
    """The noise of one token: Philox keyed by the seed, counting positions."""
    generator = np.random.Philox(key=seed % 2**64, counter=position)
    return float(np.random.Generator(generator).random())
