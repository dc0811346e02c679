"""Speculation by prompt lookup: fewer runs, the same tokens, and exact replays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import SamplingParams
from service.engine.engine import RetryableError
from service.engine.speculation import FIRST_PAUSE_TOKENS, MAX_DRAFT_TOKENS, PromptLookup
from tests.support.engines import make_engine, run, text_of
from tests.support.fake_decoder import FakeDecoder, expected_tokens, repeating_token
from tests.support.requests import TOKENIZER, make_request


def repeating_decoder(num_rows: int = 4) -> FakeDecoder:
    """A decoder that quotes itself."""
    decoder = FakeDecoder(num_rows)
    decoder.next_token = repeating_token
    return decoder


def test_a_draft_is_what_followed_the_last_tokens_before() -> None:
    """The latest occurrence counts; nothing similar, no draft."""
    lookup = PromptLookup(4)
    assert lookup.draft([1, 2, 3, 4, 5, 1, 2, 3, 9, 8, 7, 6], [5, 1, 2, 3]) == (9, 8, 7)
    assert PromptLookup(4).draft([1, 2, 3, 4], [5]) == ()
    assert PromptLookup(4).draft([1, 2], []) == ()


def test_drafts_grow_while_they_are_kept_whole_and_shrink_to_what_was_kept() -> None:
    """Three, seven, then as many as allowed; after a failure as many as were right, at least three."""
    lookup, ids = PromptLookup(12), [*range(50), 0, 1, 2]
    lengths = []
    for accepted in (3, 7, 12, 5, 0, 3):
        lengths.append(len(lookup.draft(ids, [])))
        lookup.observe(lengths[-1], accepted)
    assert lengths == [3, 7, 12, 12, 5, 3]


def test_drafts_that_fail_are_paused_for_longer_and_longer() -> None:
    """And a success in full starts over."""
    lookup, prompt, generated = PromptLookup(3), [1, 2, 3] * 4, [1, 2, 3]
    assert lookup.draft(prompt, generated)
    while lookup.draft(prompt, generated):
        lookup.observe(3, 0)
    paused = 0
    while not lookup.draft(prompt, generated):
        generated += [generated[-3]]
        paused += 1
    assert paused == FIRST_PAUSE_TOKENS
    while lookup.draft(prompt, generated):
        lookup.observe(3, 0)
    paused = 0
    while not lookup.draft(prompt, generated):
        generated += [generated[-3]]
        paused += 1
    assert paused == 2 * FIRST_PAUSE_TOKENS


@pytest.mark.parametrize("count", [0, -1, MAX_DRAFT_TOKENS + 1])
def test_a_draft_length_out_of_range_is_refused(count: int) -> None:
    """It bounds what one request adds to a step."""
    with pytest.raises(ValueError, match=f"num_draft_tokens is {count}; it must be from 1 to {MAX_DRAFT_TOKENS}"):
        PromptLookup(count)


def test_speculation_takes_fewer_runs_for_the_same_tokens() -> None:
    """On text that repeats; the report counts what was drafted and kept."""
    prompt = [10, 11, 12, 13, 14] * 4
    engine, decoder = make_engine(decoder=repeating_decoder())
    request = make_request(prompt, 60, speculation=PromptLookup())
    engine.add(request)
    drafted = accepted = 0
    while engine.has_work:
        report = engine.step()
        drafted, accepted = drafted + report.num_drafted_tokens, accepted + report.num_accepted_tokens
    assert request.generated_ids == expected_tokens(prompt, 60, repeating_token)
    assert decoder.num_calls < 40
    assert 0 < accepted <= drafted
    assert request.speculation is not None
    assert (drafted, accepted) == (request.speculation.num_drafted, request.speculation.num_accepted)


SHAPES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.booleans()), min_size=1, max_size=8)


@given(SHAPES, st.integers(8, 40), st.integers(4, 14), st.floats(0, 2))
@settings(max_examples=100, deadline=None)
def test_speculating_requests_get_the_tokens_they_get_without(
    shapes: list[tuple[int, int, bool]], budget: int, budget_pages: int, temperature: float
) -> None:
    """Beside others, preempted and replayed, sampled or greedy, with penalties: a draft changes no choice."""
    plain: list[list[int]] = []
    for speculates in (False, True):
        engine, decoder = make_engine(
            budget=budget, kv_budget_tokens=budget_pages * 64 if speculates else None, decoder=repeating_decoder(3)
        )
        requests = [
            make_request(
                [(i + k % 5) % 256 for k in range(length)],
                max_tokens,
                sampling=SamplingParams(temperature * (i % 2), seed=i, frequency_penalty=0.01 * (i % 3)),
                speculation=PromptLookup() if speculates and wanted else None,
            )
            for i, (length, max_tokens, wanted) in enumerate(shapes)
        ]
        for request in requests:
            engine.add(request)
        events = run(engine, decoder)
        tokens = [request.generated_ids for request in requests]
        assert [[e.token_id for e in events if e.request is request] for request in requests] == tokens
        if speculates:
            assert tokens == plain
        plain = tokens


class PathDecoder(FakeDecoder):
    """Notes on which path each token was computed last: a token of a chunk or a token alone."""

    def __init__(self) -> None:
        super().__init__(2)
        self.next_token = repeating_token

    def prefill(self, row, token_ids, num_past, positions=None):  # type: ignore[no-untyped-def]
        """Mark the chunk's keys."""
        logits = super().prefill(row, token_ids, num_past, positions)
        self.kv_cache._arrays[1][row, 0, num_past : num_past + len(token_ids), 0] = 1
        return logits

    def decode(self, token_ids, past_tokens):  # type: ignore[no-untyped-def]
        """Mark one token of each row."""
        for row, past in enumerate(past_tokens):
            self.kv_cache._arrays[1][row, 0, past, 0] = 2
        return super().decode(token_ids, past_tokens)


