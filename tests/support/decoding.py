"""Driving a Decoder by hand: what the engine does, for one sequence or a few, greedily."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.bundle import Bundle
from model.decoder import Decoder
from model.kv_cache import KVCache

THREADS = 2
Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def new_decoder(bundle: Bundle, num_rows: int = 1, capacity_tokens: int = 256) -> Decoder:
    """A decoder over a cache of its own."""
    return Decoder(bundle, KVCache(bundle.config, num_rows, capacity_tokens), THREADS)


def random_ids(count: int, seed: int = 0, vocab_size: int = 257) -> Ids:
    """A prompt without sense, which shows small differences best."""
    return np.random.default_rng(seed).integers(0, vocab_size, count)


def prefill_in_chunks(decoder: Decoder, row: int, token_ids: Ids, sizes: Sequence[int]) -> Logits:
    """Logits float32 [V] after the last of the chunks, which together are the prompt."""
    assert sum(sizes) == len(token_ids)
    start, logits = 0, np.empty(0, np.float32)
    for size in sizes:
        logits = decoder.prefill(row, token_ids[start : start + size], start)[0]
        start += size
    return logits.copy()


def continue_greedily(decoder: Decoder, token_ids: Ids, num_tokens: int) -> tuple[list[int], Logits]:
    """Prefill row 0, then decode: the tokens chosen, and the logits [num_tokens, V] that chose them."""
    chosen, seen = [], []
    logits = decoder.prefill(0, token_ids, 0)[0]
    for step in range(num_tokens):
        seen.append(logits.copy())
        chosen.append(int(logits.argmax()))
        if step + 1 < num_tokens:
            past = np.array([len(token_ids) + step])
            logits = decoder.decode(np.array(chosen[-1:]), past)[0]
    return chosen, np.stack(seen)
