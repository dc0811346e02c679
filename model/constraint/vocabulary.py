"""Vocabulary: from the ids that llguidance speaks of to those of the model's logits, and the bytes of each token.

Shapes: V vocabulary of the model's logits, which may be larger than the tokenizer's.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer

from model.constraint.keys import TokenBytes


class Vocabulary:
    """The ids of the tokenizer, and one of the end tokens for all of them."""

    def __init__(
        self, tokenizer: LLTokenizer, vocab_size: int, end_token_ids: Sequence[int], matched_end_id: int
    ) -> None:
        """vocab_size: V. matched_end_id: the end token that llguidance knows."""
        self._tokenizer = tokenizer
        self._num_tokens: int = tokenizer.vocab_size
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)
        self._matched_end_id = matched_end_id

    def matched_id(self, token_id: int) -> int:
        """The id by which a matcher knows a token."""
        return self._matched_end_id if token_id in self._end_token_ids else token_id

    def allowed(self, bits: bytes) -> npt.NDArray[np.bool_]:
        """From a matcher's mask, one bit per token, to bool [V]; ids that the tokenizer does not have are False."""
        size = max(self._vocab_size, self._num_tokens)
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), count=size, bitorder="little").view(np.bool_)
        allowed[self._num_tokens :] = False
        allowed[self._end_token_ids] = allowed[self._matched_end_id]
        return allowed[: self._vocab_size]

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of every token; read on first use, 50 ms for 49,152 tokens."""
        return TokenBytes([self._tokenizer.decode_bytes([token_id]) for token_id in range(self._num_tokens)])
