"""Scheduler: decides each step's plan. Pure policy: it reads requests and changes nothing.

**Decode first.** Every running request whose prompt is done gets its token in every step. Prompts share a budget of
tokens per step, so a long prompt delays a running stream by one chunk at most. Half of it is the oldest prompt's, the
rest goes to the shortest, so a short prompt does not wait for a long one: it is computed in the step after its
admission.

**Order.** Waiting requests go by priority (lower first), then by arrival. One that has waited `starvation_s` goes
before all that have not, whatever their priority. So no request starves: it starts at the latest when, after
`starvation_s`, those that were overdue before it have been admitted and a row has become free, and rows become free
because admitted requests end (every one has max_tokens) or are preempted.

**Memory.** A request is admitted if its tokens fit the token budget beside what is held and a reserve of
`reserve_tokens` of growth for each running request. When a step's growth would not fit, the most recently admitted of
the lowest priority are preempted: they lose the least work, wait in their old place, and replay. Overdue requests are
preempted last, whatever their priority, and the one of them admitted first goes on; one alone is never preempted. So
every admitted request finishes (docs/adr/0007).

**Chunks of two.** Prompt chunks have at least two tokens: attention takes another kernel path for a single query, whose
result differs in the last bits, and an answer must not depend on how its prompt was cut (docs/adr/0004).
`Decoder.prefill` sees to the other lone queries, those of odd chunks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from service.engine.plan import PrefillChunk, StepPlan, Verification
from service.engine.request import Request

MIN_CHUNK_TOKENS = 2
LOGPROB_CHUNK_TOKENS = 256  # of a prompt whose log-probabilities are wanted: 50 MB of logits for the default model
MIN_CHUNK_BUDGET_TOKENS = 8  # half of it is enough to cut any prompt into chunks of at least two


@dataclass(frozen=True)
class Capacity:
    """What the cache has to give: rows that nobody holds, and tokens that all rows together may hold.

    Tokens are counted in whole pages of `page_tokens`, as the cache commits them.
    """

    num_free_rows: int
    budget_tokens: int
    page_tokens: int = 1

    def pages(self, num_tokens: int) -> int:
        """Tokens rounded up to whole pages."""
        return -(-num_tokens // self.page_tokens) * self.page_tokens


@dataclass(frozen=True)
class Scheduler:
    """The policy.

    prefill_chunk_tokens: prompt tokens per step. starvation_s: wait after which priority yields. reserve_tokens: growth
    kept free per running request when another one is admitted.
    """

    prefill_chunk_tokens: int
    starvation_s: float = 30.0
    reserve_tokens: int = 64

    def __post_init__(self) -> None:
        """Refuse a budget that could leave a lone token.

        Raises:
            ValueError: the budget is below the minimum.
        """
        if self.prefill_chunk_tokens < MIN_CHUNK_BUDGET_TOKENS:
            raise ValueError(
                f"prefill_chunk_tokens is {self.prefill_chunk_tokens}; it must be at least {MIN_CHUNK_BUDGET_TOKENS}"
            )

    def plan(
        self,
        waiting: Iterable[Request],
        running: Sequence[Request],
        capacity: Capacity,
        now_s: float,
        num_cached: Callable[[Request], int] = lambda _request: 0,
    ) -> StepPlan:
        """The next step.

        waiting: in order of arrival. running: in order of admission. now_s: monotonic seconds. num_cached: tells how
        many of a request's first tokens need no computing once it has a row.
        """
        preempt = self._preempt(running, capacity, now_s)
        kept = [request for request in running if request not in preempt]
        admit = () if preempt else self._admit(waiting, kept, capacity, now_s)
        cached = {request: num_cached(request) for request in admit}
        starts = [(request, request.num_computed) for request in kept if request.is_prefilling]
        starts += [(request, start) for request, start in cached.items() if start < request.chunk_end(start)]
        copied = [request for request, start in cached.items() if start == request.num_tokens]
        ready = [request for request in kept if not request.is_prefilling and not request.awaits_first_token]
        drafts = {request: draft for request in ready if (draft := request.draft)}
        return StepPlan(
            preempt=preempt,
            admit=admit,
            decode=tuple(request for request in ready if request not in drafts),
            verify=tuple(Verification(request, draft) for request, draft in drafts.items()),
            prefill=self._chunks(starts),
            first=(*(request for request in kept if request.awaits_first_token), *copied),
            num_cached=cached,
        )

    def order(self, waiting: Iterable[Request], now_s: float) -> list[Request]:
        """Waiting requests, the next to be admitted first."""
        return sorted(waiting, key=lambda request: self._rank(request, now_s))

    def _rank(self, request: Request, now_s: float) -> tuple[int, int, float]:
        arrived_s = request.timeline.arrived_s
        if self._is_overdue(request, now_s):
            return (0, 0, arrived_s)
        return (1, request.priority, arrived_s)

    def _admit(
        self, waiting: Iterable[Request], running: Sequence[Request], capacity: Capacity, now_s: float
    ) -> tuple[Request, ...]:
        """The first requests, in order, that fit; the first that does not fit makes those behind it wait too.

        One that shares its prompt with a request that is computing it waits for that, and nobody waits behind it.
        """
        held = self.held_tokens(running, capacity)
        admitted: list[Request] = []
        for request in self.order(waiting, now_s):
            if len(admitted) == capacity.num_free_rows:
                break
            if _is_being_computed(request, admitted):
                continue
            needed = capacity.pages(request.num_tokens) + self._reserve(request)
            is_alone = not running and not admitted  # its reserve may exceed the budget, itself it does not
            if held + needed > capacity.budget_tokens and not is_alone:
                break
            held += needed
            admitted.append(request)
        return tuple(admitted)

    def held_tokens(self, running: Iterable[Request], capacity: Capacity, *, counts_drafts: bool = True) -> int:
        """Tokens of the budget that no other request gets: what these hold, and the growth kept free for them.

        counts_drafts: only where the engine's own thread asks, as asking for a draft makes it.
        """
        return sum(
            capacity.pages(_next_tokens(request, counts_drafts=counts_drafts)) + self._reserve(request)
            for request in running
        )

    def _reserve(self, request: Request) -> int:
        """Growth to keep free for a request: what it may still generate, up to the reserve."""
        return min(self.reserve_tokens, request.stop.max_tokens - request.num_generated)

    def victims(self, running: Sequence[Request], now_s: float) -> list[Request]:
        """Running requests, the first to lose its row first: overdue ones last, so that they finish.

        Among the others the lowest priority, then the one admitted last, which loses the least work.
        """
        ranked = enumerate(running)
        order = sorted(ranked, key=lambda item: (self._is_overdue(item[1], now_s), -item[1].priority, -item[0]))
        overdue_from = next((at for at, (_, r) in enumerate(order) if self._is_overdue(r, now_s)), len(order))
        overdue = sorted(order[overdue_from:], key=lambda item: -item[0])  # priority has yielded
        return [request for _, request in [*order[:overdue_from], *overdue]]

    def _is_overdue(self, request: Request, now_s: float) -> bool:
        return now_s - request.timeline.arrived_s >= self.starvation_s

    def _preempt(self, running: Sequence[Request], capacity: Capacity, now_s: float) -> tuple[Request, ...]:
        """Who must give up a row so that the others' next tokens fit."""
        held = sum(capacity.pages(_next_tokens(request)) for request in running)
        if held <= capacity.budget_tokens:
            return ()
        victims: list[Request] = []
        for request in self.victims(running, now_s)[: len(running) - 1]:
            if held <= capacity.budget_tokens:
                break
            victims.append(request)
            held -= capacity.pages(_next_tokens(request))
        return tuple(victims)

    def _chunks(self, starts: Sequence[tuple[Request, int]]) -> tuple[PrefillChunk, ...]:
        """Cut prompts into chunks from where each one stands.

        starts: in order of admission. Half of the budget is the oldest prompt's, so that it goes on whatever arrives;
        the rest goes to the others, the shortest first, and what they leave to the oldest again.
        """
        if not starts:
            return ()
        (oldest, start), *others = starts
        remaining = _remaining(oldest, start)
        kept = chunk_size(remaining, self._within(oldest, self.prefill_chunk_tokens // 2))
        budget = self.prefill_chunk_tokens - kept
        chunks: list[PrefillChunk] = []
        for request, other_start in sorted(others, key=lambda item: _remaining(*item)):
            num_tokens = chunk_size(_remaining(request, other_start), self._within(request, budget))
            if num_tokens == 0:
                break
            chunks.append(PrefillChunk(request, other_start, num_tokens))
            budget -= num_tokens
        return (PrefillChunk(oldest, start, chunk_size(remaining, self._within(oldest, kept + budget))), *chunks)

    def _within(self, request: Request, budget: int) -> int:
        """The budget of one request's chunk: logits of a whole chunk take memory, so that one is bounded."""
        return budget if request.prompt_logprobs is None else min(budget, LOGPROB_CHUNK_TOKENS)


def chunk_size(remaining: int, budget: int) -> int:
    """Tokens of a prompt's next chunk: at most `budget`, never leaving or being a lone token (unless it is the prompt).

    Returns 0 where the budget is too small for that.
    """
    if remaining <= budget:
        return remaining
    num_tokens = budget - 1 if remaining - budget < MIN_CHUNK_TOKENS else budget
    return num_tokens if num_tokens >= MIN_CHUNK_TOKENS else 0


def _next_tokens(request: Request, *, counts_drafts: bool = True) -> int:
    """Tokens that the request's row may hold once its next step has run; a prompt is counted whole from the start."""
    num_drafted = len(request.draft) if counts_drafts else 0
    return max(request.num_prompt_tokens, request.num_computed + 1 + num_drafted)


def _remaining(request: Request, start: int) -> int:
    """Tokens from `start` to the end of what is computed in chunks."""
    return request.chunk_end(start) - start


def _is_being_computed(request: Request, admitted: Sequence[Request]) -> bool:
    """Whether another request computes the same prompt now, or will in this step, so that it can be copied soon."""
    shared = request.shared_prompt
    if shared is None or request.lacks_prompt_logprobs:
        return False
    return shared.is_being_computed or any(member in admitted for member in shared.members)
