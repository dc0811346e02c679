"""Several requests that continue one prompt: it is computed once, and each gets what it gets alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import SamplingParams
from service.engine.engine import RetryableError, StepOutcome
from service.engine.invariants import violations
from service.engine.request import Request, SharedPrompt
from tests.support.engines import make_engine, run
from tests.support.fake_decoder import FakeDecoder, expected_tokens
from tests.support.requests import make_request

PROMPT = [7, 8, 9] * 10


def make_group(count: int, max_tokens: int = 6, prompt: list[int] = PROMPT) -> list[Request]:
    """Requests that share a prompt."""
    shared = SharedPrompt()
    return [make_request(prompt, max_tokens, shared_prompt=shared) for _ in range(count)]


def test_a_shared_prompt_is_computed_once() -> None:
    """Four answers, one prompt's worth of computing, in as many decode steps as one answer takes."""
    engine, decoder = make_engine(num_rows=4, budget=64)
    group = make_group(4)
    for request in group:
        engine.add(request)
    run(engine, decoder)
    assert decoder.chunks == [len(PROMPT)]
    for request in group:
        assert request.generated_ids == expected_tokens(PROMPT, 6)
    assert [request.num_cached_tokens for request in group] == [0, 30, 30, 30]


def test_members_that_find_no_row_at_first_copy_the_prompt_later() -> None:
    """More answers than rows: the later ones copy from whoever still runs."""
    engine, decoder = make_engine(num_rows=2, budget=64)
    group = make_group(5)
    for index, request in enumerate(group):
        request.stop = make_request(PROMPT, 4 + 2 * index).stop
        engine.add(request)
    run(engine, decoder)
    assert decoder.chunks == [len(PROMPT)]
    assert [request.generated_ids for request in group] == [expected_tokens(PROMPT, 4 + 2 * i) for i in range(5)]


def test_members_sample_from_the_same_logits_with_their_own_seeds() -> None:
    """As each would alone, penalties of one not touching the logits of another."""
    sampling = [SamplingParams(2.0, seed=i, logit_bias={i: 100.0} if i == 1 else {}) for i in range(4)]
    alone = []
    for params in sampling:
        engine, decoder = make_engine()
        request = make_request(PROMPT, 6, sampling=params)
        engine.add(request)
        run(engine, decoder)
        alone.append(request.generated_ids)
    engine, decoder = make_engine()
    group = make_group(4)
    for request, params in zip(group, sampling, strict=True):
        request.sampling = params
        engine.add(request)
    run(engine, decoder)
    assert [request.generated_ids for request in group] == alone
    assert alone[1][0] == 1
    assert len({tuple(tokens) for tokens in alone}) > 2


def test_logits_are_dropped_when_nobody_needs_them() -> None:
    """They are a vocabulary wide; a long answer must not hold them to its end."""
    engine, decoder = make_engine(num_rows=4, budget=64)
    group = make_group(3, 20)
    for request in group:
        engine.add(request)
    for _ in range(3):
        engine.step()
    assert all(request.num_generated for request in group)
    shared = group[0].shared_prompt
    assert shared is not None
    assert shared.logits is None
    run(engine, decoder)


def test_a_failed_step_after_copying_is_tried_again() -> None:
    """The copied prompt stays, the first token is chosen in the next step."""
    engine, decoder = make_engine(num_rows=4, budget=64)
    group = make_group(3)
    for request in group:
        engine.add(request)
    engine.step()
    decoder.fail_at_call, decoder.failure = decoder.num_calls + 1, RetryableError("busy")
    assert engine.step().outcome is StepOutcome.RETRYABLE
    assert violations(engine, decoder.kv_cache) == []
    run(engine, decoder)
    assert all(request.generated_ids == expected_tokens(PROMPT, 6) for request in group)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_the_first_member_may_leave_at_any_time(num_steps: int) -> None:
    """Whoever is left computes or copies the prompt."""
    engine, decoder = make_engine(num_rows=3, budget=16)
    group = make_group(4)
    for request in group:
        engine.add(request)
    for _ in range(num_steps):
        engine.step()
    engine.abort(group[0])
    run(engine, decoder)
    assert all(request.generated_ids == expected_tokens(PROMPT, 6) for request in group[1:])


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 30)), min_size=1, max_size=4),
    st.integers(4, 16),
    st.lists(st.integers(0, 30), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_groups_under_pressure_get_the_tokens_they_get_alone(
    shapes: list[tuple[int, int, int]], budget_pages: int, leavers: list[int]
) -> None:
    """Little memory, so that members are preempted and copy again; some leave."""
    engine, decoder = make_engine(num_rows=3, kv_budget_tokens=budget_pages * 64)
    requests: list[Request] = []
    for index, (count, length, max_tokens) in enumerate(shapes):
        requests += make_group(count, max_tokens, [(index * 11 + k) % 256 for k in range(length)])
    for request in requests:
        engine.add(request)
    for leaver in leavers:
        engine.step()
        engine.abort(requests[leaver % len(requests)])
        assert violations(engine, decoder.kv_cache) == []
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, request.num_generated)
        assert request.num_generated == request.stop.max_tokens or request.finish_reason == "cancelled"


def test_prompt_logprobs_cover_every_token_but_the_first_however_the_prompt_is_cut() -> None:
    """Chunks, a preemption in the middle and a cached beginning leave no gap and no double."""
    prompt = list(range(40, 110))
    reports = []
    for budget, preempts in ((128, False), (10, False), (16, True)):
        engine, decoder = make_engine(num_rows=2, budget=budget)
        request = make_request(prompt, 3, prompt_logprobs=2)
        engine.add(request)
        if preempts:
            engine.step()
            engine.step()
            engine._preempt(request)
        run(engine, decoder)
        assert request.generated_ids == expected_tokens(prompt, 3)
        reports.append(list(request.prompt_token_logprobs))
    assert len(reports[0]) == len(prompt) - 1
    assert all(len(report.top) == 2 for report in reports[0])
    assert reports[1] == reports[2] == reports[0]


def test_prompt_logprobs_are_computed_although_the_prompt_is_cached() -> None:
    """A hit would skip what they come from."""
    decoder = FakeDecoder(2)
    engine, _ = make_engine(budget=512, decoder=decoder, prefix_cache_bytes=1 << 20)
    for logprobs in (None, 0):
        request = make_request([5] * 150, 1, prompt_logprobs=logprobs)
        engine.add(request)
        run(engine, decoder)
    assert len(request.prompt_token_logprobs) == 149
    assert decoder.chunks == [150, 150]
