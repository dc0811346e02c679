"""The KV cache against a simple model of it, and the memory behind it."""

import ctypes
import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.config import ModelConfig, config_from_hugging_face
from model.kv_blocks import BLOCK_TOKENS, BlockStore
from model.kv_cache import PAGE_BYTES, KVCache
from tests.support.tiny_checkpoint import tiny_config_json

NUM_ROWS = 4
TINY = config_from_hugging_face("tiny", tiny_config_json())


def row_memory(cache: KVCache, config: ModelConfig, row: int) -> list[npt.NDArray[np.float32]]:
    """The row's memory by address, as the graph sees it: float32 [G, S, D] for key and value of each layer."""
    shape = (config.num_kv_heads, cache.capacity_tokens, config.head_dim)
    pointers = (ctypes.cast(address, ctypes.POINTER(ctypes.c_float)) for address in cache.addresses(row))
    return [np.ctypeslib.as_array(pointer, shape) for pointer in pointers]


class KVCacheMachine(RuleBasedStateMachine):
    """Any sequence of operations leaves the cache as a dictionary of lists would be."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, list[int]] = {}  # a row's tokens, each by the number that was written for it
        self.num_written = 0

    @initialize(head_dim=st.sampled_from([16, 32, 48, 80]))
    def reserve(self, head_dim: int) -> None:
        """Heads of a size that divides a page, and of one that does not."""
        self.config = dataclasses.replace(TINY, head_dim=head_dim)
        self.cache = KVCache(self.config, NUM_ROWS, 3 * BLOCK_TOKENS + 8)
        slot_bytes = BLOCK_TOKENS * self.config.kv_bytes_per_token
        self.store = self.cache.new_block_store(3 * slot_bytes + 1)
        self.slots: list[list[int]] = []  # the tokens of each slot taken
        self.mapped: dict[int, dict[int, int]] = {}  # of each row: the slot that a block of it shows

    def some_row(self, data: st.DataObject) -> int:
        """One of the allocated rows."""
        return data.draw(st.sampled_from(sorted(self.rows)))

    @precondition(lambda self: len(self.rows) < NUM_ROWS)
    @rule()
    def allocate(self) -> None:
        """The lowest free row is taken, and it is empty."""
        assert self.cache.can_allocate()
        row = self.cache.allocate()
        assert row == min(set(range(NUM_ROWS)) - self.rows.keys())
        assert not any(memory.any() for memory in row_memory(self.cache, self.config, row))
        self.rows[row] = []
        self.mapped[row] = {}

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """Tokens are written as the graph writes them, then recorded."""
        row = self.some_row(data)
        tokens = self.rows[row]
        total = data.draw(st.integers(len(tokens), self.cache.capacity_tokens))
        for position in range(len(tokens), total):
            self.num_written += 1
            tokens.append(self.num_written)
            for memory in row_memory(self.cache, self.config, row):
                memory[:, position] = self.num_written
        self.cache.extend(row, total)

    def fill(self, slot: int) -> None:
        """Write tokens that nothing else holds."""
        self.slots[slot] = list(range(self.num_written + 1, self.num_written + 1 + BLOCK_TOKENS))
        self.num_written += BLOCK_TOKENS
        values = np.array(self.slots[slot], np.float32)[None, None, :, None]
        shape = (2 * self.config.num_layers, self.config.num_kv_heads, BLOCK_TOKENS, self.config.head_dim)
        self.store.write(slot, np.broadcast_to(values, shape))

    @rule()
    def take_slot(self) -> None:
        """As many as fit, one after the other; then none."""
        slot = self.store.take()
        assert slot == (len(self.slots) if len(self.slots) < 3 else None)
        if slot is not None:
            self.slots.append([])
            self.fill(slot)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def fill_again(self, data: st.DataObject) -> None:
        """A slot that no row shows may get other tokens."""
        slot = data.draw(st.integers(0, len(self.slots) - 1))
        shown = any(slot in mapped.values() for mapped in self.mapped.values())
        assert self.store.is_pinned(slot) == shown
        if not shown:
            self.fill(slot)

    @precondition(lambda self: self.rows and self.slots)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        """Blocks behind whole blocks of a row, in place of whatever was there."""
        row = self.some_row(data)
        start = data.draw(st.integers(0, min(2, len(self.rows[row]) // BLOCK_TOKENS)))
        count = data.draw(st.integers(1, min(3 - start, len(self.slots))))
        slots = data.draw(st.permutations(range(len(self.slots))))[:count]
        self.cache.attach(row, start * BLOCK_TOKENS, self.store, slots)
        shown = [token for slot in slots for token in self.slots[slot]]
        self.rows[row] = self.rows[row][: start * BLOCK_TOKENS] + shown
        kept = {block: slot for block, slot in self.mapped[row].items() if block < start}
        self.mapped[row] = kept | dict(enumerate(slots, start))

    @precondition(lambda self: any(len(t) < self.cache.capacity_tokens for t in self.rows.values()))
    @rule(data=st.data())
    def scribble(self, data: st.DataObject) -> None:
        """The graph writes a token behind what a row holds, where it takes no part in a step."""
        row = self.some_row(data)
        if len(self.rows[row]) < self.cache.capacity_tokens:
            for memory in row_memory(self.cache, self.config, row):
                memory[:, len(self.rows[row])] = -1

    @precondition(lambda self: len(self.rows) >= 2)
    @rule(data=st.data())
    def copy_prefix(self, data: st.DataObject) -> None:
        """The target then holds exactly the prefix."""
        source = self.some_row(data)
        target = data.draw(st.sampled_from(sorted(self.rows.keys() - {source})))
        num_tokens = data.draw(st.integers(0, len(self.rows[source])))
        self.cache.copy_prefix(source, target, num_tokens)
        self.rows[target] = self.rows[source][:num_tokens]
        whole_blocks = num_tokens // BLOCK_TOKENS
        self.mapped[target] = {block: slot for block, slot in self.mapped[source].items() if block < whole_blocks}

    @precondition(lambda self: 0 < len(self.rows) < NUM_ROWS)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """The tokens go to the lowest free row."""
        source = self.some_row(data)
        target = self.cache.move(source)
        assert target == min(set(range(NUM_ROWS)) - self.rows.keys())
        self.rows[target] = self.rows.pop(source)
        whole_blocks = len(self.rows[target]) // BLOCK_TOKENS
        self.mapped[target] = {b: slot for b, slot in self.mapped.pop(source).items() if b < whole_blocks}

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """The row reads back as zero: its pages are gone."""
        row = self.some_row(data)
        self.cache.release(row)
        del self.rows[row], self.mapped[row]
        assert not any(memory.any() for memory in row_memory(self.cache, self.config, row))

    @invariant()
    def accounting_matches(self) -> None:
        """Rows, tokens and bytes are those of the model."""
        assert self.cache.rows_used() == sorted(self.rows)
        assert self.cache.can_allocate() == (len(self.rows) < NUM_ROWS)
        usage = self.cache.usage()
        assert (usage.num_rows, usage.num_rows_used) == (NUM_ROWS, len(self.rows))
        assert usage.num_tokens == sum(map(len, self.rows.values()))
        head_bytes = 4 * self.config.head_dim
        pages = sum(math.ceil(len(tokens) * head_bytes / PAGE_BYTES) for tokens in self.rows.values())
        assert usage.committed_bytes == pages * PAGE_BYTES * 2 * self.config.num_layers * self.config.num_kv_heads
        assert usage.capacity_bytes == NUM_ROWS * self.cache.capacity_tokens * self.config.kv_bytes_per_token
        assert 0 <= usage.committed_bytes <= usage.capacity_bytes

    @invariant()
    def contents_are_preserved(self) -> None:
        """Every token of every row holds what was written for it, in every layer and head."""
        for row, tokens in self.rows.items():
            for memory in row_memory(self.cache, self.config, row):
                expected = np.array(tokens, np.float32)[None, :, None]
                assert (memory[:, : len(tokens)] == expected).all()

    @invariant()
    def slots_are_preserved(self) -> None:
        """Nothing that happens to a row reaches a slot."""
        for slot, tokens in enumerate(self.slots):
            assert (self.store.read(slot) == np.array(tokens, np.float32)[None, :, None]).all()


KVCacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestKVCache = KVCacheMachine.TestCase


@pytest.mark.parametrize("head_dim", range(16, 161, 16))
def test_releasing_a_row_leaves_its_neighbours(head_dim: int) -> None:
    """Rows start on pages whatever the size of a head, so that giving pages back touches one row only."""
    config = dataclasses.replace(TINY, head_dim=head_dim, num_kv_heads=1, num_heads=1)
    cache = KVCache(config, 3, 50)
    for row in range(3):
        assert all(address % PAGE_BYTES == 0 for address in cache.addresses(row))
        assert cache.allocate() == row
        for memory in row_memory(cache, config, row):
            memory[:] = row + 1
    cache.release(1)
    for row, value in ((0, 1), (1, 0), (2, 3)):
        assert all((memory == value).all() for memory in row_memory(cache, config, row))


def test_shapes_and_addresses_describe_one_buffer_for_each_layer_and_kind() -> None:
    """Rows of a buffer follow one another; buffers don't overlap."""
    cache = KVCache(TINY, 3, 100)
    assert cache.slice_shape(2) == [2, 2, cache.capacity_tokens, 16]
    assert cache.capacity_tokens >= 100
    row_bytes = 2 * cache.capacity_tokens * 16 * 4
    first, second = cache.addresses(0), cache.addresses(1)
    assert len(first) == 2 * TINY.num_layers
    assert [there - here for here, there in zip(first, second, strict=True)] == [row_bytes] * len(first)
    starts = sorted(first)
    assert all(after - before >= 3 * row_bytes for before, after in itertools.pairwise(starts))


