"""Request: one generation, from submission to its single end. State lives on the request itself.

Separate from the scheduler and the runner because both read it. What a caller can get wrong is refused by
`request_check` before a request is queued, so the step loop never meets it.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum

import numpy as np
import numpy.typing as npt

from model.sampler import TokenLogprobs
from model.sampling import RowState, SamplingParams, TokenConstraint
from model.tokenizer import IncrementalDetokenizer
from service.engine.speculation import PromptLookup
from service.engine.stop_strings import StopStrings


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
    """When to end.

    max_tokens: most tokens to generate. strings: end at any of these. token_ids: end at any of these, as the request
    asks. eos_token_ids: the model's own end tokens; empty where the request ignores them. is_included: the stop string
    or the text of the stop token that ended the answer is part of it.
    """

    max_tokens: int
    strings: tuple[str, ...] = ()
    token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    is_included: bool = False


@dataclass
class Timeline:
    """When things happened, seconds of the monotonic clock; 0.0 while they have not."""

    arrived_s: float = 0.0
    admitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    finished_s: float = 0.0


@dataclass(slots=True)  # not frozen: one is made for every token, and that would take three times as long
class TokenEvent:
    """What one step produced for one request; the last event of a request, and no other, has a finish reason.

    text: what became certain, possibly empty (a character or a stop string may be incomplete). token_id: None where an
    end came without a new token. num_generated counts up to and including this event. since_previous_s: seconds since
    the request's previous token, or since it arrived for the first. stop_reason: the stop string, or the request's own
    stop token, that ended it; None at the model's end token.
    """

    request: "Request"
    token_id: int | None
    text: str
    num_generated: int
    since_previous_s: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: TokenLogprobs | None = None
    stop_reason: int | str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it ends the answer where the model had not: at the length, or at a stop of the request."""
        ends_by_itself = self.finish_reason is FinishReason.STOP and self.stop_reason is None
        return self.finish_reason is not None and not ends_by_itself


@dataclass(eq=False)
class SharedPrompt:
    """One prompt that several requests continue (`n`, `best_of`): the first of them computes it, the others copy it.

    logits: float32 [V] after the prompt's last token, once it has been computed and while somebody may need them.
    """

    members: list["Request"] = field(default_factory=list)
    logits: npt.NDArray[np.float32] | None = None

    def donor_for(self, request: "Request") -> "Request | None":
        """A running member whose row holds the whole prompt, if `request` needs nothing else to go on."""
        if self.logits is None and not request.generated_ids:
            return None
        return next((member for member in self.members if member.row is not None and member.has_prompt), None)

    @property
    def is_being_computed(self) -> bool:
        """Whether a running member has a part of the prompt still to compute."""
        return any(member.row is not None and not member.has_prompt for member in self.members)

    @property
    def is_pending(self) -> bool:
        """Whether a member has neither ended nor got its first token."""
        return any(not member.is_finished and not member.generated_ids for member in self.members)


@dataclass(eq=False)
class Request:
    """A validated request and its progress.

    Progress is computed tokens catching up with total tokens (prompt plus generated): a prompt is computed in chunks,
    a generated token by one decode step. A preempted request loses its row and starts again: its prompt in chunks,
    then the tokens it had generated, each exactly as it was computed the first time (one by one, or in chunks where
    they had been verified as a draft); only then are new tokens chosen.

    row: the cache row held while running. priority: lower is served earlier. deadline_s: monotonic seconds.
    cache_salt: requests share computed prompts only with those of the same salt. num_cached_tokens: how many it got so.
    prompt_logprobs: number of alternatives to report for each prompt token; None reports nothing. shared_prompt: the
    group it belongs to, if others continue the same prompt. speculation: drafts its next tokens, if it asked for that.
    constraint: what the answer must look like; it excludes speculation.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopConditions
    detokenizer: IncrementalDetokenizer
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""
    prompt_logprobs: int | None = None
    shared_prompt: SharedPrompt | None = None
    speculation: PromptLookup | None = None
    constraint: TokenConstraint | None = None
    status: RequestStatus = RequestStatus.WAITING
    row: int | None = None
    num_computed: int = 0
    generated_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    sum_logprobs: float = 0.0  # of the tokens generated, where they are reported
    prompt_token_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the prompt's tokens from the second

    def __post_init__(self) -> None:
        """Prepare the matching of stop strings and the counting of tokens."""
        self.stop_strings = StopStrings(self.stop.strings, is_included=self.stop.is_included)
        self.row_state = RowState(self.prompt_ids, self.generated_ids, self.constraint)
        self._verified = bytearray()  # for each generated token computed: 1 if in a chunk, as part of a verified draft
        if self.shared_prompt is not None:
            self.shared_prompt.members.append(self)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.generated_ids)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens generated; 0 where they are not reported."""
        return self.sum_logprobs / max(1, len(self.generated_ids))

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
        """Whether the next tokens are to be computed in chunks."""
        if self.speculation is None:
            return self.num_computed < len(self.prompt_ids)
        return self.num_computed < self.chunk_end(self.num_computed)

    @property
    def has_prompt(self) -> bool:
        """Whether the row holds the whole prompt."""
        return self.num_computed >= len(self.prompt_ids)

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt are wanted that are not there yet."""
        return self.prompt_logprobs is not None and len(self.prompt_token_logprobs) < len(self.prompt_ids) - 1

    @property
    def awaits_first_token(self) -> bool:
        """Whether the whole prompt was copied from another request and the first token is still to be chosen."""
        return self.shared_prompt is not None and self.num_computed == len(self.prompt_ids) == self.num_tokens

    @property
    def draft(self) -> tuple[int, ...]:
        """The next tokens as its speculation guesses them; empty where there is none or tokens are being replayed.

        Depends on the request's own tokens only, never on load. An odd number, so that they and the token before them
        make an even chunk, and fewer than may still be generated.
        """
        if self.speculation is None or self.constraint is not None or self.is_prefilling or not self.is_caught_up:
            return ()
        limit = min(self.stop.max_tokens - self.num_generated - 1, self.speculation.num_draft_tokens)
        drafted = self.speculation.draft(self.prompt_ids, self.generated_ids)[: max(limit, 0)]
        return drafted if len(drafted) % 2 else drafted[:-1]

    def chunk_end(self, start: int) -> int:
        """Where the chunk of tokens ends that begins at `start`; `start` itself if that token is decoded alone."""
        num_prompt_tokens = len(self.prompt_ids)
        if start < num_prompt_tokens:
            return num_prompt_tokens
        index = start - num_prompt_tokens
        end = self._verified.find(0, index)
        return num_prompt_tokens + (end if end >= 0 else max(index, len(self._verified)))

    def token_ids(self, start: int, end: int) -> tuple[int, ...]:
        """Tokens [start, end) of prompt and answer."""
        num_prompt_tokens = len(self.prompt_ids)
        if end <= num_prompt_tokens:
            return self.prompt_ids[start:end]
        return tuple(self.generated_ids[start - num_prompt_tokens : end - num_prompt_tokens])

    def record_computed(self, num_tokens: int, *, in_chunk: bool) -> None:
        """Note how the next generated tokens have been computed, the first time that they are."""
        if self.speculation is not None and self.num_computed - len(self.prompt_ids) == len(self._verified):
            self._verified.extend([in_chunk] * num_tokens)

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.status is RequestStatus.FINISHED
