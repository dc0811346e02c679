"""Prompts that part within a block: the tokens up to there are copied from a running request's row."""

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.donors import furthest_donor
from service.engine.engine import Engine
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.support.engines import run
from tests.support.fake_decoder import FakeDecoder, expected_tokens
from tests.support.requests import make_request


def running(prompt: list[int], num_computed: int, salt: str = "") -> Request:
    """A request whose row holds so many tokens."""
    request = make_request(prompt, 10)
    request.num_computed, request.cache_salt = num_computed, salt
    return request


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 14), st.sampled_from("ab")),
        max_size=6,
    ),
    st.lists(st.integers(0, 1), min_size=3, max_size=12),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_the_donor_is_whoever_holds_most_of_the_beginning(
    shapes: list[tuple[list[int], int, str]], prompt: list[int], data: st.DataObject
) -> None:
    """Against a search of everything: of the same salt, computed as a prompt, and two tokens are left to compute."""
    others = [running(ids, min(computed, len(ids) + 3), salt) for ids, computed, salt in shapes]
    request = running(prompt, 0, "a")
    start = data.draw(st.integers(0, len(prompt) - 2))
    best = start
    for other in others:
        for end in range(best + 1, min(other.num_computed, other.num_prompt_tokens, len(prompt) - 2) + 1):
            if other.cache_salt == "a" and other.prompt_ids[:end] == request.prompt_ids[:end]:
                best = end
    donor, end = furthest_donor(request, [request, *others], start)
    assert end == best
    assert (donor is None) == (best == start)
    if donor is not None:
        assert donor is not request
        assert donor.prompt_ids[:end] == request.prompt_ids[:end]


def admitted_in_turn(requests: list[Request], prefix_cache_bytes: int = 1 << 20) -> tuple[Engine, FakeDecoder]:
    """An engine that has computed each prompt in a step of its own, while those before it go on."""
    decoder = FakeDecoder(len(requests))
    engine = Engine(decoder, Scheduler(512), prefix_cache_bytes=prefix_cache_bytes)
    for request in requests:
        engine.add(request)
        engine.step()
    return engine, decoder


def test_a_prompt_that_parts_within_a_block_computes_only_what_is_its_own() -> None:
    """While the first still runs: 128 tokens are mapped, 22 are copied, one salt does not see another's."""
    requests = [make_request([5] * 150 + [100 + i] * 4, 9) for i in range(4)]
    requests[3].cache_salt = "other"
    engine, decoder = admitted_in_turn(requests)
    assert decoder.chunks == [154, 4, 4, 154]
    assert [request.num_cached_tokens for request in requests] == [0, 150, 150, 0]
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, 9)


def test_a_beginning_shorter_than_a_block_is_shared_too() -> None:
    """As the lines that a chat template puts before everything."""
    requests = [make_request([*range(20), 50 + i, 60 + i, 70 + i], 5) for i in range(2)]
    engine, decoder = admitted_in_turn(requests)
    assert decoder.chunks == [23, 3]
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, 5)


def test_what_was_generated_is_no_donation() -> None:
    """A prompt that repeats a running answer computes it: generation leaves other last bits in a row."""
    decoder = FakeDecoder(2)
    engine = Engine(decoder, Scheduler(512), prefix_cache_bytes=1 << 20)
    first = make_request([1, 2, 3, 4], 30)
    engine.add(first)
    for _ in range(10):
        engine.step()
    second = make_request([*first.prompt_ids, *first.generated_ids[:5], 9, 9], 3)
    engine.add(second)
    run(engine, decoder)
    assert second.num_cached_tokens == 4
    assert second.generated_ids == expected_tokens(second.prompt_ids, 3)


def test_without_a_prefix_cache_nothing_is_shared() -> None:
    """0 bytes share nothing, not the rows of others either."""
    _, decoder = admitted_in_turn([make_request([5] * 30 + [i] * 2, 9) for i in range(2)], prefix_cache_bytes=0)
    assert decoder.chunks == [32, 32]
