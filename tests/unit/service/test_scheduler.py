"""The scheduler's policy: pure, so every claim is a call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.request import Request
from service.engine.scheduler import MIN_CHUNK_TOKENS, Capacity, Scheduler, chunk_size
from tests.support.requests import make_request

AMPLE = 1_000_000


def rows(num_free: int, budget_tokens: int = AMPLE) -> Capacity:
    """Free rows, and by default memory for everything."""
    return Capacity(num_free, budget_tokens, page_tokens=16)


def prefilling(prompt_tokens: int, computed: int) -> Request:
    """A running request whose prompt is partly computed."""
    request = make_request([1] * prompt_tokens)
    request.num_computed = computed
    return request


@given(st.integers(1, 3000), st.integers(4, 700))
def test_chunks_cover_the_prompt_and_none_is_a_lone_token(prompt_tokens: int, budget: int) -> None:
    """Every cut of a prompt keeps the bit-exactness rule: at least two tokens, unless the prompt itself is one."""
    remaining, chunks = prompt_tokens, []
    while remaining:
        chunks.append(chunk_size(remaining, budget))
        remaining -= chunks[-1]
        assert 0 < chunks[-1] <= budget
    assert sum(chunks) == prompt_tokens
    assert prompt_tokens == 1 or min(chunks) >= MIN_CHUNK_TOKENS


def test_every_running_stream_decodes_in_every_step_while_a_long_prompt_is_computed() -> None:
    """A long prompt takes its share of the step, never a stream's turn."""
    streams = [prefilling(5, 5) for _ in range(3)]
    long = prefilling(3000, 256)
    plan = Scheduler(256).plan([], [long, *streams], rows(0), 0.0)
    assert plan.decode == tuple(streams)
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.prefill] == [(256, 256)]


def test_admission_is_first_come_first_served_within_free_rows() -> None:
    """Two free rows take the two oldest."""
    waiting = [make_request([1, 2]) for _ in range(3)]
    assert Scheduler(256).plan(waiting, [], rows(2), 0.0).admit == tuple(waiting[:2])


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """It is computed whole in its first step, and the long one goes on with what is left."""
    long, short = prefilling(6000, 512), make_request([1] * 30)
    plan = Scheduler(256).plan([short], [long], rows(1), 0.0)
    assert [(c.request, c.start, c.num_tokens) for c in plan.prefill] == [(long, 512, 226), (short, 0, 30)]


def test_the_oldest_prompt_gets_half_of_every_step_whatever_arrives() -> None:
    """So that short ones, however many, cannot keep it from its first token."""
    long, short = prefilling(6000, 512), [make_request([1] * 100) for _ in range(5)]
    plan = Scheduler(256).plan(short, [long], rows(5), 0.0)
    assert [(c.request, c.num_tokens) for c in plan.prefill] == [(long, 128), (short[0], 100), (short[1], 28)]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=6), st.integers(8, 300))
