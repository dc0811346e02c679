"""SamplingParams and RowState: how one request wants its tokens chosen, and what it has chosen so far.

Separate from the sampler, which works on whole batches; this is about one request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.errors import UserError

MAX_TEMPERATURE = 2.0
MAX_LOGPROBS = 20
MAX_PENALTY = 2.0
MIN_REPETITION_PENALTY = 0.01  # near 0 it would divide logits into infinities
MAX_BIAS = 100.0


class TokenConstraint(Protocol):
    """What an answer must look like, token by token; `model.constraint.Constraint` is one."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        ...

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set what may not come next to -inf, in place. logits: [V]. Changes no state of its own."""
        ...

    def advance(self, token_id: int) -> None:
        """Take in the token that was chosen."""
        ...


class InvalidSamplingError(UserError, ValueError):
    """A parameter out of its range, or several that contradict each other. `param` names the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def _check(name: str, value: float, low: float, high: float, *, excludes_low: bool = False, of: str = "") -> None:
    """Refuse a value outside its range, or NaN, which fails every comparison."""
    if not (low < value <= high if excludes_low else low <= value <= high):
        bound = "above" if excludes_low else "from"
        until = "and at most" if excludes_low else "to"
        raise InvalidSamplingError(f"{name}{of} is {value}; it must be {bound} {low:g} {until} {high:g}", name)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose a token.

    temperature: 0 (greedy) to 2. top_k: keep this many of the likeliest, 0 keeps all. top_p: keep the likeliest that
    together reach this mass, (0, 1]. min_p: drop what is less likely than this share of the likeliest, [0, 1].
    repetition_penalty: divides the (positive) logits of tokens in prompt or answer, [0.01, 2] (Keskar et al. 2019).
    presence_penalty, frequency_penalty: subtracted once, or per occurrence, from tokens of the answer, [-2, 2].
    logit_bias: added to these tokens' logits, [-100, 100]. allowed_token_ids: nothing else is chosen, if given.
    banned_token_ids: never chosen. banned_sequences: their last token is not chosen behind the others. min_tokens:
    until then none of `end_token_ids` is chosen. seed: 64 bits.
    logprobs: number of alternatives to report, 0 to 20; None reports none and costs nothing.

    Raises:
        InvalidSamplingError: a value out of range or not a number; the message names the field and the range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    banned_token_ids: tuple[int, ...] = ()
    banned_sequences: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        _check("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check("top_p", self.top_p, 0.0, 1.0, excludes_low=True)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, 2.0)
        _check("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check("top_k", self.top_k, 0, 2**31)
        _check("min_tokens", self.min_tokens, 0, 2**31)
        for token_id, bias in self.logit_bias.items():
            _check("logit_bias", bias, -MAX_BIAS, MAX_BIAS, of=f" of token {token_id}")
        if not -(2**63) <= self.seed < 2**63:
            raise InvalidSamplingError(f"seed is {self.seed}; it must fit in 64 bits", "seed")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if any(len(ids) < 2 for ids in self.banned_sequences):
            raise InvalidSamplingError(
                "banned_sequences need at least two tokens; ban one token by itself", "banned_sequences"
            )
        self._check_choice()

    def _check_choice(self) -> None:
        """Refuse an allowance that leaves nothing to choose, at the beginning or later."""
        if self.allowed_token_ids is None:
            return
        left = set(self.allowed_token_ids) - set(self.banned_token_ids)
        if not left or (self.min_tokens and not left - set(self.end_token_ids)):
            message = "allowed_token_ids leaves no token to choose; allow at least one that is not banned"
            more = ", and, with min_tokens, one that does not end the answer" if left else ""
            raise InvalidSamplingError(message + more, "allowed_token_ids")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether tokens seen so far change the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def edits_logits(self) -> bool:
        """Whether the logits are changed before a token is chosen."""
        return bool(
            self.has_penalties
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.banned_token_ids
            or self.banned_sequences
            or self.min_tokens
        )

    def named_token_ids(self) -> dict[str, tuple[int, ...]]:
        """Every token id that is named, by field, for checking against the vocabulary."""
        return {
            "logit_bias": tuple(self.logit_bias),
            "allowed_token_ids": self.allowed_token_ids or (),
            "banned_token_ids": self.banned_token_ids,
            "banned_sequences": tuple(token_id for ids in self.banned_sequences for token_id in ids),
            "end_token_ids": self.end_token_ids,
        }


class RowState:
    """The tokens of one request, counted for its penalties, and its constraint. Nothing is counted until it is needed.

    failure: why the constraint could not be applied, once that has happened; the request must end.
    """

    def __init__(
        self, prompt_ids: Sequence[int], generated_ids: Sequence[int], constraint: TokenConstraint | None = None
    ) -> None:
        """generated_ids: the request's own growing list; it is read, never changed."""
        self.constraint = constraint
        self.failure: str | None = None
        self._prompt_ids = prompt_ids
        self._generated_ids = generated_ids
        self._counts: dict[int, int] = {}
        self._num_counted = 0
        self._seen: npt.NDArray[np.int64] | None = None

    def edit(self, logits: npt.NDArray[np.float32], params: SamplingParams) -> None:
        """Apply penalties, bias, bans and the constraint to one row of logits [V], in place.

        The constraint has the last word: where the others leave nothing that it allows, they are dropped. Without one,
        banned sequences are dropped where they and an allowance leave nothing.
        """
        may_leave_nothing = self.constraint is not None or bool(params.banned_sequences)
        unedited = logits.copy() if may_leave_nothing and params.edits_logits else None
        self._edit(logits, params)
        self._constrain(logits)
        if unedited is not None and np.isneginf(logits.max()):
            logits[:] = unedited
            if self.constraint is None:
                self._edit(logits, params, bans_sequences=False)
            self._constrain(logits)

    def _constrain(self, logits: npt.NDArray[np.float32]) -> None:
        if self.constraint is None or self.failure is not None:
            return
        try:
            self.constraint.mask(logits)
        except ValueError as error:  # one request's constraint must not end the step of others
            self.failure = str(error)

    def _edit(self, logits: npt.NDArray[np.float32], params: SamplingParams, *, bans_sequences: bool = True) -> None:
        if params.has_penalties:
            self._penalise(logits, params)
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias, np.int64)
            logits[ids] += np.fromiter(params.logit_bias.values(), np.float32)
        if params.banned_token_ids:
            logits[list(params.banned_token_ids)] = -np.inf
        for *head, last in params.banned_sequences if bans_sequences else ():
            if head == list(self._generated_ids[-len(head) :]):
                logits[last] = -np.inf
        if params.end_token_ids and len(self._generated_ids) < params.min_tokens:
            logits[list(params.end_token_ids)] = -np.inf
        if params.allowed_token_ids is not None:
            allowed = list(params.allowed_token_ids)
            kept = logits[allowed].copy()
            logits.fill(-np.inf)
            logits[allowed] = kept

    def _penalise(self, logits: npt.NDArray[np.float32], params: SamplingParams) -> None:
        self._count()
        if params.repetition_penalty != 1.0:
            seen = self._seen_ids()
            values = logits[seen]
            penalty = np.float32(params.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts

    def _count(self) -> None:
        """Count the tokens generated since the last time."""
        for token_id in self._generated_ids[self._num_counted :]:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        self._num_counted = len(self._generated_ids)

    def _seen_ids(self) -> npt.NDArray[np.int64]:
        if self._seen is None:
            self._seen = np.unique(np.array(self._prompt_ids, np.int64))
        return np.union1d(self._seen, np.fromiter(self._counts, np.int64))
