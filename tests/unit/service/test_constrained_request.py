"""Constraints in the engine: they decide what is chosen and when the answer ends, of their own request only."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from model.sampling import RowState, SamplingParams
from service.engine.engine import CONSTRAINT_FAILED_MESSAGE
from service.engine.request import FinishReason
from service.engine.speculation import PromptLookup
from tests.support.engines import make_engine, run, text_of
from tests.support.fake_decoder import END_ID, expected_tokens
from tests.support.requests import TOKENIZER, make_request


class Sequences:
    """Allows one fixed sequence of tokens, then nothing, or the end token."""

    def __init__(self, token_ids: Sequence[int], *, ends_by_itself: bool = True) -> None:
        self._ids = [*token_ids, *([] if ends_by_itself else [END_ID])]
        self.taken: list[int] = []

    @property
    def is_finished(self) -> bool:
        """Whether the sequence is complete."""
        return len(self.taken) == len(self._ids)

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Leave the next token of the sequence."""
        kept = logits[self._ids[len(self.taken)]]
        logits.fill(-np.inf)
        logits[self._ids[len(self.taken)]] = kept

    def advance(self, token_id: int) -> None:
        """Note the token."""
        self.taken.append(token_id)


class Broken(Sequences):
    """Fails at its third mask."""

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """Two tokens, then an error."""
        if len(self.taken) == 2:
            raise ValueError("too many states")
        super().mask(logits)


@pytest.mark.parametrize("ends_by_itself", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_follows_its_constraint_and_ends_with_it(ends_by_itself: bool, temperature: float) -> None:
    """Greedy or sampled; at once when nothing may follow, or with the end token that the constraint asks for."""
    engine, decoder = make_engine()
    constraint = Sequences([72, 73, 74], ends_by_itself=ends_by_itself)
    sampling = SamplingParams(temperature, seed=1)
    request = make_request([1, 2], 50, constraint=constraint, eos_ids=[END_ID], sampling=sampling)
    engine.add(request)
    events = run(engine, decoder)
    assert text_of(events, request) == TOKENIZER.decode([72, 73, 74])
    assert request.finish_reason is FinishReason.STOP
    assert request.num_generated == (3 if ends_by_itself else 4)


def test_others_in_the_batch_are_not_constrained() -> None:
    """The mask is its own row's."""
    engine, decoder = make_engine()
    requests = [make_request([i, 2], 6, constraint=Sequences([72] * 6) if i == 1 else None) for i in range(3)]
    for request in requests:
        engine.add(request)
    run(engine, decoder)
    assert requests[1].generated_ids == [72] * 6
    assert [requests[i].generated_ids for i in (0, 2)] == [expected_tokens([i, 2], 6) for i in (0, 2)]


def test_a_constraint_that_fails_ends_its_own_request_with_an_error_that_says_why() -> None:
    """The step of the others goes on, and the engine lives."""
    engine, decoder = make_engine()
    broken, other = make_request([1, 2], 8, constraint=Broken([72] * 8)), make_request([3, 4], 8)
    engine.add(broken)
    engine.add(other)
    events = run(engine, decoder)
    (end,) = [event for event in events if event.finish_reason is FinishReason.ERROR]
    assert (end.request, end.error) == (broken, CONSTRAINT_FAILED_MESSAGE + "too many states")
    assert other.generated_ids == expected_tokens([3, 4], 8)


def test_a_token_that_the_constraint_does_not_take_ends_its_request_with_the_same_error() -> None:
    """Failing behind a choice is told like failing before one."""

    class Stubborn(Sequences):
        def advance(self, token_id: int) -> None:
            raise ValueError("no such state")

    engine, decoder = make_engine()
    request = make_request([1, 2], 8, constraint=Stubborn([72] * 8))
    engine.add(request)
    (end,) = run(engine, decoder)
    assert (end.finish_reason, end.error) == (FinishReason.ERROR, CONSTRAINT_FAILED_MESSAGE + "no such state")


def test_a_constraint_survives_a_preemption() -> None:
    """Replayed tokens are not taken in twice."""
    engine, decoder = make_engine()
    constraint = Sequences([72, 73, 74, 75, 76])
    request = make_request([1, 2], 50, constraint=constraint)
    engine.add(request)
    for _ in range(3):
        engine.step()
    engine._preempt(request)
    run(engine, decoder)
    assert constraint.taken == request.generated_ids == [72, 73, 74, 75, 76]


def test_a_constrained_request_drafts_nothing() -> None:
    """A draft would have to take the constraint back."""
    engine, _ = make_engine()
    request = make_request([72] * 20, 10, constraint=Sequences([72] * 10), speculation=PromptLookup())
    engine.add(request)
    engine.step()
    assert request.draft == ()


def test_the_constraint_has_the_last_word_over_bans_and_allowances() -> None:
    """Where nothing is left that it allows, the others are dropped; where something is, they hold."""
    logits = np.array([5.0, 4.0, 3.0], np.float32)

    class Two:
        is_finished = False

        def mask(self, row: npt.NDArray[np.float32]) -> None:
            row[0] = -np.inf

        def advance(self, token_id: int) -> None:
            """Nothing to note."""

    for banned, best in (((1,), 2), ((1, 2), 1), ((), 1)):
        row = logits.copy()
        RowState((), [], Two()).edit(row, SamplingParams(banned_token_ids=banned))
        assert int(row.argmax()) == best
