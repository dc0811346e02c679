"""The sampler: its distribution, its noise and its edges."""

from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import sampler
from model.sampler import Sampler, SamplingRow
from model.sampling import RowState, SamplingParams
from tests.support.kernels import NumpyKernels

Logits = npt.NDArray[np.float32]
LOGITS = np.array([1.5, -0.5, 0.0, 2.0, -3.0], np.float32)
# Beyond this a chi-square of 4 degrees of freedom lies once in a million; the seed is fixed, so it never does.
CHI_SQUARE_LIMIT = 33.4


def sample(logits: Logits, params: SamplingParams, position: int) -> int:
    """One row sampled alone."""
    return (
        Sampler(NumpyKernels()).sample(logits[None], {0: SamplingRow(params, RowState((), []), position)})[0].token_id
    )


def softmax(logits: Logits, temperature: float) -> npt.NDArray[np.float64]:
    """The distribution that sampling must follow."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def draw(logits: Logits, params: SamplingParams, count: int) -> npt.NDArray[np.int64]:
    """The tokens of the first `count` positions."""
    return np.array([sample(logits, params, position) for position in range(count)])


def chi_square(drawn: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> float:
    """Pearson's statistic of the counts against the expected shares."""
    counts = np.bincount(drawn, minlength=len(expected))
    return float(((counts - expected * len(drawn)) ** 2 / (expected * len(drawn))).sum())


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40))
def test_greedy_takes_the_most_likely_token(values: list[float]) -> None:
    """The first of them where several are equal, whatever seed and top_p."""
    logits = np.array(values, np.float32)
    assert sample(logits, SamplingParams(temperature=0.0, top_p=0.5, seed=3), 7) == values.index(max(values))


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 2**31))
def test_same_seed_and_position_give_the_same_token(seed: int, position: int) -> None:
    """The noise depends on nothing else: not on earlier draws, not on the batch."""
    params = SamplingParams(seed=seed)
    first = sample(LOGITS, params, position)
    draw(LOGITS, SamplingParams(seed=seed + 1 if seed < 0 else seed - 1), 3)
    assert sample(LOGITS.copy(), SamplingParams(seed=seed), position) == first


def test_positions_and_seeds_have_noise_of_their_own() -> None:
    """Equal logits at 100 positions, or of 100 seeds, give mostly different tokens out of 10,000."""
    flat = np.zeros(10_000, np.float32)
    positions = draw(flat, SamplingParams(seed=1), 100)
    seeds = [sample(flat, SamplingParams(seed=seed), 0) for seed in range(100)]
    assert len(set(positions.tolist())) > 90
    assert len(set(seeds)) > 90


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_frequencies_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    """10,000 draws pass a chi-square test."""
    expected = softmax(LOGITS, temperature)
    drawn = draw(LOGITS, SamplingParams(temperature, seed=11), 10_000)
    if expected.min() * 10_000 < 5:  # too rare for the test: together with the next rarest
        order = np.argsort(expected)
        drawn = np.where(drawn == order[0], order[1], drawn)
        expected[order[1]] += expected[order[0]]
        expected[order[0]] = 1e-300
    assert chi_square(drawn, expected) < CHI_SQUARE_LIMIT


def test_frequencies_over_seeds_follow_the_softmax_too() -> None:
    """Requests of different seeds at one position are as random as positions of one seed."""
    drawn = np.array([sample(LOGITS, SamplingParams(seed=seed), 5) for seed in range(10_000)])
    assert chi_square(drawn, softmax(LOGITS, 1.0)) < CHI_SQUARE_LIMIT


def test_nucleus_follows_the_softmax_without_its_tail() -> None:
    """Tokens 3 and 0 hold 0.87 of the mass: top_p 0.8 draws only them, in their own proportion."""
    drawn = draw(LOGITS, SamplingParams(top_p=0.8, seed=2), 10_000)
    inside = np.where(np.isin(np.arange(5), [0, 3]), softmax(LOGITS, 1.0), 0)
    assert set(drawn.tolist()) == {0, 3}
    assert chi_square(np.where(drawn == 3, 1, 0), (inside / inside.sum())[[0, 3]]) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("top_p", [5e-324, 1e-9, 0.1])
def test_nucleus_holds_at_least_one_token(top_p: float) -> None:
    """The smallest nucleus is the most likely token."""
    assert set(draw(LOGITS, SamplingParams(2.0, top_p=top_p), 50).tolist()) == {3}


def test_ties_at_the_edge_of_the_nucleus_are_ordered_by_id() -> None:
    """Of four equal tokens a nucleus of half the mass holds the first two, also among thousands."""
    assert set(draw(np.zeros(4, np.float32), SamplingParams(top_p=0.5), 200).tolist()) == {0, 1}
    many = np.zeros(4_000, np.float32)
    assert draw(many, SamplingParams(top_p=0.25), 200).max() < 1_000


