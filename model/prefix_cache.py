"""PrefixCache: keys and values of prompts already computed, shared block by block between requests.

Separate from the KV cache, whose rows belong to running requests; a block here belongs to nobody. A block is known by
the hash of its tokens and of all tokens before it (and of a salt, which keeps tenants apart), so equal prompts find
each other whatever comes after. Only tokens computed as a prompt are stored, never what generation left: a hit gives
bit for bit what computing would (docs/adr/0008). The least recently used blocks go first, a prompt's last before its
first.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.kv_cache import KVCache

BLOCK_TOKENS = 64
MIN_COMPUTED_TOKENS = 2  # of a prompt's end: its last token must be computed, and never alone
KEY_BYTES = 16

Block = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PrefixUsage:
    """What is stored now."""

    num_blocks: int
    num_bytes: int
    capacity_bytes: int


class PrefixCache:
    """Blocks of BLOCK_TOKENS tokens, by content. One thread at a time; the engine's."""

    def __init__(self, kv_cache: KVCache, capacity_bytes: int) -> None:
        """capacity_bytes: most memory for blocks; 0 stores nothing."""
        self._kv_cache = kv_cache
        self._capacity_bytes = capacity_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._num_bytes = 0

    def match(self, token_ids: Sequence[int], salt: str = "") -> int:
        """How many of a prompt's first tokens are stored; its last two are always left to compute. Changes nothing."""
        num_tokens = 0
        for key in _keys(token_ids, salt, len(token_ids) - MIN_COMPUTED_TOKENS):
            if key not in self._blocks:
                break
            num_tokens += BLOCK_TOKENS
        return num_tokens

    def load(self, row: int, token_ids: Sequence[int], num_tokens: int, salt: str = "", num_held: int = 0) -> None:
        """Copy a prompt's first `num_tokens`, as `match` gave them, into a row that holds `num_held` of them."""
        keys = list(_keys(token_ids, salt, num_tokens))
        for index, key in enumerate(keys):
            if (index + 1) * BLOCK_TOKENS > num_held:
                self._kv_cache.write(row, index * BLOCK_TOKENS, self._blocks[key])
        self._touch(keys)

    def store(self, row: int, token_ids: Sequence[int], salt: str = "") -> None:
        """Keep the whole blocks of a prompt that `row` holds computed."""
        if not self._capacity_bytes:
            return  # switched off: nothing to copy only to forget it
        keys = list(_keys(token_ids, salt, len(token_ids)))
        for index, key in enumerate(keys):
            if key not in self._blocks:
                block = self._kv_cache.read(row, index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
                self._blocks[key] = block
                self._num_bytes += block.nbytes
        self._touch(keys)
        while self._num_bytes > self._capacity_bytes:
            _, evicted = self._blocks.popitem(last=False)
            self._num_bytes -= evicted.nbytes

    def usage(self) -> PrefixUsage:
        """What is stored now."""
        return PrefixUsage(len(self._blocks), self._num_bytes, self._capacity_bytes)

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Mark as used; a first block after the later ones, which are useless without it."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _keys(token_ids: Sequence[int], salt: str, limit: int) -> Iterator[bytes]:
    """The keys of the whole blocks within the first `limit` tokens; each covers all tokens up to its block's end."""
    key = hashlib.blake2b(salt.encode("utf-8"), digest_size=KEY_BYTES).digest()
    for start in range(0, limit - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = np.array(token_ids[start : start + BLOCK_TOKENS], np.int64)
        key = hashlib.blake2b(key + block.tobytes(), digest_size=KEY_BYTES).digest()
        yield key