def test_reservation_commits_no_memory() -> None:
    """32 GiB are reserved; memory comes with the tokens and goes with the row."""
    process, slack = psutil.Process(), 16 << 20
    config = dataclasses.replace(TINY, head_dim=128)
    before = process.memory_info().rss
    cache = KVCache(config, 256, 1 << 15)
    assert cache.usage().capacity_bytes == 32 << 30
    assert process.memory_info().rss - before < slack
    row = cache.allocate()
    for memory in row_memory(cache, config, row):
        memory[:, : 1 << 14] = 1
    cache.extend(row, 1 << 14)
    committed = cache.usage().committed_bytes
    assert committed == 64 << 20
    assert abs(process.memory_info().rss - before - committed) < slack
    cache.release(row)
    assert process.memory_info().rss - before < slack


@pytest.mark.parametrize(("num_rows", "capacity_tokens"), [(1 << 30, 1 << 30), (1 << 60, 1 << 60)])
def test_reservation_beyond_the_address_space_is_a_memory_error(num_rows: int, capacity_tokens: int) -> None:
    """The message says how much was asked for."""
    with pytest.raises(MemoryError, match=r"cannot reserve .* GiB of address space for the KV cache"):
        KVCache(TINY, num_rows, capacity_tokens)


def filled_store(cache: KVCache, config: ModelConfig, num_slots: int) -> BlockStore:
    """A store whose slots hold 1, 2, ..."""
    store = cache.new_block_store(num_slots * BLOCK_TOKENS * config.kv_bytes_per_token)
    for slot in range(num_slots):
        assert store.take() == slot
        shape = (2 * config.num_layers, config.num_kv_heads, BLOCK_TOKENS, config.head_dim)
        store.write(slot, np.full(shape, slot + 1, np.float32))
    return store


