"""The sampler: its distribution, its noise and its edges."""

from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import sampler
from model.sampler import SamplingParams, sample

Logits = npt.NDArray[np.float32]
LOGITS = np.array([1.5, -0.5, 0.0, 2.0, -3.0], np.float32)
# Beyond this a chi-square of 4 degrees of freedom lies once in a million; the seed is fixed, so it never does.
CHI_SQUARE_LIMIT = 33.4


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
    with mock.patch.object(sampler, "NUM_CANDIDATES", len(logits)):
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
