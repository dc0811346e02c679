"""StepPlan: who gets how many tokens in one step. Immutable: the scheduler makes it, the runner follows it."""

from dataclasses import dataclass

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
        """Whether the first token of the answer can be chosen after this chunk."""
        return self.end == self.request.num_prompt_tokens


@dataclass(frozen=True)
class StepPlan:
    """One step: requests that get a row, requests that decode one token, prompt chunks."""

    admit: tuple[Request, ...] = ()
    decode: tuple[Request, ...] = ()
    prefill: tuple[PrefillChunk, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.decode and not self.prefill

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens of all chunks."""
        return sum(chunk.num_tokens for chunk in self.prefill)
