"""The engine on a fake decoder whose tokens depend on what is really in the cache."""

from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import SamplingParams
from service.engine.engine import COMPACT_MAX_TOKENS, MAX_RETRIES, Engine, RetryableError, StepOutcome
from service.engine.invariants import violations
from service.engine.request import FinishReason, Request, TokenEvent
from service.engine.scheduler import Scheduler
from tests.support.engines import Clock, make_engine, run, text_of
from tests.support.fake_decoder import FakeDecoder, expected_tokens
from tests.support.requests import TOKENIZER, make_request


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=12), st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_every_request_gets_the_tokens_it_gets_alone(shapes: list[tuple[int, int]], budget: int) -> None:
    """Whatever shares its batch and however its prompt is cut, greedy tokens are the prompt's own."""
    engine, decoder = make_engine(num_rows=3, budget=budget)
    requests = [make_request([(7 * i + k) % 256 for k in range(n)], m) for i, (n, m) in enumerate(shapes)]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, request.stop.max_tokens)
        assert request.finish_reason is FinishReason.LENGTH


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 50), st.integers(1, 10)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(ACTIONS)
@settings(max_examples=150, deadline=None)
def test_any_order_of_arrivals_steps_and_departures_keeps_the_invariants(actions: list[tuple[str, int, int]]) -> None:
    """Each request ends exactly once, survivors get their own tokens, and the cache is empty at the end."""
    engine, decoder = make_engine(num_rows=3)
    requests: list[Request] = []
    ends: list[TokenEvent] = []
    for action, first, second in actions:
        if action == "add":
            requests.append(make_request([(first * 3 + k) % 256 for k in range(first)], second))
            engine.add(requests[-1])
        elif action == "abort" and requests:
            event = engine.abort(requests[first % len(requests)])
            ends += [event] if event else []
        elif action == "step" and engine.has_work:
            ends += [event for event in engine.step().events if event.finish_reason]
        assert violations(engine, decoder.kv_cache) == []
    ends += [event for event in run(engine, decoder) if event.finish_reason]
    assert sorted(event.request.request_id for event in ends) == sorted(r.request_id for r in requests)
    assert {request.request_id for request in engine.take_ended()} == {r.request_id for r in requests}
    assert decoder.kv_cache.rows_used() == []
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, request.num_generated)


def test_a_request_joins_while_others_run_and_leaves_before_them() -> None:
    """Continuous batching: no request waits for a batch to end."""
    engine, decoder = make_engine()
    long = make_request([1, 2, 3], 20)
    engine.add(long)
    for _ in range(5):
        engine.step()
    short = make_request([4, 5], 2)
    engine.add(short)
    engine.step()
    engine.step()
    assert short.is_finished
    assert not long.is_finished
    run(engine, decoder)
    assert long.generated_ids == expected_tokens([1, 2, 3], 20)


def test_sixteen_requests_decode_in_one_batch() -> None:
    """One decoder call serves all of them."""
    engine, decoder = make_engine(num_rows=16, budget=64)
    for index in range(16):
        engine.add(make_request([index, 1], 4))
    reports = [engine.step() for _ in range(3)]
    assert [report.num_decode_rows for report in reports] == [0, 16, 16]
    assert decoder.decode_rows == [16, 16]


def test_an_aborted_request_frees_its_row_for_the_next_step() -> None:
    """A client that leaves makes room at once."""
    engine, _ = make_engine(num_rows=1)
    first, second = make_request([1, 2], 50), make_request([3, 4], 1)
    engine.add(first)
    engine.add(second)
    engine.step()
    assert second.row is None
    event = engine.abort(first)
    assert event is not None
    assert event.finish_reason is FinishReason.CANCELLED
    engine.step()
    assert second.is_finished


def test_aborting_twice_ends_once() -> None:
    """The second abort has nothing to end."""
    engine, _ = make_engine()
    request = make_request([1, 2])
    engine.add(request)
    assert engine.abort(request) is not None
    assert engine.abort(request) is None


def test_holes_are_filled_so_that_few_requests_run_in_few_rows() -> None:
    """When the lower rows end, the survivor moves down and its tokens stay right."""
    engine, decoder = make_engine(num_rows=4, budget=64)
    requests = [make_request([i, 9, 9], 3 if i < 3 else 12) for i in range(4)]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    assert decoder.decode_rows[-1] == 1
    assert requests[3].generated_ids == expected_tokens([3, 9, 9], 12)


