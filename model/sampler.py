"""Sampler: logits of a whole batch -> one token per row. Pure but for what it is given; seeded per request.

Separate from the engine so that the distribution can be tested alone. The noise of a token depends on the request's
seed and the token's position only, never on what else is in the batch
or on how often the request was interrupted.

Order, as the field has it: penalties and bias, temperature, min_p, top_k, top_p, then one draw along the tokens from
the likeliest down (ties by id). Only tokens that are likely enough beside the likeliest are sorted at first; a draw
that they cannot decide is made again with more of them and gives the same token as over the whole vocabulary at once.

Shapes: B rows, V vocabulary, K candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.sampling import RowState, SamplingParams

MIN_TEMPERATURE = 1e-6  # below this only the likeliest tokens have weight, and float32 would divide by zero
CANDIDATE_SHARES = (3e-3, 1e-5, 0.0)  # of the likeliest token's weight: what is looked at first, next, and last
MASK_64 = 2**64 - 1

Logits = npt.NDArray[np.float32]


class LogitsKernels(Protocol):
    """What is computed over whole vocabularies for the sampler; `model.decoder.Decoder` states the shapes."""

    def top_k(self, logits: Logits, count: int) -> tuple[Logits, npt.NDArray[np.int64]]:
        """The `count` largest logits of each row and their ids, both [B, count], falling, ties by id."""
        ...

    def weight_sums(self, logits: Logits, largest: Logits, inverse_temperatures: Logits) -> Logits:
        """Sums of exp((logits - largest) * inverse_temperature), float32 [B]."""
        ...


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of a token under the model's own distribution (before penalties, temperature and truncation).

    rank: 1 for the likeliest. top: the likeliest alternatives with theirs, likeliest first.
    """

    logprob: float
    rank: int
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

    kernels: LogitsKernels = field(repr=False)

    def sample(self, logits: Logits, rows: Mapping[int, SamplingRow]) -> dict[int, SampledToken]:
        """Choose a token for each row named.

        logits: float32 [B, V]. rows: by index into B; other rows are left alone. Rows that are penalised or biased are
        edited in place.
        """
        reports = {
            index: _LogprobReport.of(logits[index], row.params.logprobs, self.kernels)
            for index, row in rows.items()
            if row.params.logprobs is not None
        }
        for index, row in rows.items():
            if row.params.edits_logits or row.state.constraint is not None:
                row.state.edit(logits[index], row.params)
        likeliest_ids = logits.argmax(axis=-1)
        chosen = {index: int(likeliest_ids[index]) for index in rows}
        chosen |= self._draw(logits, {index: row for index, row in rows.items() if not row.params.is_greedy})
        return {
            index: SampledToken(token_id, reports[index].of_token(token_id) if index in reports else None)
            for index, token_id in chosen.items()
        }

    def logprobs(self, logits: Logits, token_ids: Sequence[int], num_alternatives: int) -> list[TokenLogprobs]:
        """Log-probabilities of given tokens. logits: float32 [N, V], one row for each of the N ids."""
        reports = [_LogprobReport.of(row, num_alternatives, self.kernels, keeps=True) for row in logits]
        return [report.of_token(token_id) for report, token_id in zip(reports, token_ids, strict=True)]

    def _draw(self, logits: Logits, rows: Mapping[int, SamplingRow]) -> dict[int, int]:
        """Sample the rows that have a temperature."""
        if not rows:
            return {}
        drawn = logits if len(rows) == len(logits) else logits[list(rows)]
        order = sorted(rows) if drawn is logits else list(rows)
        temperatures = np.array([_temperature(rows[index].params) for index in order], np.float32)
        largest = drawn.max(axis=-1)
        usual = np.where(np.isfinite(largest), largest, np.float32(0))
        totals = self.kernels.weight_sums(drawn, usual, np.float32(1) / temperatures)
        return {
            index: _draw_one(drawn[at], largest[at], float(totals[at]), rows[index]) for at, index in enumerate(order)
        }


