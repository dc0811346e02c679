"""The sampler's kernels in numpy: what the bundle's small graphs compute."""

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]


class NumpyKernels:
    """Slow and plain."""

    def top_k(self, logits: Logits, count: int) -> tuple[Logits, npt.NDArray[np.int64]]:
        """The largest logits, falling, ties by id."""
        ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count].astype(np.int64)
        return np.take_along_axis(logits, ids, axis=-1), ids

    def weight_sums(self, logits: Logits, largest: Logits, inverse_temperatures: Logits) -> Logits:
        """Row by row, so that a row's sum is the same in every batch."""
        with np.errstate(all="ignore"):
            rows = zip(logits, largest, inverse_temperatures, strict=True)
            return np.array([np.exp((row - top) * inverse).sum() for row, top, inverse in rows], np.float32)
