"""Constraint: one answer's way through a constraint, token by token.

Shapes: V vocabulary of the model's logits.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from model.constraint.errors import ConstraintError, one_line
from model.constraint.keys import KeyGuard
from model.constraint.vocabulary import Vocabulary

_LEXER_ERROR = "lexer error"
_MIN_TOKENS_BETWEEN_REBUILDS = 16
_REPLAYED_TOKENS_PER_MASK = 64


class Constraint:
    """One answer's way through a constraint. Not thread-safe; copies of one prototype may be used on several threads.

    The lexer's states, found as text is read, are shared by all copies of a prototype, and so is their limit. Where it
    is reached, a constraint goes on with a lexer of its own, and gives up only if its own text fills that too.
    """

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, rebuild: Callable[[], LLMatcher], keys: KeyGuard | None = None
    ) -> None:
        """Take over the matcher. rebuild: makes a fresh one for the same constraint. keys: where objects name some."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._rebuild = rebuild
        self._keys = keys
        self._token_ids: list[int] = []
        self._rebuilt_at = -_MIN_TOKENS_BETWEEN_REBUILDS

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Set the logits [V] of what may not come next to -inf, in place; the constraint's own state stays.

        End tokens are left where the answer may end here; once the constraint is finished, only they are. Usually
        0.1 ms without the interpreter lock; llguidance's limits on a step stop hostile constraints after about 30 ms,
        and the one change of a lexer takes as long as compiling and reading the answer again.

        Raises:
            ConstraintError: the constraint became too complex here, or the model has no token that may come next.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._recover()
            bits = self._matcher.compute_bitmask()
            self._check()
        allowed = self._vocabulary.allowed(bits)
        if self._keys is not None:
            allowed = self._keys.restricted(allowed)
        if not allowed.any():
            raise ConstraintError("the constraint leaves no token of the model's vocabulary to choose")
        np.copyto(logits, -np.inf, where=~allowed)

    def advance(self, token_id: int) -> None:
        """Record that this token was chosen. Unlike `mask`, keeps the interpreter lock; takes microseconds.

        Raises:
            ConstraintError: it was not allowed, or the constraint became too complex here.
        """
        self._token_ids.append(self._vocabulary.matched_id(token_id))
        if not self._matcher.consume_token(self._token_ids[-1]):
            self._recover()
        if self._keys is not None:
            self._keys.read(self._token_ids[-1])

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow: the text is complete and cannot grow, or an end token was taken."""
        return bool(self._matcher.is_stopped())

    def _recover(self) -> None:
        """If the lexer failed, go on with one of one's own, brought to the same place; otherwise raise."""
        is_too_soon = len(self._token_ids) - self._rebuilt_at < _MIN_TOKENS_BETWEEN_REBUILDS
        if is_too_soon or not self._matcher.get_error().startswith(_LEXER_ERROR):
            self._check()
        self._rebuilt_at = len(self._token_ids)
        self._matcher = self._rebuild()
        for position, token_id in enumerate(self._token_ids):
            if position % _REPLAYED_TOKENS_PER_MASK == 0:
                self._matcher.compute_bitmask()  # renews what the lexer may spend
            self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            error = one_line(self._matcher.get_error())
            raise ConstraintError(f"the constraint failed after {len(self._token_ids)} tokens: {error}")
