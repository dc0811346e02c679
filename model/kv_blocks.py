"""BlockStore: keys and values of whole blocks of tokens, in a memory file that rows of the KV cache map.

Separate from the rows because a block belongs to nobody: many rows may show it at once, and it outlives them. Mapped, a
block exists once in memory however many rows begin with it, so a step over many such rows reads it from the processor's
cache instead of from memory. Mappings are private (copy on write): nothing that is written to a row reaches the block.
"""

import ctypes
import mmap
import os
from collections import Counter

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 64
MAP_FIXED = 0x10  # linux/mman-common.h; Python's mmap has no name for it
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class BlockStore:
    """Slots of BLOCK_TOKENS tokens each. A slot that rows map is pinned: whoever fills slots must not fill it anew."""

    def __init__(self, num_regions: int, head_dim: int, capacity_bytes: int) -> None:
        """num_regions: heads of keys and values, of all layers together. capacity_bytes: most memory for slots."""
        self._file: int | None = None
        self.region_bytes = BLOCK_TOKENS * head_dim * 4  # of one slot in one region
        self.slot_bytes = num_regions * self.region_bytes
        self.num_slots = capacity_bytes // self.slot_bytes
        self._num_taken = 0
        self._pins: Counter[int] = Counter()
        num_bytes = self.num_slots * self.slot_bytes
        self._file = _memory_file(num_bytes)
        shape = (num_regions, self.num_slots, BLOCK_TOKENS, head_dim)
        self._array: npt.NDArray[np.float32]
        if self._file is None:
            self._array = np.empty(shape, np.float32)
        else:
            self._array = np.frombuffer(mmap.mmap(self._file, num_bytes), np.float32).reshape(shape)

    def __del__(self) -> None:
        """Close the file; rows that map it keep what they see."""
        if self._file is not None:
            os.close(self._file)

    def take(self) -> int | None:
        """A slot that was never taken, None if there is none; neighbours in a row, which can be mapped at once."""
        if self._num_taken == self.num_slots:
            return None
        self._num_taken += 1
        return self._num_taken - 1

    def is_pinned(self, slot: int) -> bool:
        """Whether a row maps it."""
        return self._pins[slot] > 0

    def pin(self, slot: int) -> None:
        """A row maps it."""
        self._pins[slot] += 1

    def unpin(self, slot: int) -> None:
        """A row maps it no longer."""
        assert self._pins[slot] > 0, f"slot {slot} is not pinned"
        self._pins[slot] -= 1

    def write(self, slot: int, values: npt.NDArray[np.float32]) -> None:
        """Fill a slot. values: float32 [2 * layers, G, BLOCK_TOKENS, D]."""
        self._array[:, slot] = values.reshape(self._array.shape[0], BLOCK_TOKENS, -1)

    def read(self, slot: int) -> npt.NDArray[np.float32]:
        """What `write` put there, float32 [2 * layers * G, BLOCK_TOKENS, D]; a view."""
        view: npt.NDArray[np.float32] = self._array[:, slot]
        return view

    def map_slots(self, address: int, region: int, first_slot: int, count: int) -> None:
        """Show neighbouring slots of one region at a page-aligned address, in place of what was there.

        Raises:
            OSError: the operating system refuses, or has no memory files, or its pages are too large.
        """
        if self._file is None or self.region_bytes % mmap.PAGESIZE:
            raise OSError("blocks cannot be mapped here")
        offset = (region * self.num_slots + first_slot) * self.region_bytes
        _map(address, count * self.region_bytes, mmap.MAP_PRIVATE, self._file, offset)


def map_nothing(address: int, num_bytes: int) -> None:
    """Put fresh address space, without memory behind it and without huge pages, in place of what was there.

    Raises:
        OSError: the operating system refuses.
    """
    _map(address, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE, -1, 0)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        _libc.madvise(address, num_bytes, mmap.MADV_NOHUGEPAGE)


def _map(address: int, num_bytes: int, flags: int, file: int, offset: int) -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc.mmap(address, num_bytes, protection, flags | MAP_FIXED, file, offset) == FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _memory_file(num_bytes: int) -> int | None:
    """A file that exists in memory only; None where none is needed or the system has none."""
    if not num_bytes or not hasattr(os, "memfd_create"):
        return None
    file = os.memfd_create("attend-kv-blocks")
    os.ftruncate(file, num_bytes)
    return file
