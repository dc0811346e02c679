"""PrefixCache: keys and values of prompts already computed, shared block by block between requests.

Separate from the KV cache, whose rows belong to running requests; a block here belongs to nobody. A block is known by
the hash of its tokens and of all tokens before it (and of a salt, which keeps tenants apart), so equal prompts find
each other whatever comes after. A hit maps the blocks into the row, so rows that begin alike share their memory. Only
tokens computed as a prompt are stored, never what generation left: a hit gives bit for bit what computing would
(docs/adr/0008). The least recently used blocks that no row maps go first, a prompt's last before its first.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.kv_blocks import BLOCK_TOKENS
from model.kv_cache import KVCache

MIN_COMPUTED_TOKENS = 2  # of a prompt's end: its last token must be computed, and never alone
KEY_BYTES = 16


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
        self._store = kv_cache.new_block_store(capacity_bytes)
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # by key, the least recently used first

    @property
    def is_on(self) -> bool:
        """Whether anything may be shared at all."""
        return self._capacity_bytes > 0

    def match(self, token_ids: Sequence[int], salt: str = "") -> int:
        """How many of a prompt's first tokens are stored; its last two are always left to compute. Changes nothing."""
        num_tokens = 0
        for key in _keys(token_ids, salt, len(token_ids) - MIN_COMPUTED_TOKENS):
            if key not in self._slots:
                break
            num_tokens += BLOCK_TOKENS
        return num_tokens

    def load(self, row: int, token_ids: Sequence[int], num_tokens: int, salt: str = "", num_held: int = 0) -> None:
        """Put a prompt's first `num_tokens`, as `match` gave them, into a row that holds `num_held` of them."""
        keys = list(_keys(token_ids, salt, num_tokens))
        first = num_held // BLOCK_TOKENS
        self._kv_cache.attach(row, first * BLOCK_TOKENS, self._store, [self._slots[key] for key in keys[first:]])
        self._touch(keys)

    def store(self, row: int, token_ids: Sequence[int], salt: str = "") -> None:
        """Keep the whole blocks of a prompt that `row` holds computed, from its beginning, as far as there is room."""
        if not self._store.num_slots:
            return
        keys = list(_keys(token_ids, salt, len(token_ids)))
        wanted = frozenset(keys)
        for index, key in enumerate(keys):
            if key in self._slots:
                continue
            slot = self._make_room(wanted)
            if slot is None:
                break
            self._store.write(slot, self._kv_cache.read(row, index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS))
            self._slots[key] = slot
        self._touch([key for key in keys if key in self._slots])

    def _make_room(self, kept: frozenset[bytes]) -> int | None:
        """A slot: a free one, else that of the least recently used block that no row maps and that is not `kept`."""
        slot = self._store.take()
        if slot is not None:
            return slot
        for key, held in self._slots.items():
            if key not in kept and not self._store.is_pinned(held):
                del self._slots[key]
                return held
        return None

    def usage(self) -> PrefixUsage:
        """What is stored now."""
        num_bytes = len(self._slots) * self._store.slot_bytes
        return PrefixUsage(len(self._slots), num_bytes, self._capacity_bytes)

    def _touch(self, keys: Sequence[bytes]) -> None:
        """Mark as used; a first block after the later ones, which are useless without it."""
        for key in reversed(keys):
            self._slots.move_to_end(key)


def _keys(token_ids: Sequence[int], salt: str, limit: int) -> Iterator[bytes]:
    """The keys of the whole blocks within the first `limit` tokens; each covers all tokens up to its block's end."""
    key = hashlib.blake2b(salt.encode("utf-8"), digest_size=KEY_BYTES).digest()
    for start in range(0, limit - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = np.array(token_ids[start : start + BLOCK_TOKENS], np.int64)
        key = hashlib.blake2b(key + block.tobytes(), digest_size=KEY_BYTES).digest()
        yield key