def test_chunks_of_a_step_stay_within_the_budget_and_serve_the_oldest(lengths: list[int], budget: int) -> None:
    """Never more than the budget, never a lone token, never without the oldest prompt."""
    waiting = [make_request([1] * length, arrived_s=float(i)) for i, length in enumerate(lengths)]
    chunks = Scheduler(budget).plan(waiting, [], rows(6), 0.0).prefill
    assert sum(chunk.num_tokens for chunk in chunks) <= budget
    assert all(chunk.num_tokens >= MIN_CHUNK_TOKENS or chunk.request.num_prompt_tokens == 1 for chunk in chunks)
    assert chunks[0].request is waiting[0]
    assert chunks[0].num_tokens >= min(lengths[0], budget // 2 - 1)


def test_short_prompts_share_one_step_up_to_the_budget() -> None:
    """The budget is spent over several prompts, the last one in part."""
    waiting = [make_request([1] * 100) for _ in range(3)]
    plan = Scheduler(256).plan(waiting, [], rows(3), 0.0)
    assert [chunk.num_tokens for chunk in plan.prefill] == [100, 100, 56]
    assert plan.num_prefill_tokens == 256


def test_a_rest_of_the_budget_too_small_for_a_chunk_is_left() -> None:
    """One token of budget is not given to a longer prompt; the prompt before it gets what it needs."""
    waiting = [make_request([1] * 128), make_request([1] * 127), make_request([1] * 900)]
    chunks = Scheduler(256).plan(waiting, [], rows(3), 0.0).prefill
    assert [chunk.num_tokens for chunk in chunks] == [128, 127]


def test_nothing_to_do_is_an_empty_plan() -> None:
    """No requests, no work."""
    assert Scheduler(256).plan([], [], rows(4), 0.0).is_empty


def test_a_budget_that_could_leave_a_lone_token_is_refused() -> None:
    """Half of seven could be cut into two and one."""
    with pytest.raises(ValueError, match="prefill_chunk_tokens is 7; it must be at least 8"):
        Scheduler(7)


def test_lower_priority_numbers_go_first_and_equals_by_arrival() -> None:
    """Priority before arrival, arrival among equals."""
    late, early = make_request([1, 2], arrived_s=2.0), make_request([1, 2], arrived_s=1.0)
    urgent, idle = make_request([1, 2], priority=-1, arrived_s=3.0), make_request([1, 2], priority=5)
    assert Scheduler(256).order([idle, late, early, urgent], 4.0) == [urgent, early, late, idle]


def test_a_request_that_waited_too_long_goes_before_every_priority() -> None:
    """The bound against starvation: after `starvation_s`, only those overdue before it are ahead."""
    starved, overdue = make_request([1, 2], priority=9, arrived_s=5.0), make_request([1, 2], priority=9, arrived_s=4.0)
    urgent = make_request([1, 2], priority=-9, arrived_s=30.0)
    assert Scheduler(256, starvation_s=30.0).order([urgent, starved, overdue], 35.0) == [overdue, starved, urgent]
    assert Scheduler(256, starvation_s=30.0).order([urgent, starved], 34.9) == [urgent, starved]


def test_a_request_is_admitted_only_if_it_fits_with_room_to_grow() -> None:
    """Held tokens, its own and a reserve for each, within the budget; those behind it wait too."""
    running = prefilling(100, 100)
    running.generated_ids.append(1)
    first, second = make_request([1] * 100, max_tokens=500), make_request([1] * 2, max_tokens=2)
    needed = (112 + Scheduler(256).reserve_tokens) + (112 + Scheduler(256).reserve_tokens)
    running.stop = first.stop
    assert Scheduler(256).plan([first, second], [running], rows(2, needed), 0.0).admit[:1] == (first,)
    assert Scheduler(256).plan([first, second], [running], rows(2, needed - 1), 0.0).admit == ()


def test_a_request_alone_is_admitted_whatever_its_reserve() -> None:
    """Otherwise one that fits the budget exactly would wait for ever."""
    request = make_request([1] * 100, max_tokens=12)
    assert Scheduler(256).plan([request], [], rows(1, 112), 0.0).admit == (request,)


def test_the_last_admitted_of_the_lowest_priority_is_preempted_first() -> None:
    """And only as many as must be; nobody is admitted in the same step."""
    requests = [prefilling(32, 32) for _ in range(4)]
    for request in requests:
        request.generated_ids.append(1)
    requests[1].priority = 7
    plan = Scheduler(256).plan([make_request([1, 2])], requests, rows(4, 3 * 48), 0.0)
    assert plan.preempt == (requests[1],)
    assert plan.admit == ()
    assert plan.decode == (requests[0], requests[2], requests[3])
    plan = Scheduler(256).plan([], requests, rows(4, 2 * 48), 0.0)
    assert plan.preempt == (requests[1], requests[3])


def test_the_last_request_standing_is_never_preempted() -> None:
    """It fits the budget alone, so it finishes."""
    request = prefilling(32, 32)
    request.generated_ids.append(1)
    assert Scheduler(256).plan([], [request], rows(0, 16), 0.0).preempt == ()
