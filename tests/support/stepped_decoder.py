"""SteppedDecoder: a fake decoder that decodes as often as a test says, so that a test runs beside a running answer."""

import threading

import numpy as np
import numpy.typing as npt

from tests.support.fake_decoder import FakeDecoder


class SteppedDecoder(FakeDecoder):
    """Waits for a permit before each decode."""

    def __init__(self, num_rows: int = 4) -> None:
        super().__init__(num_rows)
        self.entered = threading.Event()
        self._permits = threading.Semaphore(0)

    def allow(self, num_steps: int) -> None:
        """Let so many decodes happen."""
        self._permits.release(num_steps)

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Decode once it is allowed."""
        self.entered.set()
        assert self._permits.acquire(timeout=60), "the test allowed no further step"
        return super().decode(token_ids, past_tokens)