@dataclass(frozen=True)
class _LogprobReport:
    """One row's log-probabilities, taken before its logits are edited."""

    logits: Logits
    normaliser: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(
        cls, logits: Logits, num_alternatives: int, kernels: LogitsKernels, *, keeps: bool = False
    ) -> "_LogprobReport":
        """keeps: nobody changes the logits while the report is in use."""
        normaliser = log_normaliser(logits)
        alternatives = _likeliest(logits, num_alternatives, normaliser, kernels)
        return cls(logits if keeps else logits.copy(), normaliser, alternatives)

    def of_token(self, token_id: int) -> TokenLogprobs:
        logit = self.logits[token_id]
        rank = 1 + int(np.count_nonzero(self.logits > logit))
        return TokenLogprobs(float(logit) - self.normaliser, rank, self.top)


def _draw_one(logits: Logits, largest: np.float32, total: float, row: SamplingRow) -> int:
    """Sample one row. logits: [V]. total: sum of its weights, right where `largest` is finite."""
    params, noise = row.params, uniform(row.params.seed, row.position)
    temperature = _temperature(params)
    if not np.isfinite(largest):
        total = float(np.count_nonzero(logits == largest))
    pick = None
    for share in CANDIDATE_SHARES:
        ids = _candidates(logits, largest, temperature, share)
        weights = _weights(logits[ids], largest, temperature)
        pick = pick_index(weights, total, params, noise, is_whole=len(ids) == len(logits))
        if pick is not None:
            break
    assert pick is not None, "the whole vocabulary decides every draw"
    return int(ids[pick])


def _temperature(params: SamplingParams) -> float:
    """The temperature, kept from vanishing."""
    return max(params.temperature, MIN_TEMPERATURE)


def _candidates(logits: Logits, largest: np.float32, temperature: float, share: float) -> npt.NDArray[np.intp]:
    """Ids of the tokens whose weight is at least this share of the likeliest one's, falling, ties by id."""
    least = largest + np.float32(temperature * math.log(share)) if share else np.float32(-np.inf)
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")]


def pick_index(
    weights: npt.NDArray[np.float64], total: float, params: SamplingParams, noise: float, *, is_whole: bool
) -> int | None:
    """Which of the likeliest tokens is drawn, or None if they are too few to decide.

    weights: [K], falling from 1. total: sum over the whole vocabulary. noise: uniform in [0, 1). is_whole: K is V.
    """
    size, is_cut = len(weights), False
    if params.min_p > 0.0:
        above = int(np.searchsorted(-weights, -params.min_p, side="right"))
        size, is_cut = above, above < len(weights)
    if 0 < params.top_k <= size:
        size, is_cut = params.top_k, True
    can_widen = not (is_cut or is_whole)
    if can_widen and (params.min_p > 0.0 or params.top_k > 0):
        return None  # what they keep, and so its mass, lies partly beyond these tokens
    cumulative = weights[:size].cumsum()
    mass = cumulative[-1] if is_cut else total  # the same sum, however many candidates it takes to decide
    if params.top_p < 1.0:
        needed = params.top_p * mass
        if can_widen and cumulative[-1] < needed:
            return None
        size = min(int(np.searchsorted(cumulative, needed)) + 1, size)
        cumulative, mass = cumulative[:size], cumulative[size - 1]
    target = noise * mass
    if can_widen and target >= cumulative[-1] and params.top_p >= 1.0:
        return None
    return min(int(np.searchsorted(cumulative, target, side="right")), size - 1)


def log_normaliser(logits: Logits) -> float:
    """log(sum(exp(logits))) of one row, float64."""
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _likeliest(logits: Logits, count: int, normaliser: float, kernels: LogitsKernels) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens of one row with their log-probabilities, likeliest first."""
    if count == 0:
        return ()
    values, ids = kernels.top_k(logits[None], count)
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


def _weights(logits: Logits, largest: np.float32, temperature: float) -> npt.NDArray[np.float64]:
    """Relative probabilities, the largest is 1; infinities and vanishing temperatures included. temperature: not 0."""
    if not np.isfinite(largest):
        return np.asarray(logits == largest, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.exp((logits - largest) * np.float32(1.0 / temperature)), np.float64)
