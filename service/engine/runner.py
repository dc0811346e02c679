"""Runner: carries out a plan on the decoder: plan -> packed inputs -> next tokens. Changes no request.

Separate from the engine so that the engine stays bookkeeping. The decoder is anything with `prefill`, `decode` and a
`kv_cache`: the real one, or the tests' fake.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.kv_cache import KVCache
from model.sampler import sample
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


class Runner:
    """Runs plans on one decoder."""

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder

    def run(self, plan: StepPlan, running: Sequence[Request]) -> dict[Request, int]:
        """Compute the plan and choose a token for every request that has come to its end.

        running: every request that holds a row, in the plan or not. Decode runs first: rows that take no part in it
        have one entry scribbled behind their past, which a prompt chunk then overwrites.
        """
        tokens = self._decode(plan.decode, running) if plan.decode else {}
        for chunk in plan.prefill:
            token = self._prefill(chunk)
            if token is not None:
                tokens[chunk.request] = token
        return tokens

    def _decode(self, requests: Sequence[Request], running: Sequence[Request]) -> dict[Request, int]:
        num_rows = 1 + max(_row(request) for request in requests)
        token_ids = np.zeros(num_rows, np.int64)
        past_tokens = np.zeros(num_rows, np.int64)
        for request in running:
            if _row(request) < num_rows:
                past_tokens[_row(request)] = request.num_computed
        for request in requests:
            token_ids[_row(request)] = request.generated_ids[-1]
        logits = self._decoder.decode(token_ids, past_tokens)
        return {request: _choose(logits[_row(request)], request) for request in requests}

    def _prefill(self, chunk: PrefillChunk) -> int | None:
        token_ids = np.array(chunk.request.prompt_ids[chunk.start : chunk.end], np.int64)
        logits = self._decoder.prefill(_row(chunk.request), token_ids, chunk.start)
        return _choose(logits[0], chunk.request) if chunk.completes_prompt else None


def _row(request: Request) -> int:
    assert request.row is not None, f"{request.request_id} holds no row"
    return request.row


def _choose(logits: npt.NDArray[np.float32], request: Request) -> int:
    position = request.num_prompt_tokens + request.num_generated
    return sample(logits, request.sampling, position)