def test_a_row_too_long_to_move_cheaply_stays_where_it_is() -> None:
    """Moving is for short rows; a long one runs beside idle rows and its tokens stay right."""
    decoder = FakeDecoder(num_rows=2, capacity_tokens=COMPACT_MAX_TOKENS + 64)
    engine = Engine(decoder, Scheduler(4096))
    short, long = make_request([1, 2], 2), make_request([5] * (COMPACT_MAX_TOKENS + 1), 6)
    engine.add(short)
    engine.add(long)
    run(engine, decoder)
    assert decoder.decode_rows[-1] == 2
    assert long.generated_ids == expected_tokens(long.prompt_ids, 6)


def test_a_retryable_failure_changes_nothing_and_the_same_step_then_works() -> None:
    """Nothing is committed before the decoder has succeeded."""
    engine, decoder = make_engine()
    request = make_request([1, 2, 3], 5)
    engine.add(request)
    engine.step()
    before = (request.num_computed, list(request.generated_ids), request.row)
    decoder.fail_at_call, decoder.failure = decoder.num_calls + 1, RetryableError("busy")
    report = engine.step()
    assert (report.outcome, report.events) == (StepOutcome.RETRYABLE, ())
    assert (request.num_computed, request.generated_ids, request.row) == before
    run(engine, decoder)
    assert request.generated_ids == expected_tokens([1, 2, 3], 5)


def test_retries_are_bounded() -> None:
    """A failure that does not pass is fatal, not a hang."""
    engine, decoder = make_engine()
    decoder.always_fails, decoder.failure = True, RetryableError("busy")
    engine.add(make_request([1, 2, 3], 5))
    outcomes = [engine.step().outcome for _ in range(MAX_RETRIES + 1)]
    assert outcomes == [StepOutcome.RETRYABLE] * MAX_RETRIES + [StepOutcome.FATAL]
    assert not engine.has_work


def test_a_fatal_failure_ends_the_requests_of_the_step_with_an_error_and_no_other() -> None:
    """Those that were not computed still wait, unharmed."""
    engine, decoder = make_engine(num_rows=1)
    hit, spared = make_request([1, 2], 5), make_request([3, 4], 5)
    engine.add(hit)
    engine.add(spared)
    decoder.fail_at_call = 1
    report = engine.step()
    assert report.outcome is StepOutcome.FATAL
    assert str(report.error) == "injected failure"
    assert [(event.request, event.finish_reason) for event in report.events] == [(hit, FinishReason.ERROR)]
    assert not spared.is_finished
    assert violations(engine, decoder.kv_cache) == []


def test_no_memory_for_a_step_preempts_one_and_goes_on() -> None:
    """Capacity is not fatal while there is somebody to make room."""
    engine, decoder = make_engine()
    requests = [make_request([i, 2], 6) for i in range(3)]
    for request in requests:
        engine.add(request)
    engine.step()
    decoder.fail_at_call, decoder.failure = decoder.num_calls + 1, MemoryError("no pages")
    assert engine.step().outcome is StepOutcome.CAPACITY
    assert requests[2].row is None
    run(engine, decoder)
    assert [request.generated_ids for request in requests] == [expected_tokens([i, 2], 6) for i in range(3)]


def test_memory_that_stays_short_ends_in_an_error_not_in_steps_without_end() -> None:
    """One after the other loses its row, the least urgent first; the last one that cannot run is told."""
    engine, decoder = make_engine()
    decoder.always_fails, decoder.failure = True, MemoryError("no pages")
    requests = [make_request([i, 2], 6, priority=5 - i) for i in range(3)]
    for request in requests:
        engine.add(request)
    reports = [engine.step() for _ in range(3)]
    assert [report.outcome for report in reports] == [StepOutcome.CAPACITY] * 2 + [StepOutcome.FATAL]
    assert [report.num_preempted for report in reports] == [1, 1, 0]
    assert requests[2].finish_reason is FinishReason.ERROR
    assert [request.row for request in requests[:2]] == [None, None]


