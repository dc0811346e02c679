"""StepPlan: who gets how many tokens in one step. Immutable: the scheduler makes it, engine and runner follow it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.engine.request import Request


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens [start, start + num_tokens) of one request."""

    request: Request
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """Prompt tokens computed once the chunk has run."""
        return self.start + self.num_tokens

    @property
    def completes_prompt(self) -> bool:
        """Whether the prompt is computed once the chunk has run."""
        return self.end == self.request.num_prompt_tokens


@dataclass(frozen=True)
class StepPlan:
    """One step: requests that lose their row, requests that get one, one-token decodes, prompt chunks.

    num_cached: for each admitted request, how many of its first tokens come from the prefix cache.
    """

    preempt: tuple[Request, ...] = ()
    admit: tuple[Request, ...] = ()
    decode: tuple[Request, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    num_cached: Mapping[Request, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.decode and not self.prefill

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens of all chunks."""
        return sum(chunk.num_tokens for chunk in self.prefill)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request that the step computes something for."""
        return (*self.decode, *(chunk.request for chunk in self.prefill))
