"""The prefix cache: what it finds, what it gives back, what it forgets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.kv_blocks import BLOCK_TOKENS
from model.kv_cache import KVCache
from model.prefix_cache import PrefixCache
from tests.support.fake_decoder import FAKE_CONFIG

BLOCK_BYTES = 2 * BLOCK_TOKENS * FAKE_CONFIG.head_dim * 4


def make(num_blocks: int = 100) -> tuple[KVCache, PrefixCache]:
    """A cache of two rows with room for some blocks."""
    kv_cache = KVCache(FAKE_CONFIG, 2, 512)
    return kv_cache, PrefixCache(kv_cache, num_blocks * BLOCK_BYTES)


def compute(kv_cache: KVCache, token_ids: list[int]) -> int:
    """A row that holds a prompt, with recognisable keys and values."""
    row = kv_cache.allocate()
    for index, array in enumerate(kv_cache._arrays):
        array[row, 0, : len(token_ids)] = np.array(token_ids, np.float32)[:, None] + 1000 * index
    kv_cache.extend(row, len(token_ids))
    return row


def prompt(length: int, first: int = 0) -> list[int]:
    """Token ids that differ by their first."""
    return [(first + index) % 250 for index in range(length)]


@given(st.integers(0, 400), st.integers(0, 400))
def test_whole_blocks_are_found_and_the_last_two_tokens_always_left(stored: int, asked: int) -> None:
    """Of a prompt that begins like a stored one: the shared whole blocks, never the end."""
    kv_cache, cache = make()
    cache.store(compute(kv_cache, prompt(max(stored, 1))), prompt(max(stored, 1)))
    shared = min(max(stored, 1), max(asked - 2, 0)) // BLOCK_TOKENS * BLOCK_TOKENS
    assert cache.match(prompt(asked)) == shared


def test_what_is_loaded_is_what_was_computed() -> None:
    """Every key and value of every layer."""
    kv_cache, cache = make()
    source = compute(kv_cache, prompt(200))
    cache.store(source, prompt(200))
    target = kv_cache.allocate()
    cache.load(target, prompt(200), 192)
    np.testing.assert_array_equal(kv_cache.read(target, 0, 192), kv_cache.read(source, 0, 192))
    assert kv_cache.usage().num_tokens == 200 + 192


def test_blocks_outlive_the_row_they_came_from() -> None:
    """They are copies: the donor's row can be released and written over."""
    kv_cache, cache = make()
    source = compute(kv_cache, prompt(130))
    expected = kv_cache.read(source, 0, 128)
    cache.store(source, prompt(130))
    kv_cache.release(source)
    compute(kv_cache, prompt(130, first=7))
    row = kv_cache.allocate()
    cache.load(row, prompt(130), 128)
    np.testing.assert_array_equal(kv_cache.read(row, 0, 128), expected)


def test_a_salt_keeps_tenants_apart() -> None:
    """The same prompt under another salt is another prompt."""
    kv_cache, cache = make()
    cache.store(compute(kv_cache, prompt(130)), prompt(130), salt="a")
    assert cache.match(prompt(130), salt="a") == 128
    assert cache.match(prompt(130), salt="b") == 0
    assert cache.match(prompt(130)) == 0


def test_an_equal_block_behind_other_tokens_is_not_a_hit() -> None:
    """Keys and values depend on everything before them."""
    kv_cache, cache = make()
    first, second = prompt(64), prompt(66, first=99)
    cache.store(compute(kv_cache, first + second), first + second)
    assert cache.match(second) == 0


def test_the_least_recently_used_prompt_is_forgotten_first_and_from_its_end() -> None:
    """Memory is bounded; what remains of a prompt is its beginning, which alone is of use."""
    kv_cache, cache = make(num_blocks=4)
    for first in (0, 100):
        row = compute(kv_cache, prompt(130, first))
        cache.store(row, prompt(130, first))
        kv_cache.release(row)
    assert cache.usage().num_bytes == 4 * BLOCK_BYTES
    row = kv_cache.allocate()
    cache.load(row, prompt(130), 128)  # the older one is used again
    kv_cache.release(row)
    cache.store(compute(kv_cache, prompt(70, 50)), prompt(70, 50))
    assert (cache.match(prompt(130)), cache.match(prompt(130, 100)), cache.match(prompt(70, 50))) == (128, 64, 64)
    assert cache.usage().num_bytes == 4 * BLOCK_BYTES


def test_what_rows_show_is_not_forgotten() -> None:
    """A block that a row begins with keeps its place until the row is released, however much else is stored."""
    kv_cache, cache = make(num_blocks=2)
    row = compute(kv_cache, prompt(130))
    cache.store(row, prompt(130))
    kv_cache.release(row)
    row = kv_cache.allocate()
    cache.load(row, prompt(130), 128)
    shown = kv_cache.read(row, 0, 128)
    other = compute(kv_cache, prompt(130, first=100))
    cache.store(other, prompt(130, first=100))
    assert (cache.match(prompt(130)), cache.match(prompt(130, first=100))) == (128, 0)
    np.testing.assert_array_equal(kv_cache.read(row, 0, 128), shown)
    kv_cache.release(row)
    cache.store(other, prompt(130, first=100))
    assert (cache.match(prompt(130)), cache.match(prompt(130, first=100))) == (0, 128)


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    """And pushes nothing of itself out."""
    kv_cache, cache = make(num_blocks=2)
    cache.store(compute(kv_cache, prompt(400)), prompt(400))
    assert cache.match(prompt(400)) == 128


@pytest.mark.parametrize("capacity", [0, BLOCK_BYTES - 1])
def test_without_room_nothing_is_kept(capacity: int) -> None:
    """Zero switches it off."""
    kv_cache = KVCache(FAKE_CONFIG, 2, 512)
    cache = PrefixCache(kv_cache, capacity)
    cache.store(compute(kv_cache, prompt(130)), prompt(130))
    assert cache.match(prompt(130)) == 0
    assert cache.usage().num_bytes == 0
