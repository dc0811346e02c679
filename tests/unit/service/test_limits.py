"""A caller's limits: never more than a burst and the rate, and never less either."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.limits import Lease, Limiter, Limits, RateLimitedError
from tests.support.engines import Clock

MINUTE_S = 60.0
LIMITS = st.integers(1, 50)
# Per request: seconds since the one before, tokens of its prompt, tokens generated.
TRAFFIC = st.lists(
    st.tuples(st.floats(0, 20) | st.just(0.0), st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=80
)


def refusal(limiter: Limiter, name: str = "alice", num_tokens: int = 1) -> RateLimitedError:
    """The error of a request that must be refused."""
    with pytest.raises(RateLimitedError) as caught:
        limiter.admit(name, num_tokens)
    return caught.value


def wait_of_next(limiter: Limiter) -> float:
    """Seconds that the next request is told to wait; 0.0 if it is admitted."""
    try:
        limiter.admit("alice", 1).release()
    except RateLimitedError as error:
        return error.retry_after_s
    return 0.0


def play(limiter: Limiter, clock: Clock, traffic: list[tuple[float, int, int]]) -> list[tuple[float, int]]:
    """Send requests, each over before the next one; when those admitted came, and what each was charged."""
    admitted = []
    for gap_s, num_prompt, num_generated in traffic:
        clock.now_s += gap_s
        try:
            lease = limiter.admit("alice", num_prompt)
        except RateLimitedError:
            continue
        with lease:
            lease.charge(num_generated)
        admitted.append((clock.now_s, num_prompt + num_generated))
    return admitted


@settings(deadline=None)
@given(LIMITS, TRAFFIC)
def test_no_window_has_more_requests_than_a_burst_and_the_rate(
    limit: int, traffic: list[tuple[float, int, int]]
) -> None:
    """Between any two admitted requests; so within a minute twice the limit at most."""
    clock = Clock()
    times_s = [at_s for at_s, _ in play(Limiter(Limits(requests_per_minute=limit), clock), clock, traffic)]
    for first, start_s in enumerate(times_s):
        for last, end_s in enumerate(times_s[first:], first):
            assert last - first + 1 <= limit + (end_s - start_s) * limit / MINUTE_S + 1e-3


@settings(deadline=None)
@given(LIMITS, TRAFFIC)
def test_no_window_has_more_tokens_than_a_burst_and_the_rate_before_its_last_request(
    limit: int, traffic: list[tuple[float, int, int]]
) -> None:
    """Only the last request may go over: nobody knows before how much it will generate."""
    clock = Clock()
    admitted = play(Limiter(Limits(tokens_per_minute=limit), clock), clock, traffic)
    for first, (start_s, _) in enumerate(admitted):
        num_tokens = 0
        for end_s, num_charged in admitted[first:]:
            assert num_tokens < limit + (end_s - start_s) * limit / MINUTE_S + 1e-3
            num_tokens += num_charged


@settings(deadline=None)
@given(LIMITS, st.just(0) | LIMITS, TRAFFIC, st.floats(0, 1e6))
def test_whoever_waits_as_told_is_let_in(
    num_requests: int, num_tokens: int, traffic: list[tuple[float, int, int]], started_s: float
) -> None:
    """However much was spent before, by which of two limits, and however coarse the clock's floats have become."""
    clock = Clock()
    clock.now_s = started_s
    limiter = Limiter(Limits(num_requests, num_tokens), clock)
    play(limiter, clock, traffic)
    for _ in range(3):
        while (wait_s := wait_of_next(limiter)) == 0.0:
            pass  # until it is empty
        clock.now_s += wait_s
        assert wait_of_next(limiter) == 0.0


@settings(deadline=None)
@given(TRAFFIC)
def test_without_limits_everything_is_admitted(traffic: list[tuple[float, int, int]]) -> None:
    """0 is no limit, however long the service runs."""
    clock = Clock()
    assert len(play(Limiter(Limits(), clock), clock, traffic)) == len(traffic)


def test_requests_of_a_minute_may_come_at_once_and_then_one_by_one() -> None:
    """60 a minute are one a second."""
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=60), clock)
    for _ in range(60):
        limiter.admit("alice", 1)
    error = refusal(limiter)
    assert error.kind == "requests_per_minute"
    assert error.retry_after_s == pytest.approx(1.0)
    assert error.message == str(error)
    assert error.message == "the limit of 60 requests per minute for each caller is reached; try again in 1 s"
    clock.now_s += 1.0
    limiter.admit("alice", 1)
    refusal(limiter)