@given(
    logits_seed=st.integers(0, 2**32),
    scale=st.floats(0.01, 8),
    decimals=st.integers(0, 3),
    top_p=st.floats(0.01, 0.999),
    temperature=st.floats(0.05, 2.0),
)
@settings(max_examples=150, deadline=None)
def test_small_and_full_candidate_search_choose_the_same_token(
    logits_seed: int, scale: float, decimals: int, top_p: float, temperature: float
) -> None:
    """Flat or sharp, with many ties or none, 2,000 tokens: the shortcut is only a shortcut."""
    logits = np.random.default_rng(logits_seed).normal(0, scale, 2_000).round(decimals).astype(np.float32)
    params = SamplingParams(temperature, top_p, seed=logits_seed)
    chosen = draw(logits, params, 5).tolist()
    with mock.patch.object(sampler, "CANDIDATE_SHARES", (0.0,)):
        assert draw(logits, params, 5).tolist() == chosen
    shares = softmax(logits, temperature)
    for token in chosen:  # what is more likely than a chosen token does not reach top_p without it
        assert shares[shares > shares[token]].sum() < top_p + 1e-9


INF = float("inf")


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
@pytest.mark.parametrize(
    ("logits", "possible"),
    [
        ([3.4e38, -3.4e38, 0.0], {0}),
        ([-3.4e38, -3.4e38, -3.4e38], {0, 1, 2}),
        ([-INF, 1.0, -INF], {1}),
        ([-INF, 5.0, 5.0], {1, 2}),
        ([0.0, INF, 1.0], {1}),
        ([-INF, -INF, -INF], {0, 1, 2}),
        ([1e-40, 0.0, 0.0], {0, 1, 2}),
        ([7.0], {0}),
    ],
)
def test_extreme_logits_give_a_token_that_can_be_meant(
    logits: list[float], possible: set[int], temperature: float, top_p: float
) -> None:
    """Huge, infinite and equal logits, at every temperature: no warning, no token of weight zero."""
    params = SamplingParams(temperature, top_p)
    assert set(draw(np.array(logits, np.float32), params, 20).tolist()) <= possible


def test_tiny_temperature_is_greedy() -> None:
    """Dividing by it overflows; the limit is the most likely token."""
    assert set(draw(LOGITS, SamplingParams(temperature=1e-310), 50).tolist()) == {3}


def test_logits_are_not_changed() -> None:
    """They are views of the decoder's buffer."""
    logits = LOGITS.copy()
    for params in (SamplingParams(0.0), SamplingParams(0.5), SamplingParams(1.0, 0.5)):
        sample(logits, params, 0)
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", INF),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", -1.0),
        ("top_p", float("nan")),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
    ],
)
def test_parameter_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    """The message names the field, the value and the range."""
    with pytest.raises(ValueError, match=f"^{field} is .*; it must "):
        SamplingParams(**{field: value})  # type: ignore[arg-type]  # the seeds here are integers


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_every_seed_of_64_bits_works(seed: int) -> None:
    """Both ends of the range."""
    assert sample(LOGITS, SamplingParams(seed=seed), 0) in range(5)


def row(params: SamplingParams, prompt: tuple[int, ...] = (), generated: list[int] | None = None) -> SamplingRow:
    """A row at its next position."""
    tokens = generated or []
    return SamplingRow(params, RowState(prompt, tokens), len(prompt) + len(tokens))


def edited(params: SamplingParams, prompt: tuple[int, ...] = (), generated: list[int] | None = None) -> Logits:
    """LOGITS after a row's penalties, bias and bans."""
    logits = LOGITS.copy()
    RowState(prompt, generated or []).edit(logits, params)
    return logits


