"""Runner: carries out a plan on the decoder: plan -> packed inputs -> next tokens. Changes no request.

Separate from the engine so that the engine stays bookkeeping. The decoder is anything with `prefill`, `decode`,
`top_k` and a `kv_cache`: the real one, or the tests' fake.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.kv_cache import KVCache
from model.sampler import SampledToken, Sampler, SamplingRow
from service.engine.plan import PrefillChunk, StepPlan
from service.engine.request import Request


class TokenDecoder(Protocol):
    """What the engine asks of a decoder; `model.decoder.Decoder` states the shapes."""

    config: ModelConfig
    kv_cache: KVCache

    def prefill(self, row: int, token_ids: npt.NDArray[np.int64], num_past: int) -> npt.NDArray[np.float32]:
        """Logits float32 [1, V] after a prompt chunk."""
        ...

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits float32 [B, V] after one token of each row."""
        ...

    def top_k(
        self, logits: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `count` largest logits of each row and their ids, both [B, count], falling, ties by id."""
        ...


class Runner:
    """Runs plans on one decoder."""

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._sampler = Sampler(decoder.top_k)

    def run(self, plan: StepPlan, running: Sequence[Request]) -> dict[Request, SampledToken]:
        """Compute the plan and choose a token for every request that has come to its end.

        running: every request that holds a row, in the plan or not. Decode runs first: rows that take no part in it
        have one entry scribbled behind their past, which a prompt chunk then overwrites.
        """
        tokens = self._decode(plan.decode, running) if plan.decode else {}
        for chunk in plan.prefill:
            logits = self._prefill(chunk)
            if chunk.completes_prompt and not chunk.request.generated_ids:
                tokens[chunk.request] = self._sampler.sample(logits, {0: _sampling_row(chunk.request)})[0]
        return tokens

    def _decode(self, requests: Sequence[Request], running: Sequence[Request]) -> dict[Request, SampledToken]:
        num_rows = 1 + max(_row(request) for request in requests)
        token_ids = np.zeros(num_rows, np.int64)
        past_tokens = np.zeros(num_rows, np.int64)
        for request in running:
            if _row(request) < num_rows:
                past_tokens[_row(request)] = request.num_computed
        for request in requests:
            token_ids[_row(request)] = request.next_decode_id
        logits = self._decoder.decode(token_ids, past_tokens)
        choosing = {_row(request): request for request in requests if request.is_caught_up}
        sampled = self._sampler.sample(logits, {row: _sampling_row(request) for row, request in choosing.items()})
        return {request: sampled[row] for row, request in choosing.items()}

    def _prefill(self, chunk: PrefillChunk) -> npt.NDArray[np.float32]:
        token_ids = np.array(chunk.request.prompt_ids[chunk.start : chunk.end], np.int64)
        return self._decoder.prefill(_row(chunk.request), token_ids, chunk.start)


def _row(request: Request) -> int:
    assert request.row is not None, f"{request.request_id} holds no row"
    return request.row


def _sampling_row(request: Request) -> SamplingRow:
    return SamplingRow(request.sampling, request.row_state, request.num_tokens)
