"""Runner: carries out a plan on the decoder: plan -> packed inputs -> next tokens. Changes no request.

Separate from the engine so that the engine stays bookkeeping. The decoder is anything with `prefill`, `decode`,
the sampler's kernels and a `kv_cache`: the real one, or the tests' fake.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.kv_cache import KVCache
from model.sampler import LogitsKernels, SampledToken, Sampler, SamplingRow, TokenLogprobs
from model.sampling import RowState
from service.engine.plan import PrefillChunk, StepPlan, Verification
from service.engine.request import Request


class TokenDecoder(LogitsKernels, Protocol):
    """What the engine asks of a decoder; `model.decoder.Decoder` states the shapes."""

    config: ModelConfig
    kv_cache: KVCache

    def prefill(
        self, row: int, token_ids: npt.NDArray[np.int64], num_past: int, positions: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits float32 [P, V] after these positions of a chunk; by default its last one."""
        ...

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits float32 [B, V] after one token of each row."""
        ...


@dataclass
class StepResult:
    """What a step computed, to be committed: the tokens chosen, and what prompts left beside them.

    tokens: one per request, or more where a draft was verified. prompt_logits: float32 [V] after the prompts that
    several requests continue. prompt_logprobs: of the tokens that follow each position of a chunk, in order.
    """

    tokens: dict[Request, list[SampledToken]] = field(default_factory=dict)
    prompt_logits: dict[Request, npt.NDArray[np.float32]] = field(default_factory=dict)
    prompt_logprobs: dict[Request, list[TokenLogprobs]] = field(default_factory=dict)
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0


class Runner:
    """Runs plans on one decoder."""

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._sampler = Sampler(decoder)

    def run(self, plan: StepPlan, running: Sequence[Request]) -> StepResult:
        """Compute the plan and choose tokens for every request that has come to the end of its own.

        running: every request that holds a row, in the plan or not. Decode runs first: rows that take no part in it
        have one entry scribbled behind their past, which a chunk then overwrites.
        """
        result = StepResult()
        if plan.decode:
            self._decode(plan.decode, running, result)
        for verification in plan.verify:
            chosen = result.tokens[verification.request] = self._verify(verification)
            result.num_drafted_tokens += len(verification.draft)
            result.num_accepted_tokens += len(chosen) - 1
        for chunk in plan.prefill:
            self._prefill(chunk, result)
        if plan.first:
            self._choose_first(plan.first, result)
        return result

    def _decode(self, requests: Sequence[Request], running: Sequence[Request], result: StepResult) -> None:
        num_rows = 1 + max(_row(request) for request in requests)
        token_ids = np.zeros(num_rows, np.int64)
        past_tokens = np.zeros(num_rows, np.int64)
        for request in running:
            if _row(request) < num_rows:
                past_tokens[_row(request)] = request.num_computed
        for request in requests:
            token_ids[_row(request)] = request.next_decode_id
        logits = self._decoder.decode(token_ids, past_tokens)
        self._choose(logits, {_row(request): request for request in requests if request.is_caught_up}, result)

    def _choose(self, logits: npt.NDArray[np.float32], choosing: dict[int, Request], result: StepResult) -> None:
        """Choose a token for each request by its row of logits [B, V]."""
        sampled = self._sampler.sample(logits, {row: _sampling_row(request) for row, request in choosing.items()})
        result.tokens.update({request: [sampled[row]] for row, request in choosing.items()})

    def _prefill(self, chunk: PrefillChunk, result: StepResult) -> None:
        request = chunk.request
        token_ids = np.array(request.token_ids(chunk.start, chunk.end), np.int64)
        wants_all = request.prompt_logprobs is not None and chunk.start < request.num_prompt_tokens
        positions = np.arange(chunk.num_tokens) if wants_all else None
        logits = self._decoder.prefill(_row(request), token_ids, chunk.start, positions)
        if wants_all:
            result.prompt_logprobs[request] = self._prompt_logprobs(logits, chunk)
        if not chunk.completes_prompt:
            return
        if request.shared_prompt is not None and request.shared_prompt.is_pending:
            result.prompt_logits[request] = logits[-1].copy()  # before penalties edit it in place
        if not request.generated_ids:
            self._choose(logits[-1:], {0: request}, result)

    def _prompt_logprobs(self, logits: npt.NDArray[np.float32], chunk: PrefillChunk) -> list[TokenLogprobs]:
        """Of the prompt tokens that follow each position of a chunk. logits: [T, V]."""
        next_ids = chunk.request.prompt_ids[chunk.start + 1 : chunk.end + 1]
        return self._sampler.logprobs(logits[: len(next_ids)], next_ids, chunk.request.prompt_logprobs or 0)

    def _choose_first(self, requests: Sequence[Request], result: StepResult) -> None:
        """First tokens of requests that took their prompt, and the logits after it, from another one."""
        prompts = [request.shared_prompt for request in requests]
        logits = np.stack([prompt.logits for prompt in prompts if prompt is not None and prompt.logits is not None])
        assert len(logits) == len(requests), "only a shared prompt can be copied whole"
        self._choose(logits, dict(enumerate(requests)), result)

    def _verify(self, verification: Verification) -> list[SampledToken]:
        """Choose tokens as without a draft, for as long as the draft guessed them: always one more than it did.

        The noise of a token depends on seed and position alone, so a draft changes no choice, only how it is computed.
        """
        request, draft = verification.request, verification.draft
        token_ids = np.array([request.next_decode_id, *draft], np.int64)
        logits = self._decoder.prefill(_row(request), token_ids, request.num_computed, np.arange(len(token_ids)))
        generated_ids = list(request.generated_ids)
        state = RowState(request.prompt_ids, generated_ids)
        chosen: list[SampledToken] = []
        for position in range(len(token_ids)):
            row = SamplingRow(request.sampling, state, request.num_tokens + position)
            chosen.append(self._sampler.sample(logits[position : position + 1], {0: row})[0])
            generated_ids.append(chosen[-1].token_id)
            if position < len(draft) and chosen[-1].token_id != draft[position]:
                break
        return chosen


def _row(request: Request) -> int:
    assert request.row is not None, f"{request.request_id} holds no row"
    return request.row


def _sampling_row(request: Request) -> SamplingRow:
    return SamplingRow(request.sampling, request.row_state, request.num_tokens)
