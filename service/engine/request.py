"""Request: one generation, from submission to its single end. State lives on the request itself.

Separate from the scheduler and the runner because both read it. Everything a caller can get wrong is refused when the
request is made, so the step loop never meets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from model.sampler import TokenLogprobs
from model.sampling import RowState, SamplingParams
from model.tokenizer import IncrementalDetokenizer
from service.engine.stop_strings import StopStrings

CONTEXT_EXCEEDED = "context_length_exceeded"


class InvalidRequestError(ValueError):
    """A request that can never run. `param` names the field at fault, `code` the fault, for programs."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class RequestStatus(Enum):
    """Where a request is: queued, holding a cache row, or ended."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """How a request ended. Exactly one per request."""

    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the client left
    DEADLINE = "deadline"  # the request's own deadline passed
    ERROR = "error"  # the engine failed; the event carries the reason


@dataclass(frozen=True)
class StopConditions:
    """When to end. max_tokens: most tokens to generate. strings: end before any of these. token_ids: end tokens."""

    max_tokens: int
    strings: tuple[str, ...] = ()
    token_ids: frozenset[int] = frozenset()


@dataclass
class Timeline:
    """When things happened, seconds of the monotonic clock; 0.0 while they have not."""

    arrived_s: float = 0.0
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    finished_s: float = 0.0


@dataclass(frozen=True)
class TokenEvent:
    """What one step produced for one request; the last event of a request, and no other, has a finish reason.

    text: what became certain, possibly empty (a character or a stop string may be incomplete). token_id: None where an
    end came without a new token. num_generated counts up to and including this event. since_previous_s: seconds since
    the request's previous token, or since it arrived for the first.
    """

    request: "Request"
    token_id: int | None
    text: str
    num_generated: int
    since_previous_s: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(eq=False)
class Request:
    """A validated request and its progress.

    Progress is computed tokens catching up with total tokens (prompt plus generated): a prompt is computed in chunks,
    a generated token by one decode step. A preempted request loses its row and starts again: its prompt in chunks,
    then the tokens it had generated one by one, exactly as they were computed the first time; only then are new
    tokens chosen.

    row: the cache row held while running. priority: lower is served earlier. deadline_s: monotonic seconds.
    cache_salt: requests share computed prompts only with those of the same salt. num_cached_tokens: how many it got so.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopConditions
    detokenizer: IncrementalDetokenizer
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""
    status: RequestStatus = RequestStatus.WAITING
    row: int | None = None
    num_computed: int = 0
    generated_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    timeline: Timeline = field(default_factory=Timeline)

    def __post_init__(self) -> None:
        """Prepare the matching of stop strings and the counting of tokens."""
        self.stop_strings = StopStrings(self.stop.strings)
        self.row_state = RowState(self.prompt_ids, self.generated_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.generated_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt_ids) + len(self.generated_ids)

    @property
    def is_caught_up(self) -> bool:
        """Whether the next decode makes a new token, rather than replaying one after a preemption."""
        return self.num_computed == self.num_tokens - 1

    @property
    def next_decode_id(self) -> int:
        """The generated token whose keys and values are computed next."""
        return self.generated_ids[self.num_computed - len(self.prompt_ids)]

    @property
    def is_prefilling(self) -> bool:
        """Whether part of the prompt is still to be computed."""
        return self.num_computed < len(self.prompt_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.status is RequestStatus.FINISHED


def check_request(prompt_ids: Sequence[int], stop: StopConditions, *, vocab_size: int, context_tokens: int) -> None:
    """Refuse what the engine could never finish.

    Raises:
        InvalidRequestError: empty prompt, id out of vocabulary, max_tokens below 1, or more tokens than a row holds.
    """
    if not prompt_ids:
        raise InvalidRequestError("the prompt is empty; give at least one token", "prompt")
    bad = next((token_id for token_id in prompt_ids if not 0 <= token_id < vocab_size), None)
    if bad is not None:
        raise InvalidRequestError(f"token id {bad} is out of range; ids are from 0 to {vocab_size - 1}", "prompt")
    if len(prompt_ids) >= context_tokens:
        raise InvalidRequestError(
            f"the prompt has {len(prompt_ids)} tokens; this model's context holds {context_tokens} tokens, "
            "at least one of them for the answer",
            "prompt",
            CONTEXT_EXCEEDED,
        )
    room = context_tokens - len(prompt_ids)
    if not 1 <= stop.max_tokens <= room:
        raise InvalidRequestError(
            f"max_tokens is {stop.max_tokens}; after a prompt of {len(prompt_ids)} tokens it must be from 1 to {room} "
            f"(context: {context_tokens} tokens)",
            "max_tokens",
            CONTEXT_EXCEEDED if stop.max_tokens > room else "invalid_value",
        )
