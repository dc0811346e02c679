"""The key/value cache on a CPU: rows in virtual memory, written in place by the graph.

One row holds one sequence. Each layer has one buffer for keys and one for values, float32 [rows, G, S, D] (G kv heads,
S capacity in tokens, D head size). The buffers are reserved, not allocated: the operating system commits a page when a
token is first written there and takes it back on release, which is the paging that paged attention does by hand. Blocks
of a prompt computed before are not copied into a row but mapped (model/kv_blocks.py), so that rows share their memory.

Ownership: whoever calls `allocate` must `release` the row. Nothing here is thread-safe; the engine thread owns it.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.kv_blocks import BLOCK_TOKENS, NO_RESERVE, BlockStore, map_nothing

PAGE_BYTES = mmap.PAGESIZE
FLOAT_BYTES = 4


@dataclass(frozen=True)
class KVUsage:
    """A snapshot: rows and tokens held, bytes committed for them, and bytes if every row were full."""

    num_rows: int
    num_rows_used: int
    num_tokens: int
    committed_bytes: int
    capacity_bytes: int


class KVCache:
    """Rows of keys and values for every layer, with the accounting of who holds how many tokens."""

    def __init__(self, config: ModelConfig, num_rows: int, capacity_tokens: int) -> None:
        """Reserve `num_rows` rows of `capacity_tokens` each, rounded up so that every head of a row starts on a page.

        Raises:
            MemoryError: the operating system refuses to reserve the address space.
        """
        self._head_bytes = config.head_dim * FLOAT_BYTES  # of one token in one head
        self._num_heads = 2 * config.num_layers * config.num_kv_heads
        step = PAGE_BYTES // math.gcd(PAGE_BYTES, self._head_bytes)  # the fewest tokens that fill whole pages
        self.tokens_per_page = max(1, PAGE_BYTES // self._head_bytes)  # memory is committed in this many at once
        self.num_rows = num_rows
        self.capacity_tokens = math.ceil(capacity_tokens / step) * step
        self._shape = (num_rows, config.num_kv_heads, self.capacity_tokens, config.head_dim)
        self._row_bytes = config.num_kv_heads * self.capacity_tokens * config.head_dim * FLOAT_BYTES
        try:
            self._buffers = [_reserve(num_rows * self._row_bytes) for _ in range(2 * config.num_layers)]
        except (OSError, OverflowError) as error:
            wanted = 2 * config.num_layers * num_rows * self._row_bytes
            raise MemoryError(f"cannot reserve {wanted / 2**30:.1f} GiB of address space for the KV cache") from error
        self._arrays = [np.frombuffer(buffer, np.float32).reshape(self._shape) for buffer in self._buffers]
        self._addresses = [array.ctypes.data for array in self._arrays]
        self._tokens: dict[int, int] = {}
        self._mapped: dict[int, dict[int, tuple[BlockStore, int]]] = {}  # of each row: its blocks that are mapped slots

    def new_block_store(self, capacity_bytes: int) -> BlockStore:
        """Memory for blocks of this cache's geometry; make one only, so that blocks in a row are of the same store."""
        return BlockStore(self._num_heads, self._shape[-1], capacity_bytes)

    def addresses(self, row: int) -> list[int]:
        """Where `row` starts in each buffer, in the order key, value of each layer."""
        return [address + row * self._row_bytes for address in self._addresses]

    def slice_shape(self, num_rows: int) -> list[int]:
        """The shape of `num_rows` rows of one buffer."""
        return [num_rows, *self._shape[1:]]

    def can_allocate(self) -> bool:
        """Whether a row is free."""
        return len(self._tokens) < self.num_rows

    def allocate(self) -> int:
        """Take the lowest free row, empty. Call only if `can_allocate`."""
        assert self.can_allocate(), "no free row"
        row = next(row for row in range(self.num_rows) if row not in self._tokens)
        self._tokens[row] = 0
        self._mapped[row] = {}
        return row

    def extend(self, row: int, num_tokens: int) -> None:
        """Record that the row now holds its first `num_tokens` tokens."""
        assert row in self._tokens, f"row {row} is not allocated"
        assert self._tokens[row] <= num_tokens <= self.capacity_tokens, f"row {row} cannot hold {num_tokens} tokens"
        self._tokens[row] = num_tokens

    def release(self, row: int) -> None:
        """Free the row and give its pages back to the operating system."""
        assert row in self._tokens, f"row {row} is not allocated"
        self._unmap(row)
        del self._tokens[row], self._mapped[row]
        for buffer in self._buffers:
            buffer.madvise(mmap.MADV_DONTNEED, row * self._row_bytes, self._row_bytes)

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Put the first `num_tokens` tokens of one allocated row into another, which then holds exactly those.

        What the source maps is mapped there too, the rest is copied.
        """
        assert num_tokens <= self._tokens[source], f"row {source} holds fewer than {num_tokens} tokens"
        assert target in self._tokens, f"row {target} is not allocated"
        self._unmap(target)
        self._tokens[target] = 0
        mapped = self._mapped[source]
        while (start := self._tokens[target]) < num_tokens:
            block, slots = start // BLOCK_TOKENS, list[int]()
            while (next_block := block + len(slots)) in mapped and (next_block + 1) * BLOCK_TOKENS <= num_tokens:
                store, slot = mapped[next_block]
                slots.append(slot)
            if slots:
                self.attach(target, start, store, slots)
                continue
            self.copy_up_to(source, target, min((block + 1) * BLOCK_TOKENS, num_tokens))

    def copy_up_to(self, source: int, target: int, stop: int) -> None:
        """Append the tokens of one allocated row to another, from where that one ends to `stop`, all of them copied."""
        start = self._tokens[target]
        assert start <= stop <= self._tokens[source], f"row {source} holds fewer than {stop} tokens, or {target} more"
        for array in self._arrays:
            array[target, :, start:stop] = array[source, :, start:stop]
        self._tokens[target] = stop

    def attach(self, row: int, start: int, store: BlockStore, slots: Sequence[int]) -> None:
        """Put blocks of a store behind the first `start` tokens of a row, which then holds exactly these.

        start: whole blocks. The row shows the store's memory from then on, until it is released; where the operating
        system does not offer that, it gets a copy.
        """
        assert start % BLOCK_TOKENS == 0, "blocks lie at multiples of their size"
        assert start <= self._tokens[row], f"row {row} does not hold {start} tokens"
        self._unmap(row, start // BLOCK_TOKENS)
        for index, count in _runs(slots):
            block = start // BLOCK_TOKENS + index
            try:
                for region, address in enumerate(self._regions(row, block)):
                    store.map_slots(address, region, slots[index], count)
            except OSError:  # no memory files, or more mappings than the system allows
                self._copy(row, block, store, slots[index : index + count])
            for held, slot in enumerate(slots[index : index + count], start=block):
                store.pin(slot)  # copied ones too: a part of them may be mapped
                self._mapped[row][held] = (store, slot)
        self._tokens[row] = start + len(slots) * BLOCK_TOKENS

    def _copy(self, row: int, block: int, store: BlockStore, slots: Sequence[int]) -> None:
        """Write what mapping would show. A region mapped before one failed is written too, and so gets its own copy."""
        for index, slot in enumerate(slots, start=block):
            values = store.read(slot).reshape(len(self._arrays), self._shape[1], BLOCK_TOKENS, -1)
            for array, part in zip(self._arrays, values, strict=True):
                array[row, :, index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS] = part

    def _unmap(self, row: int, first_block: int = 0) -> None:
        """Give a row memory of its own wherever it maps blocks from `first_block` on; what it held there is gone."""
        mapped = self._mapped[row]
        blocks = sorted(block for block in mapped if block >= first_block)
        for index, count in _runs(blocks):
            for address in self._regions(row, blocks[index]):
                map_nothing(address, count * BLOCK_TOKENS * self._head_bytes)
        for block in blocks:
            store, slot = mapped.pop(block)
            store.unpin(slot)

    def _regions(self, row: int, block: int) -> Iterator[int]:
        """Where a block of a row lies: its address in each head of each buffer."""
        head_bytes = self.capacity_tokens * self._head_bytes
        for address in self.addresses(row):
            for head in range(self._shape[1]):
                yield address + head * head_bytes + block * BLOCK_TOKENS * self._head_bytes

    def read(self, row: int, start: int, stop: int) -> npt.NDArray[np.float32]:
        """A copy of the keys and values of tokens [start, stop) of a row: float32 [2 * layers, G, tokens, D]."""
        assert stop <= self._tokens[row], f"row {row} holds fewer than {stop} tokens"
        return np.stack([array[row, :, start:stop] for array in self._arrays])

    def move(self, source: int) -> int:
        """Move a row's tokens to the lowest free row, release it, and return where they are now."""
        target = self.allocate()
        self.copy_prefix(source, target, self._tokens[source])
        self.release(source)
        return target

    def rows_used(self) -> list[int]:
        """The allocated rows, ascending."""
        return sorted(self._tokens)

    def usage(self) -> KVUsage:
        """How much is held now; bytes count whole pages, as the operating system does, mapped blocks in each row."""
        pages = sum(math.ceil(tokens * self._head_bytes / PAGE_BYTES) for tokens in self._tokens.values())
        return KVUsage(
            num_rows=self.num_rows,
            num_rows_used=len(self._tokens),
            num_tokens=sum(self._tokens.values()),
            committed_bytes=pages * PAGE_BYTES * self._num_heads,
            capacity_bytes=self.num_rows * self.capacity_tokens * self._head_bytes * self._num_heads,
        )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Index of the first, and length, of each run of numbers that follow one another."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield start, index - start
            start = index


def _reserve(num_bytes: int) -> mmap.mmap:
    """Anonymous address space without memory behind it, and without huge pages, which would commit 2 MiB a token."""
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        buffer.madvise(mmap.MADV_NOHUGEPAGE)
    return buffer
