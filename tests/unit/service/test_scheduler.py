"""The scheduler's policy: pure, so every claim is a call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.request import Request
from service.engine.scheduler import MIN_CHUNK_TOKENS, Scheduler, chunk_size
from tests.support.requests import make_request


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
    plan = Scheduler(256).plan([], [long, *streams], 0)
    assert plan.decode == tuple(streams)
    assert [(chunk.start, chunk.num_tokens) for chunk in plan.prefill] == [(256, 256)]


def test_admission_is_first_come_first_served_within_free_rows() -> None:
    """Two free rows take the two oldest."""
    waiting = [make_request([1, 2]) for _ in range(3)]
    assert Scheduler(256).plan(waiting, [], 2).admit == tuple(waiting[:2])


def test_short_prompts_share_one_step_up_to_the_budget() -> None:
    """The budget is spent over several prompts, the last one in part."""
    waiting = [make_request([1] * 100) for _ in range(3)]
    plan = Scheduler(256).plan(waiting, [], 3)
    assert [chunk.num_tokens for chunk in plan.prefill] == [100, 100, 56]
    assert plan.num_prefill_tokens == 256


def test_a_rest_of_the_budget_too_small_for_a_chunk_is_left() -> None:
    """One token of budget is not given to a prompt of two."""
    waiting = [make_request([1] * 255), make_request([1] * 9)]
    assert [chunk.num_tokens for chunk in Scheduler(256).plan(waiting, [], 2).prefill] == [255]


def test_nothing_to_do_is_an_empty_plan() -> None:
    """No requests, no work."""
    assert Scheduler(256).plan([], [], 4).is_empty


def test_a_budget_that_could_leave_a_lone_token_is_refused() -> None:
    """Three tokens could be cut into two and one."""
    with pytest.raises(ValueError, match="prefill_chunk_tokens is 3; it must be at least 4"):
        Scheduler(3)
