"""StepPlan: who gets how many tokens in one step. Immutable: the scheduler makes it, engine and runner follow it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.engine.request import Request


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens [start, start + num_tokens) of one request: of its prompt, or of a verified draft that is replayed."""

    request: Request
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        """Tokens computed once the chunk has run."""
        return self.start + self.num_tokens

    @property
    def completes_prompt(self) -> bool:
        """Whether the prompt is computed once the chunk has run."""
        return self.end == self.request.num_prompt_tokens


@dataclass(frozen=True)
class Verification:
    """A request's last token and the draft behind it, computed at once to see how much of the draft the model keeps."""

    request: Request
    draft: tuple[int, ...]


@dataclass(frozen=True)
class StepPlan:
    """One step: requests that lose their row, requests that get one, and what is computed for those that hold one.

    decode: one token each, all together. verify: a draft each. prefill: chunks. first: the prompt was copied whole from
    another request with its logits, so the first token is chosen without computing. num_cached: for each admitted
    request, how many of its first tokens need no computing.
    """

    preempt: tuple[Request, ...] = ()
    admit: tuple[Request, ...] = ()
    decode: tuple[Request, ...] = ()
    verify: tuple[Verification, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()
    first: tuple[Request, ...] = ()
    num_cached: Mapping[Request, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute or choose."""
        return not (self.decode or self.verify or self.prefill or self.first)

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.num_tokens for chunk in self.prefill)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request that the step computes or chooses something for."""
        verified = (part.request for part in self.verify)
        return (*self.decode, *verified, *(chunk.request for chunk in self.prefill), *self.first)