def test_a_low_priority_request_finishes_although_urgent_ones_keep_coming() -> None:
    """Once overdue it is neither passed over nor preempted first."""
    clock = Clock()
    decoder = FakeDecoder(4)
    engine = Engine(decoder, Scheduler(64, starvation_s=1.0), kv_budget_tokens=4 * 64, clock=clock)
    patient = make_request([1] * 50, 100, priority=10)
    engine.add(patient)
    for number in range(600):
        if len(engine.waiting) + len(engine.running) < 4:
            engine.add(make_request([number % 200] * 40, 40, priority=0, arrived_s=clock.now_s))
        engine.step()
        clock.now_s += 0.05
        if patient.is_finished:
            break
    assert patient.generated_ids == expected_tokens([1] * 50, 100)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(-1, 1)), min_size=2, max_size=10),
    st.integers(7, 20),
)
@settings(max_examples=80, deadline=None)
def test_preempted_requests_get_the_tokens_they_get_alone_within_the_budget(
    shapes: list[tuple[int, int, int]], budget_pages: int
) -> None:
    """Memory for a few of them only: they take turns, replay, and nobody sees it in an answer."""
    engine, decoder = make_engine(num_rows=4, kv_budget_tokens=budget_pages * 64)
    requests = [
        make_request([(5 * i + k) % 256 for k in range(n)], m, priority=p) for i, (n, m, p) in enumerate(shapes)
    ]
    for request in requests:
        engine.add(request)
    events = run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, request.stop.max_tokens)
        assert [e.token_id for e in events if e.request is request] == request.generated_ids


def test_a_tight_budget_really_preempts() -> None:
    """The property above is about something: with little memory, rows are lost and replayed."""
    engine, decoder = make_engine(num_rows=4, budget=64, kv_budget_tokens=4 * 64)
    requests = [make_request([i] * 50, 100) for i in range(3)]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    assert sum(request.num_preemptions for request in requests) > 0
    assert [request.generated_ids for request in requests] == [expected_tokens([i] * 50, 100) for i in range(3)]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 90), st.integers(1, 10)), max_size=10),
    st.integers(8, 90),
    st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_prefix_hits_change_no_token(shapes: list[tuple[int, int, int, int]], budget: int, num_blocks: int) -> None:
    """Prompts that share beginnings, any chunk size, room for few blocks, memory for few rows: each gets its own."""
    decoder = FakeDecoder(3)
    engine = Engine(
        decoder, Scheduler(budget), kv_budget_tokens=7 * 64, prefix_cache_bytes=num_blocks * 2 * 64 * 16 * 4
    )
    requests = [
        make_request([family] * (64 * shared) + [(i + k) % 256 for k in range(own)], length)
        for i, (family, shared, own, length) in enumerate(shapes)
    ]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, request.stop.max_tokens)


def test_a_hit_skips_computing() -> None:
    """The second request computes only what is new; the report counts it; another salt computes everything."""
    decoder = FakeDecoder(1)
    engine = Engine(decoder, Scheduler(512), prefix_cache_bytes=1 << 20)
    requests = [make_request([5] * 150 + [i], 1) for i in range(3)]
    requests[2].cache_salt = "other"
    for request in requests:
        engine.add(request)
    reports = [engine.step() for _ in range(3)]
    assert decoder.chunks == [151, 23, 151]
    assert [report.num_cached_tokens for report in reports] == [0, 128, 0]
    assert [request.num_cached_tokens for request in requests] == [0, 128, 0]


def test_requests_with_one_beginning_that_arrive_together_do_not_each_compute_it() -> None:
    """Chunks that one has computed are copied by those still on their way; the answers are as ever."""
    decoder = FakeDecoder(6)
    engine = Engine(decoder, Scheduler(128), prefix_cache_bytes=16 << 20)
    requests = [make_request([5] * 320 + [i] * 20, 3) for i in range(6)]
    for request in requests:
        engine.add(request)
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    assert sum(decoder.chunks) <= 2 * 340 + 4 * (20 + 64)  # two may be on the same chunk; the others copy
    saved = sum(report.num_cached_tokens for report in reports)
    assert saved == sum(request.num_cached_tokens for request in requests)
    assert saved + sum(decoder.chunks) == 6 * 340
    for request in requests:
        assert request.generated_ids == expected_tokens(request.prompt_ids, 3)


def test_what_a_request_finds_of_itself_after_a_preemption_is_no_saving() -> None:
    """Usage does not depend on what else was going on."""
    decoder = FakeDecoder(1)
    engine = Engine(decoder, Scheduler(512), prefix_cache_bytes=1 << 20)
    request = make_request([5] * 150, 4)
    engine.add(request)
    engine.step()
    engine._preempt(request)
    run(engine, decoder)
    assert decoder.chunks == [150, 22]
    assert request.num_cached_tokens == 0


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    """Waiting or running, with its own reason; its row is free for the next."""
    clock = Clock()
    engine, decoder = make_engine(num_rows=1, clock=clock)
    running, waiting = make_request([1, 2], 50, deadline_s=5.0), make_request([3, 4], 50, deadline_s=3.0)
    engine.add(running)
    engine.add(waiting)
    engine.step()
    clock.now_s = 3.0
    (ended, token) = engine.step().events
    assert (ended.request, ended.finish_reason) == (waiting, FinishReason.DEADLINE)
    assert token.request is running
    clock.now_s = 5.0
    (ended,) = engine.step().events
    assert (ended.request, ended.finish_reason) == (running, FinishReason.DEADLINE)
    assert decoder.kv_cache.rows_used() == []


