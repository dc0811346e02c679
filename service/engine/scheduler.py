"""Scheduler: decides each step's plan. Pure policy: it reads requests and changes nothing.

Decode comes first: every running request whose prompt is done gets its token in every step. Prompts share a budget of
tokens per step, first come, first served, so a long prompt delays a running stream by one chunk at most.

Chunks have at least two tokens: attention takes another kernel path for a single query, whose result differs in the
last bits, and an answer must not depend on how its prompt was cut (docs/adr/0004). A lone last token is avoided by
making the chunk before it one shorter. `Decoder.prefill` sees to the other lone queries, those of odd chunks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.engine.plan import PrefillChunk, StepPlan
from service.engine.request import Request

MIN_CHUNK_TOKENS = 2
MIN_CHUNK_BUDGET_TOKENS = 4  # enough to cut any prompt into chunks of at least two


@dataclass(frozen=True)
class Scheduler:
    """First come, first served admission; decode first; chunked prefill within a token budget per step."""

    prefill_chunk_tokens: int

    def __post_init__(self) -> None:
        """Refuse a budget that could leave a lone token.

        Raises:
            ValueError: the budget is below the minimum.
        """
        if self.prefill_chunk_tokens < MIN_CHUNK_BUDGET_TOKENS:
            raise ValueError(
                f"prefill_chunk_tokens is {self.prefill_chunk_tokens}; it must be at least {MIN_CHUNK_BUDGET_TOKENS}"
            )

    def plan(self, waiting: Iterable[Request], running: Sequence[Request], num_free_rows: int) -> StepPlan:
        """The next step.

        waiting: in order of arrival. running: in order of admission. num_free_rows: rows nobody holds.
        """
        admit = tuple(request for request, _ in zip(waiting, range(num_free_rows), strict=False))
        decode = tuple(request for request in running if not request.is_prefilling)
        prompts = [request for request in running if request.is_prefilling]
        return StepPlan(admit, decode, self._chunks([*prompts, *admit]))

    def _chunks(self, requests: Sequence[Request]) -> tuple[PrefillChunk, ...]:
        """Cut prompts into chunks, oldest first, until the budget is spent."""
        chunks: list[PrefillChunk] = []
        budget = self.prefill_chunk_tokens
        for request in requests:
            remaining = request.num_prompt_tokens - request.num_computed
            num_tokens = chunk_size(remaining, budget)
            if num_tokens == 0:
                break
            chunks.append(PrefillChunk(request, request.num_computed, num_tokens))
            budget -= num_tokens
        return tuple(chunks)


def chunk_size(remaining: int, budget: int) -> int:
    """Tokens of a prompt's next chunk: at most `budget`, never leaving or being a lone token (unless it is the prompt).

    Returns 0 where the budget is too small for that.
    """
    if remaining <= budget:
        return remaining
    num_tokens = budget - 1 if remaining - budget < MIN_CHUNK_TOKENS else budget
    return num_tokens if num_tokens >= MIN_CHUNK_TOKENS else 0