def test_the_prompt_is_charged_at_once_and_the_answer_as_it_is_made() -> None:
    """100 tokens: 60 of a prompt, 40 of its answer, and nothing is left."""
    limiter = Limiter(Limits(tokens_per_minute=100), Clock())
    lease = limiter.admit("alice", 60)
    lease.charge(39)
    limiter.admit("alice", 0)
    lease.charge(1)
    error = refusal(limiter)
    assert error.kind == "tokens_per_minute"
    assert error.message == "the limit of 100 tokens per minute for each caller is reached; try again in 1 s"


def test_a_request_larger_than_a_minutes_worth_runs_and_its_caller_waits_for_it() -> None:
    """350 tokens of 100 a minute: two and a half minutes of debt."""
    clock = Clock()
    limiter = Limiter(Limits(tokens_per_minute=100), clock)
    limiter.admit("alice", 350)
    assert refusal(limiter).retry_after_s == pytest.approx(150.6)  # until one token is there
    clock.now_s = 150.0
    refusal(limiter)  # the balance is 0, and has to be above it
    clock.now_s = 150.1
    limiter.admit("alice", 350)


def test_what_is_not_used_within_a_minute_is_not_saved_up() -> None:
    """After an hour of silence the bucket holds one minute's worth, also for a charge that comes then."""
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=2, tokens_per_minute=100), clock)
    lease = limiter.admit("alice", 0)
    clock.now_s = 3600.0
    lease.charge(100)
    assert refusal(limiter).kind == "tokens_per_minute"
    clock.now_s = 7200.0
    for _ in range(2):
        limiter.admit("alice", 1)
    assert refusal(limiter).kind == "requests_per_minute"


def test_a_refused_request_is_charged_nothing() -> None:
    """Neither its request nor its tokens nor its slot: insisting does not prolong the wait."""
    clock = Clock()
    limiter = Limiter(Limits(requests_per_minute=2, tokens_per_minute=100, concurrent_requests=1), clock)
    lease = limiter.admit("alice", 99)
    for _ in range(10):
        assert refusal(limiter, num_tokens=1000).kind == "concurrent_requests"
    lease.release()
    limiter.admit("alice", 1).release()
    first, *_, last = [refusal(limiter, num_tokens=1000) for _ in range(10)]
    assert (first.kind, first.retry_after_s) == (last.kind, last.retry_after_s)


def test_of_several_limits_the_one_that_refuses_longest_is_named() -> None:
    """Else a caller would wait for one only to be refused by the next."""
    limiter = Limiter(Limits(requests_per_minute=1, tokens_per_minute=10, concurrent_requests=1), Clock())
    lease = limiter.admit("alice", 0)
    assert refusal(limiter).kind == "requests_per_minute"
    lease.charge(100)
    assert refusal(limiter).kind == "tokens_per_minute"


def test_a_slot_is_free_again_once_its_request_has_ended() -> None:
    """Two at a time."""
    limiter = Limiter(Limits(concurrent_requests=2), Clock())
    first, _ = limiter.admit("alice", 1), limiter.admit("alice", 1)
    error = refusal(limiter)
    assert error.kind == "concurrent_requests"
    assert error.retry_after_s > 0
    assert error.message == "the limit of 2 concurrent requests for each caller is reached; try again in 1 s"
    first.release()
    limiter.admit("alice", 1)
    refusal(limiter)


def test_a_second_release_frees_nothing() -> None:
    """Whoever cleans up need not know who else does."""
    limiter = Limiter(Limits(concurrent_requests=2), Clock())
    first, _ = limiter.admit("alice", 1), limiter.admit("alice", 1)
    first.release()
    first.release()
    limiter.admit("alice", 1)
    refusal(limiter)


def test_a_lease_is_released_however_its_block_ends() -> None:
    """As a context manager, also by an error, which it lets through; tokens may be charged afterwards."""

    def fail(lease: Lease) -> None:
        with lease:
            raise KeyError("the engine")

    limiter = Limiter(Limits(tokens_per_minute=10, concurrent_requests=1), Clock())
    lease = limiter.admit("alice", 1)
    with pytest.raises(KeyError):
        fail(lease)
    with limiter.admit("alice", 1):
        refusal(limiter)
    lease.charge(8)
    assert refusal(limiter).kind == "tokens_per_minute"


@pytest.mark.parametrize("limits", [Limits(1), Limits(0, 1), Limits(0, 0, 1)])
def test_one_callers_limit_is_nobody_elses(limits: Limits) -> None:
    """Each name has its own account."""
    limiter = Limiter(limits, Clock())
    limiter.admit("alice", 1)
    refusal(limiter, "alice")
    limiter.admit("bob", 1)


@pytest.mark.parametrize("make", [lambda: Limits(-1), lambda: Limits(0, -1), lambda: Limits(0, 0, -1)])
def test_a_negative_limit_is_a_bug_of_ours(make: Callable[[], Limits]) -> None:
    """Settings have refused it before."""
    with pytest.raises(AssertionError, match="0 or more"):
        make()