@given(st.lists(st.floats(0.0, 2.0), min_size=2, max_size=8), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_row_gets_in_a_batch_what_it_gets_alone(temperatures: list[float], seed: int) -> None:
    """Greedy and sampled rows side by side, some rows of the batch unused."""
    logits = np.random.default_rng(seed).normal(0, 3, (len(temperatures) + 1, 700)).astype(np.float32)
    rows = {i + 1: row(SamplingParams(t, 0.9, seed, min_p=0.01)) for i, t in enumerate(temperatures)}
    together = Sampler(NumpyKernels()).sample(logits.copy(), rows)
    for index, one in rows.items():
        assert together[index] == Sampler(NumpyKernels()).sample(logits[index : index + 1].copy(), {0: one})[0]


def test_top_k_keeps_exactly_the_likeliest() -> None:
    """Two of five, in their own proportion; more than there are keeps all."""
    assert set(draw(LOGITS, SamplingParams(2.0, top_k=2, seed=1), 500).tolist()) == {3, 0}
    assert len(set(draw(LOGITS, SamplingParams(2.0, top_k=99, seed=1), 2_000).tolist())) == 5


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    """Of tokens 3, 0 and 2 (mass 0.94 of all), 0.9 of what is left needs all three; 0.85 needs two."""
    left = softmax(LOGITS, 1.0)[[3, 0, 2]]
    share = left[:2].sum() / left.sum()
    keep_two = SamplingParams(top_k=3, top_p=float(share) - 0.01, seed=4)
    keep_three = SamplingParams(top_k=3, top_p=float(share) + 0.01, seed=4)
    assert set(draw(LOGITS, keep_two, 2_000).tolist()) == {3, 0}
    assert set(draw(LOGITS, keep_three, 2_000).tolist()) == {3, 0, 2}


def test_min_p_drops_what_is_unlikely_beside_the_likeliest() -> None:
    """exp(-0.5) and exp(-2) of the likeliest stay at 0.1; the others go."""
    assert set(draw(LOGITS, SamplingParams(min_p=0.1, seed=5), 3_000).tolist()) == {3, 0, 2}


@pytest.mark.parametrize(
    "params",
    [SamplingParams(2.0), SamplingParams(2.0, 0.99), SamplingParams(2.0, top_k=300), SamplingParams(2.0, min_p=0.01)],
)
def test_a_draw_beyond_the_candidates_is_made_over_the_whole_vocabulary(params: SamplingParams) -> None:
    """Flat logits, few candidates: the same tokens as with all of them at once."""
    logits = np.random.default_rng(0).normal(0, 0.3, 2_000).astype(np.float32)
    with mock.patch.object(sampler, "CANDIDATE_SHARES", (0.0,)):
        whole = draw(logits, params, 200).tolist()
    with mock.patch.object(sampler, "CANDIDATE_SHARES", (0.9, 0.5, 0.0)):
        assert draw(logits, params, 200).tolist() == whole


def test_penalties_follow_their_definitions() -> None:
    """Repetition works on prompt and answer, presence and frequency on the answer."""
    repetition = edited(SamplingParams(repetition_penalty=2.0), prompt=(0, 1), generated=[3])
    np.testing.assert_allclose(repetition, [0.75, -1.0, 0.0, 1.0, -3.0])
    presence = edited(SamplingParams(presence_penalty=0.5), prompt=(0,), generated=[3, 3, 2])
    np.testing.assert_allclose(presence, [1.5, -0.5, -0.5, 1.5, -3.0])
    frequency = edited(SamplingParams(frequency_penalty=0.5), prompt=(0,), generated=[3, 3, 2])
    np.testing.assert_allclose(frequency, [1.5, -0.5, -0.5, 1.0, -3.0])


def test_penalties_count_tokens_as_they_are_generated() -> None:
    """The state reads the request's own list, and counts each token once."""
    generated: list[int] = []
    state = RowState((), generated)
    for expected in (2.0, 1.5, 1.0):
        logits = LOGITS.copy()
        state.edit(logits, SamplingParams(frequency_penalty=0.5))
        assert logits[3] == expected
        generated.append(3)


def test_bias_bans_and_allowances_decide_what_can_be_chosen() -> None:
    """Added; never chosen; nothing else chosen; no end before min_tokens."""
    greedy: dict[str, Any] = {"temperature": 0.0}
    assert sample(LOGITS.copy(), SamplingParams(**greedy, logit_bias={4: 10.0}), 0) == 4
    assert sample(LOGITS.copy(), SamplingParams(**greedy, banned_token_ids=(3,)), 0) == 0
    assert sample(LOGITS.copy(), SamplingParams(**greedy, allowed_token_ids=(1, 4)), 0) == 1
    early = SamplingParams(**greedy, min_tokens=2, end_token_ids=(3,))
    for generated, expected in (([], 0), ([7], 0), ([7, 8], 3)):
        logits = LOGITS.copy()[None]
        assert Sampler(NumpyKernels()).sample(logits, {0: row(early, (), generated)})[0].token_id == expected


def test_logprobs_are_the_models_own_whatever_was_edited() -> None:
    """Before bias and temperature; the chosen token's and the likeliest alternatives'."""
    params = SamplingParams(temperature=0.0, logit_bias={4: 100.0}, logprobs=2)
    result = Sampler(NumpyKernels()).sample(LOGITS.copy()[None], {0: row(params)})[0]
    expected = np.log(softmax(LOGITS, 1.0))
    assert result.token_id == 4
    assert result.logprobs is not None
    assert result.logprobs.logprob == pytest.approx(expected[4], abs=1e-6)
    assert [token for token, _ in result.logprobs.top] == [3, 0]
    assert [value for _, value in result.logprobs.top] == pytest.approx([expected[3], expected[0]], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be from 0.01 to 2"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"logit_bias": {5: 101.0}}, "logit_bias of token 5 is 101.0"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"allowed_token_ids": (1,), "banned_token_ids": (1,)}, "leaves no token to choose"),
        ({"allowed_token_ids": ()}, "leaves no token to choose"),
        ({"allowed_token_ids": (1,), "end_token_ids": (1,), "min_tokens": 1}, "one that does not end the answer"),
        ({"banned_sequences": ((1,),)}, "banned_sequences need at least two tokens"),
    ],
)
def test_contradictory_and_impossible_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each names its field, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        SamplingParams(**changes)


def test_banned_sequences_give_way_where_they_would_leave_nothing() -> None:
    """Only token 1 is allowed, and it may not follow itself: the allowance holds."""
    params = SamplingParams(temperature=1.5, seed=1, allowed_token_ids=(1,), banned_sequences=((1, 1),))
    for generated in ([], [1], [1, 1]):
        logits = LOGITS.copy()[None]
        assert Sampler(NumpyKernels()).sample(logits, {0: row(params, (), generated)})[0].token_id == 1
