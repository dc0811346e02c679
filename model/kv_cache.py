"""The key/value cache on a CPU: rows in virtual memory, written in place by the graph.

One row holds one sequence. Each layer has one buffer for keys and one for values, float32 [rows, G, S, D] (G kv heads,
S capacity in tokens, D head size). The buffers are reserved, not allocated: the operating system commits a page when a
token is first written there and takes it back on release, which is the paging that paged attention does by hand.

Ownership: whoever calls `allocate` must `release` the row. Nothing here is thread-safe; the engine thread owns it.
"""

import math
import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig

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

    @property
    def ratio(self) -> float:
        """Committed share of the capacity, 0 to 1."""
        return self.committed_bytes / self.capacity_bytes


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
        return row

    def extend(self, row: int, num_tokens: int) -> None:
        """Record that the row now holds its first `num_tokens` tokens."""
        assert row in self._tokens, f"row {row} is not allocated"
        assert self._tokens[row] <= num_tokens <= self.capacity_tokens, f"row {row} cannot hold {num_tokens} tokens"
        self._tokens[row] = num_tokens

    def release(self, row: int) -> None:
        """Free the row and give its pages back to the operating system."""
        assert row in self._tokens, f"row {row} is not allocated"
        del self._tokens[row]
        for buffer in self._buffers:
            buffer.madvise(mmap.MADV_DONTNEED, row * self._row_bytes, self._row_bytes)

    def copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of one allocated row to another, which then holds exactly those."""
        assert num_tokens <= self._tokens[source], f"row {source} holds fewer than {num_tokens} tokens"
        assert target in self._tokens, f"row {target} is not allocated"
        for array in self._arrays:
            array[target, :, :num_tokens] = array[source, :, :num_tokens]
        self._tokens[target] = num_tokens

    def read(self, row: int, start: int, stop: int) -> npt.NDArray[np.float32]:
        """A copy of the keys and values of tokens [start, stop) of a row: float32 [2 * layers, G, tokens, D]."""
        assert stop <= self._tokens[row], f"row {row} holds fewer than {stop} tokens"
        return np.stack([array[row, :, start:stop] for array in self._arrays])

    def write(self, row: int, start: int, values: npt.NDArray[np.float32]) -> None:
        """Put what `read` gave behind the first `start` tokens of a row, which then holds exactly these."""
        assert start <= self._tokens[row], f"row {row} does not hold {start} tokens"
        stop = start + values.shape[2]
        for array, part in zip(self._arrays, values, strict=True):
            array[row, :, start:stop] = part
        self._tokens[row] = stop

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
        """How much is held now; bytes count whole pages, as the operating system does."""
        pages = sum(math.ceil(tokens * self._head_bytes / PAGE_BYTES) for tokens in self._tokens.values())
        return KVUsage(
            num_rows=self.num_rows,
            num_rows_used=len(self._tokens),
            num_tokens=sum(self._tokens.values()),
            committed_bytes=pages * PAGE_BYTES * self._num_heads,
            capacity_bytes=self.num_rows * self.capacity_tokens * self._head_bytes * self._num_heads,
        )


def _reserve(num_bytes: int) -> mmap.mmap:
    """Anonymous address space without memory behind it, and without huge pages, which would commit 2 MiB a token."""
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        buffer.madvise(mmap.MADV_NOHUGEPAGE)
    return buffer


_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0)
