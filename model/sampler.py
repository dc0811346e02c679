"""Sampler: logits of a whole batch -> one token per row. Pure but for what it is given; seeded per request.

Separate from the engine so that the distribution can be tested alone. The noise of a token depends on the request's
seed and the token's position only, never on what else is in the batch
or on how often the request was interrupted.

Order, as the field has it: penalties and bias, temperature, min_p, top_k, top_p, then one draw along the tokens from
the likeliest down (ties by id). Only the likeliest NUM_CANDIDATES are looked at first; a draw that they cannot decide
is made again over the whole vocabulary and gives the same token as if it had been made there at once.

Shapes: B rows, V vocabulary, K candidates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from model.sampling import RowState, SamplingParams

MIN_TEMPERATURE = 1e-6  # below this only the likeliest tokens have weight, and float32 would divide by zero
WIDER_CANDIDATES = 4096  # looked at next, where a distribution is so flat that the first ones don't decide
NUM_CANDIDATES = 256  # they nearly always hold the mass; ONNX Runtime finds them in about 1 ms for 16 rows
MASK_64 = 2**64 - 1

Logits = npt.NDArray[np.float32]
TopK = Callable[[Logits, int], tuple[Logits, npt.NDArray[np.int64]]]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of a token under the model's own distribution (before penalties, temperature and truncation).

    top: the likeliest alternatives with theirs, likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SampledToken:
    """A chosen token, with log-probabilities where they were asked for."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class SamplingRow:
    """What one row of logits is sampled with: its parameters, its tokens so far, the position of the new one."""

    params: SamplingParams
    state: RowState
    position: int


@dataclass(frozen=True)
class Sampler:
    """Chooses tokens for all rows of a step at once."""

    top_k: TopK = field(repr=False)

    def sample(self, logits: Logits, rows: Mapping[int, SamplingRow]) -> dict[int, SampledToken]:
        """Choose a token for each row named.

        logits: float32 [B, V]. rows: by index into B; other rows are left alone. Rows that are penalised or biased are
        edited in place.
        """
        reports = {
            index: _LogprobReport.of(logits[index], row.params.logprobs, self.top_k)
            for index, row in rows.items()
            if row.params.logprobs is not None
        }
        for index, row in rows.items():
            if row.params.edits_logits:
                row.state.edit(logits[index], row.params)
        likeliest_ids = logits.argmax(axis=-1)
        chosen = {index: int(likeliest_ids[index]) for index in rows}
        chosen |= self._draw(logits, {index: row for index, row in rows.items() if not row.params.is_greedy})
        return {
            index: SampledToken(token_id, reports[index].of_token(token_id) if index in reports else None)
            for index, token_id in chosen.items()
        }

    def _draw(self, logits: Logits, rows: Mapping[int, SamplingRow]) -> dict[int, int]:
        """Sample the rows that have a temperature."""
        if not rows:
            return {}
        indices = list(rows)
        drawn = logits if len(indices) == len(logits) else logits[indices]
        order = indices if drawn is not logits else range(len(logits))
        values, ids = self.top_k(drawn, min(NUM_CANDIDATES, drawn.shape[-1]))
        return {
            index: _draw_one(drawn[position], values[position], ids[position], rows[index])
            for position, index in enumerate(order)
        }


@dataclass(frozen=True)
class _LogprobReport:
    """One row's log-probabilities, taken before its logits are edited."""

    logits: Logits
    normaliser: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: Logits, num_alternatives: int, top_k: TopK) -> "_LogprobReport":
        normaliser = log_normaliser(logits)
        return cls(logits.copy(), normaliser, _likeliest(logits, num_alternatives, normaliser, top_k))

    def of_token(self, token_id: int) -> TokenLogprobs:
        return TokenLogprobs(float(self.logits[token_id]) - self.normaliser, self.top)