def test_a_preempted_speculation_is_replayed_on_the_same_paths() -> None:
    """Chunks and single tokens differ in the last bits, so every token is computed again as it was at first."""
    decoder = PathDecoder()
    engine, _ = make_engine(budget=16, decoder=decoder)
    request = make_request([10, 11, 12, 13, 14] * 3, 200, speculation=PromptLookup())
    engine.add(request)
    while request.num_generated < 60:
        engine.step()
    assert request.row is not None
    num_computed = request.num_computed
    paths = decoder.kv_cache.read(request.row, 0, num_computed)[1, 0, :, 0]
    assert set(paths[15:].tolist()) == {1, 2}, "both paths were taken"
    engine._preempt(request)
    while request.num_computed < num_computed:
        engine.step()
    assert request.row is not None
    replayed = decoder.kv_cache.read(request.row, 0, num_computed)[1, 0, :, 0]
    assert replayed.tolist() == paths.tolist()
    run(engine, decoder)
    assert request.generated_ids == expected_tokens(request.prompt_ids, 200, repeating_token)


def test_an_answer_that_ends_inside_a_draft_shows_nothing_behind_its_end() -> None:
    """The accepted tokens behind a stop are dropped, as if they had never been guessed."""
    prompt = [65, 66, 67, 68, 69] * 4
    plain = expected_tokens(prompt, 30, repeating_token)
    engine, decoder = make_engine(decoder=repeating_decoder())
    request = make_request(prompt, 30, stop_ids=[plain[4]], speculation=PromptLookup())
    engine.add(request)
    events = run(engine, decoder)
    end = plain.index(plain[4]) + 1
    assert request.generated_ids == plain[:end]
    assert text_of(events, request) == TOKENIZER.decode(plain[: end - 1])


def test_a_failed_verification_changes_nothing() -> None:
    """The step is tried again with the same draft."""
    prompt = [10, 11, 12, 13, 14] * 4
    engine, decoder = make_engine(decoder=repeating_decoder(), budget=64)
    request = make_request(prompt, 40, speculation=PromptLookup())
    engine.add(request)
    engine.step()
    assert request.draft
    draft = request.draft
    decoder.fail_at_call, decoder.failure = decoder.num_calls + 1, RetryableError("busy")
    engine.step()
    assert request.draft == draft
    run(engine, decoder)
    assert request.generated_ids == expected_tokens(prompt, 40, repeating_token)