def test_rows_that_show_the_same_blocks_share_their_memory() -> None:
    """Sixteen rows of 32 blocks take the memory of one."""
    config = dataclasses.replace(TINY, head_dim=128)
    cache = KVCache(config, 16, 32 * BLOCK_TOKENS)
    store = filled_store(cache, config, 32)
    before = proportional_bytes()
    for _ in range(16):
        row = cache.allocate()
        cache.attach(row, 0, store, range(32))
        assert all((memory == np.repeat(np.arange(1, 33), BLOCK_TOKENS)[None, :, None]).all()
                   for memory in row_memory(cache, config, row))  # fmt: skip
    one_row = 32 * store.slot_bytes
    assert 16 * one_row > 100 << 20
    assert proportional_bytes() - before < 2 * one_row


def proportional_bytes() -> int:
    """Proportional set size: a page that is mapped several times counts once."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.mark.parametrize("num_mapped", [0, 3])
def test_where_mapping_is_refused_blocks_are_copied(num_mapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once or in the middle; the row then holds the same and is released as any other."""
    cache = KVCache(TINY, 2, 3 * BLOCK_TOKENS)
    store = filled_store(cache, TINY, 3)
    map_slots, calls = store.map_slots, itertools.count()

    def refuse(address: int, region: int, first_slot: int, count: int) -> None:
        if next(calls) >= num_mapped:
            raise OSError("too many mappings")
        map_slots(address, region, first_slot, count)

    monkeypatch.setattr(store, "map_slots", refuse)
    row = cache.allocate()
    cache.attach(row, 0, store, [2, 0, 1])
    for memory in row_memory(cache, TINY, row):
        assert (memory == np.repeat([3, 1, 2], BLOCK_TOKENS)[None, :, None]).all()
    cache.release(row)
    assert not any(memory.any() for memory in row_memory(cache, TINY, row))
    assert not any(store.is_pinned(slot) for slot in range(3))


def test_misuse_is_caught() -> None:
    """Our own bugs, not a caller's: assertions."""
    cache = KVCache(TINY, 2, 64)
    store = filled_store(cache, TINY, 1)
    row = cache.allocate()
    cache.extend(row, 10)
    misuses: tuple[Callable[[], object], ...] = (
        lambda: cache.extend(row, 9),
        lambda: cache.extend(row, cache.capacity_tokens + 1),
        lambda: cache.extend(1, 1),
        lambda: cache.release(1),
        lambda: cache.copy_prefix(row, 1, 5),
        lambda: cache.copy_prefix(row, row, 11),
        lambda: cache.attach(row, 10, store, [0]),
        lambda: cache.attach(row, 64, store, [0]),
        lambda: store.unpin(0),
    )
    for misuse in misuses:
        with pytest.raises(AssertionError):
            misuse()
    cache.allocate()
    with pytest.raises(AssertionError, match="no free row"):
        cache.allocate()
    assert cache.usage().num_tokens == 10