def _draw_one(logits: Logits, values: Logits, ids: npt.NDArray[np.int64], row: SamplingRow) -> int:
    """Sample one row. logits: [V]; values, ids: its K likeliest."""
    params, noise = row.params, uniform(row.params.seed, row.position)
    total = _total_weight(logits, values[0], params.temperature)
    weights = _weights(values, values[0], params.temperature)
    pick = pick_index(weights, total, params, noise, is_whole=len(values) == len(logits))
    if pick is not None:
        return int(ids[pick])
    for count in (WIDER_CANDIDATES, len(logits)):
        order = _likeliest_ids(logits, count)
        weights = _weights(logits[order], values[0], params.temperature)
        pick = pick_index(weights, total, params, noise, is_whole=len(order) == len(logits))
        if pick is not None:
            break
    assert pick is not None, "the whole vocabulary decides every draw"
    return int(order[pick])


def _likeliest_ids(logits: Logits, count: int) -> npt.NDArray[np.intp]:
    """Ids of the `count` largest logits of one row (more where the last ones are equal), falling, ties by id."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
    ids = np.flatnonzero(logits >= threshold)
    return ids[np.argsort(-logits[ids], kind="stable")]


def pick_index(
    weights: npt.NDArray[np.float64], total: float, params: SamplingParams, noise: float, *, is_whole: bool
) -> int | None:
    """Which of the likeliest tokens is drawn, or None if they are too few to decide.

    weights: [K], falling from 1. total: sum over the whole vocabulary. noise: uniform in [0, 1). is_whole: K is V.
    """
    size, is_cut = len(weights), is_whole
    if params.min_p > 0.0:
        above = int(np.searchsorted(-weights, -params.min_p, side="right"))
        size, is_cut = above, is_cut or above < len(weights)
    if 0 < params.top_k <= size:
        size, is_cut = params.top_k, True
    if not is_cut and (params.min_p > 0.0 or params.top_k > 0):
        return None  # what they keep, and so its mass, lies partly beyond these tokens
    cumulative = weights[:size].cumsum()
    mass = cumulative[-1] if is_cut else total
    if params.top_p < 1.0:
        needed = params.top_p * mass
        if cumulative[-1] < needed and not is_cut:
            return None
        size = min(int(np.searchsorted(cumulative, needed)) + 1, size)
        cumulative, mass = cumulative[:size], cumulative[size - 1]
    target = noise * mass
    if target >= cumulative[-1] and not is_cut and params.top_p >= 1.0:
        return None
    return min(int(np.searchsorted(cumulative, target, side="right")), size - 1)


def log_normaliser(logits: Logits) -> float:
    """log(sum(exp(logits))) of one row, float64."""
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _likeliest(logits: Logits, count: int, normaliser: float, top_k: TopK) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens of one row with their log-probabilities, likeliest first."""
    if count == 0:
        return ()
    values, ids = top_k(logits[None], count)
    return tuple((int(i), float(v) - normaliser) for i, v in zip(ids[0], values[0], strict=True))


def uniform(seed: int, position: int) -> float:
    """The noise of one token, in [0, 1): SplitMix64 (Steele et al. 2014) of the seed, then of the position.

    Plain integers, because making one of numpy's counter-based generators costs more than all else about a draw.
    """
    return (_mix(_mix(seed) + position) >> 11) / 2**53


def _mix(value: int) -> int:
    """One step of SplitMix64: 64 bits in, 64 well mixed bits out."""
    value = (value + 0x9E3779B97F4A7C15) & MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def _relative(logits: Logits, largest: np.float32, temperature: float) -> Logits:
    """(logits - largest) / temperature, 0 for the likeliest; infinities and vanishing temperatures included."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(largest):
            return (logits - largest) / np.float32(max(temperature, MIN_TEMPERATURE))
        return np.where(logits == largest, np.float32(0), np.float32(-np.inf))


def _weights(logits: Logits, largest: np.float32, temperature: float) -> npt.NDArray[np.float64]:
    """Relative probabilities, the largest is 1."""
    return np.exp(_relative(logits, largest, temperature)).astype(np.float64)


def _total_weight(logits: Logits, largest: np.float32, temperature: float) -> float:
    """Sum of the weights of a whole row, in float64."""
    return float(np.exp(_relative(logits, largest, temperature)).sum(dtype=np.float64))