def test_an_end_token_ends_with_stop_and_is_not_text() -> None:
    """The end token counts as generated but is not shown."""
    first = expected_tokens([1, 2], 3)
    engine, decoder = make_engine()
    request = make_request([1, 2], 10, stop_ids=[first[2]])
    engine.add(request)
    events = run(engine, decoder)
    assert request.finish_reason is FinishReason.STOP
    assert request.generated_ids == first
    assert text_of(events, request) == TOKENIZER.decode(first[:2])


def test_the_models_end_and_the_requests_own_are_told_apart() -> None:
    """A stop token of the request is named as the reason and can be part of the text; the model's end is neither."""
    first = expected_tokens([1, 2], 3)
    for stop_ids, eos_ids, included, reason, text in (
        ([first[2]], [], False, first[2], first[:2]),
        ([first[2]], [], True, first[2], first),
        ([], [first[2]], True, None, first[:2]),
    ):
        engine, decoder = make_engine()
        request = make_request([1, 2], 10, stop_ids=stop_ids, eos_ids=eos_ids, includes_stop=included)
        engine.add(request)
        events = run(engine, decoder)
        assert (events[-1].finish_reason, events[-1].stop_reason) == (FinishReason.STOP, reason)
        assert text_of(events, request) == TOKENIZER.decode(text)


def test_a_stop_tokens_text_comes_behind_what_was_held_for_a_stop_string() -> None:
    """The start of a stop string waits; the token that ends the answer is shown after it."""
    prompt = next([i, j] for i in range(200) for j in range(200) if min(expected_tokens([i, j], 2)) > 32)
    first, second = expected_tokens(prompt, 2)
    held = TOKENIZER.decode([first])
    engine, decoder = make_engine()
    request = make_request(prompt, 9, stop=[held + "never"], stop_ids=[second], includes_stop=True)
    engine.add(request)
    events = run(engine, decoder)
    assert text_of(events, request) == TOKENIZER.decode([first, second])


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    """The same string ends the answer later, or not at all."""
    pairs = ([i, j] for i in range(200) for j in range(200))
    prompt = next(pair for pair in pairs if all(32 < token < 90 for token in expected_tokens(pair, 6)))
    text = TOKENIZER.decode(expected_tokens(prompt, 6))
    engine, decoder = make_engine()
    sampling = SamplingParams(temperature=0.0, min_tokens=4)
    request = make_request(prompt, 6, stop=[text[1], text[4:6]], sampling=sampling)
    engine.add(request)
    events = run(engine, decoder)
    assert text_of(events, request) == text[:4]
    assert events[-1].stop_reason == text[4:6]


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    """The string is found although each token brings one byte of it."""
    prompt = next([i, i + 1] for i in range(200) if all(32 < t < 90 for t in expected_tokens([i, i + 1], 4)))
    text = TOKENIZER.decode(expected_tokens(prompt, 4))
    engine, decoder = make_engine()
    request = make_request(prompt, 50, stop=[text[2:4]])
    engine.add(request)
    events = run(engine, decoder)
    assert request.finish_reason is FinishReason.STOP
    assert text_of(events, request) == text[:2]
    assert request.num_generated == 4


def test_the_last_event_and_no_other_has_a_finish_reason() -> None:
    """Clients may stop reading there."""
    engine, decoder = make_engine()
    request = make_request([1, 2, 3], 6)
    engine.add(request)
    events = run(engine, decoder)
    assert [event.finish_reason for event in events] == [None] * 5 + [FinishReason.LENGTH]
    assert [event.num_generated for event in events] == [1, 2, 3, 4, 5, 6]


def test_text_of_the_events_is_the_text_of_the_tokens() -> None:
    """Also for bytes that form no character: every held byte comes out in the end."""
    engine, decoder = make_engine()
    request = make_request([200, 201], 40)
    engine.add(request)
    assert text_of(run(engine, decoder), request) == TOKENIZER.decode(request.generated_ids)
