"""FakeDecoder: a decoder without a model, for testing the engine.

It keeps each token's id in the real KVCache, where a real decoder keeps keys and values, and makes the next token a
pure function of the ids it reads back. A row that is lost, mixed up, moved wrongly or scribbled on gives other tokens.
"""

import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.kv_cache import KVCache
from tests.support.kernels import NumpyKernels

VOCAB_SIZE = 257
END_ID = 256
FAKE_CONFIG = ModelConfig(
    model_id="fake",
    vocab_size=VOCAB_SIZE,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    context_tokens=512,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    eos_token_ids=(END_ID,),
)


def next_token(token_ids: Sequence[int]) -> int:
    """The one token that follows these, never the end token."""
    return zlib.crc32(np.asarray(token_ids, np.int64).tobytes()) % END_ID


def repeating_token(token_ids: Sequence[int]) -> int:
    """A token that mostly continues what stood five tokens before, as an answer that quotes its prompt does."""
    return token_ids[-5] if len(token_ids) >= 5 and next_token(token_ids) % 8 else next_token(token_ids)


def expected_tokens(
    prompt_ids: Sequence[int], count: int, follow: Callable[[Sequence[int]], int] = next_token
) -> list[int]:
    """What a greedy request must generate."""
    ids = list(prompt_ids)
    for _ in range(count):
        ids.append(follow(ids))
    return ids[len(prompt_ids) :]


class FakeDecoder(NumpyKernels):
    """Stands in for model.decoder.Decoder; counts calls and fails on demand."""

    def __init__(self, num_rows: int = 4, capacity_tokens: int = 512) -> None:
        self.config = FAKE_CONFIG
        self.kv_cache = KVCache(FAKE_CONFIG, num_rows, capacity_tokens)
        self.num_calls = 0
        self.decode_rows: list[int] = []
        self.chunks: list[int] = []
        self.always_fails = False
        self.fail_at_call: int | None = None
        self.failure: Exception = RuntimeError("injected failure")
        self.next_token: Callable[[Sequence[int]], int] = next_token

    def prefill(
        self, row: int, token_ids: npt.NDArray[np.int64], num_past: int, positions: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Write a chunk, answer for the positions asked for, or for its last token."""
        self._count()
        self.chunks.append(len(token_ids))
        self._keys[row, 0, num_past : num_past + len(token_ids), 0] = token_ids
        wanted = [len(token_ids) - 1] if positions is None else positions
        return np.stack([self._logits(row, num_past + int(position) + 1) for position in wanted])

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Write one token of every row up to the last, also of those that take no part."""
        self._count()
        self.decode_rows.append(len(token_ids))
        for row, (token_id, past) in enumerate(zip(token_ids, past_tokens, strict=True)):
            self._keys[row, 0, past, 0] = token_id
        return np.stack([self._logits(row, int(past) + 1) for row, past in enumerate(past_tokens)])

    @property
    def _keys(self) -> npt.NDArray[np.float32]:
        return self.kv_cache._arrays[0]

    def _logits(self, row: int, num_tokens: int) -> npt.NDArray[np.float32]:
        logits = np.zeros(VOCAB_SIZE, np.float32)
        logits[self.next_token(self._keys[row, 0, :num_tokens, 0].astype(np.int64).tolist())] = 1.0
        return logits

    def _count(self) -> None:
        self.num_calls += 1
        if self.always_fails or self.num_calls == self.fail_at_call:
            raise self.failure


class GatedDecoder(FakeDecoder):
    """Waits for `gate` before each decode, so that a test decides when a step ends."""

    def __init__(self, num_rows: int = 4) -> None:
        super().__init__(num_rows)
        self.gate = threading.Event()
        self.entered = threading.Event()

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Decode once the gate is open."""
        self.entered.set()
        assert self.gate.wait(20), "the test never opened the gate"
        return super().decode(token_ids, past_tokens)
