"""The decoder on real ONNX Runtime: answers don't depend on chunks, neighbours or rows, bit for bit."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.bundle import Bundle
from model.bundle_writer import ExportRequest, export_bundle
from model.decoder import Decoder, DecoderError
from model.tokenizer import Tokenizer
from tests.support.decoding import Ids, Logits, continue_greedily, new_decoder, prefill_in_chunks, random_ids
from tests.support.errors import one_line
from tests.support.kernels import NumpyKernels

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = random_ids(61)
LENGTHS = (5, 61, 2, 33)


@pytest.fixture(scope="module", params=["fp32", "int8", "w8a8"])
def bundle(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model in each precision that promises the same answer in every batch."""
    out = tmp_path_factory.mktemp("bundles") / f"tiny-{request.param}"
    return export_bundle(ExportRequest(str(tiny_folder), out, request.param), out.parent)


def cuts(total: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut a prompt into chunks."""
    places = st.lists(st.integers(1, total - 1), max_size=12, unique=True)
    return places.map(lambda inner: [after - before for before, after in pairwise([0, *sorted(inner), total])])


@given(sizes=cuts(len(PROMPT)))
@example(sizes=[1] * len(PROMPT))
@example(sizes=[2] * 30 + [1])
@example(sizes=[33, 28])  # attention tiles have 32 queries for this head size: one is left over
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompt_in_chunks_equals_the_whole_prompt(bundle: Bundle, sizes: list[int]) -> None:
    """Any chunks give the same logits and leave the same cache."""
    decoder = new_decoder(bundle, 2)
    expected = decoder.prefill(0, PROMPT, 0)[0].copy()
    np.testing.assert_array_equal(prefill_in_chunks(decoder, 1, PROMPT, sizes), expected)
    next_token, past = np.array([3, 3]), np.array([len(PROMPT)] * 2)
    first, second = decoder.decode(next_token, past)
    np.testing.assert_array_equal(first, second)


def decode_together(decoder: Decoder, prompts: Sequence[Ids], num_steps: int) -> list[Logits]:
    """Prefill a row for each prompt, decode all rows in one batch: each row's logits [num_steps, V]."""
    logits = np.stack([decoder.prefill(row, prompt, 0)[0].copy() for row, prompt in enumerate(prompts)])
    past = np.array([len(prompt) for prompt in prompts])
    seen = []
    for step in range(num_steps):
        seen.append(logits.copy())
        if step + 1 < num_steps:
            logits = decoder.decode(logits.argmax(-1), past + step)
    return list(np.stack(seen, axis=1))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4])
def test_ragged_batch_equals_each_row_alone(bundle: Bundle, num_rows: int) -> None:
    """Rows of 5, 61, 2 and 33 tokens decoded together for 20 steps."""
    prompts = [random_ids(length, seed=length) for length in LENGTHS[:num_rows]]
    together = decode_together(new_decoder(bundle, num_rows), prompts, 20)
    for prompt, found in zip(prompts, together, strict=True):
        _, alone = continue_greedily(new_decoder(bundle), prompt, 20)
        np.testing.assert_array_equal(found, alone)


def test_batch_that_grows_and_shrinks_changes_no_answer(bundle: Bundle) -> None:
    """Row 0 decodes alone, then beside others, then alone again."""
    decoder, prompts = new_decoder(bundle, 4), [random_ids(length, seed=length) for length in LENGTHS]
    _, expected = continue_greedily(new_decoder(bundle), prompts[0], 12)
    for row, prompt in enumerate(prompts):
        logits = decoder.prefill(row, prompt, 0)[0]
    logits = expected[0]
    for step, num_rows in enumerate([1, 1, 4, 3, 2, 4, 1, 2, 1, 3, 1]):
        token_ids = np.array([logits.argmax(), 9, 9, 9])[:num_rows]
        logits = decoder.decode(token_ids, np.array(LENGTHS)[:num_rows] + step)[0].copy()
        np.testing.assert_array_equal(logits, expected[step + 1])


def test_idle_row_in_a_batch_loses_nothing(bundle: Bundle) -> None:
    """Its scribble lies behind its past: whether it goes on by a chunk or a token, the answer is the same."""
    decoder, prompt = new_decoder(bundle, 3), PROMPT
    decoder.prefill(0, random_ids(10, seed=1), 0)
    decoder.prefill(1, prompt[:40], 0)  # in the middle of its prompt
    decoder.prefill(2, prompt, 0)  # idle between two tokens
    for step in range(5):
        decoder.decode(np.array([step, 0, 200]), np.array([10 + step, 40, len(prompt)]))
    resumed = decoder.prefill(1, prompt[40:], 40)[0].copy()
    alone = new_decoder(bundle)
    np.testing.assert_array_equal(resumed, alone.prefill(0, prompt, 0)[0])
    found = decoder.decode(np.array([1, 7, 7]), np.array([15, len(prompt), len(prompt)])).copy()
    expected = alone.decode(np.array([7]), np.array([len(prompt)]))[0]
    np.testing.assert_array_equal(found[1], expected)
    np.testing.assert_array_equal(found[2], expected)


def test_positions_choose_whose_logits_are_returned(bundle: Bundle) -> None:
    """In any order and repeated; the next call returns the last position's again."""
    decoder = new_decoder(bundle)
    every = decoder.prefill(0, PROMPT, 0, np.arange(len(PROMPT))).copy()
    assert every.shape == (len(PROMPT), bundle.config.vocab_size)
    picked = decoder.prefill(0, PROMPT, 0, np.array([60, 3, 3, 0])).copy()
    np.testing.assert_allclose(picked, every[[60, 3, 3, 0]], atol=1e-5, rtol=0)
    last = decoder.prefill(0, PROMPT, 0)
    assert last.shape == (1, bundle.config.vocab_size)
    np.testing.assert_allclose(last[0], every[-1], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(last, new_decoder(bundle).prefill(0, PROMPT, 0))


def test_moved_row_continues_the_same(bundle: Bundle) -> None:
    """KVCache.move to the lowest free row, in the middle of an answer."""
    decoder = new_decoder(bundle, 3)
    cache = decoder.kv_cache
    rows = [cache.allocate() for _ in range(3)]
    decoder.prefill(rows[2], PROMPT, 0)
    cache.extend(rows[2], len(PROMPT))
    cache.release(rows[0])
    assert cache.move(rows[2]) == 0
    alone = new_decoder(bundle)
    alone.prefill(0, PROMPT, 0)
    past = np.array([len(PROMPT)])
    np.testing.assert_array_equal(decoder.decode(np.array([5]), past), alone.decode(np.array([5]), past))


def test_copied_prefix_continues_like_the_source(bundle: Bundle) -> None:
    """A second question about the same document: the shared part is not computed again."""
    decoder = new_decoder(bundle, 2)
    cache = decoder.kv_cache
    source, target = cache.allocate(), cache.allocate()
    decoder.prefill(source, PROMPT, 0)
    cache.extend(source, len(PROMPT))
    cache.copy_prefix(source, target, 40)
    other = np.concatenate([PROMPT[:40], random_ids(9, seed=5)])
    found = decoder.prefill(target, other[40:], 40)[0].copy()
    np.testing.assert_array_equal(found, new_decoder(bundle).prefill(0, other, 0)[0])


def test_released_row_starts_afresh(bundle: Bundle) -> None:
    """What its last owner left behind is not seen by the next."""
    decoder = new_decoder(bundle)
    cache = decoder.kv_cache
    row = cache.allocate()
    decoder.prefill(row, random_ids(200, seed=8), 0)
    cache.release(row)
    assert cache.allocate() == row
    found = decoder.prefill(row, PROMPT, 0).copy()
    np.testing.assert_array_equal(found, new_decoder(bundle).prefill(0, PROMPT, 0))


@pytest.mark.parametrize("token_id", [257, 10**12, -300])
def test_failed_run_is_a_decoder_error_and_leaves_the_decoder_usable(tiny_bundle: Bundle, token_id: int) -> None:
    """A token id outside the vocabulary, prefilled with chosen positions and decoded."""
    decoder = new_decoder(tiny_bundle)
    expected = decoder.prefill(0, PROMPT, 0).copy()
    attempts: tuple[Callable[[], object], ...] = (
        lambda: decoder.prefill(0, np.array([1, token_id]), 0, np.array([0, 1])),
        lambda: decoder.decode(np.array([token_id]), np.array([5])),
    )
    for attempt in attempts:
        with pytest.raises(DecoderError, match="ONNX Runtime failed") as caught:
            attempt()
        one_line(caught.value)
    np.testing.assert_array_equal(decoder.prefill(0, PROMPT, 0), expected)


def test_row_that_is_full_is_refused(tiny_bundle: Bundle) -> None:
    """Nothing is ever written behind a row's memory: neither by a chunk, even or odd, nor by a token."""
    decoder = new_decoder(tiny_bundle, 2, 64)
    assert decoder.kv_cache.capacity_tokens == 64
    decoder.prefill(0, random_ids(63), 0)
    decoder.prefill(0, random_ids(1), 63)
    assert not any(array[1].any() for array in decoder.kv_cache._arrays)
    with pytest.raises(AssertionError, match="does not fit"):
        decoder.prefill(0, random_ids(2), 63)
    for past in (64, 65, 100_000):
        with pytest.raises(DecoderError):
            decoder.decode(np.array([1]), np.array([past]))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 1},
        {"num_layers": 3},
        {"num_kv_heads": 1},
        {"num_kv_heads": 4},
        {"head_dim": 32},
        {"vocab_size": 300},
        {"vocab_size": 256, "eos_token_ids": ()},
    ],
    ids=str,
)
def test_graph_that_does_not_match_its_manifest_is_refused_when_it_is_loaded(
    tiny_bundle: Bundle, changes: dict[str, Any]
) -> None:
    """Not at the first request: a server must not become ready on it."""
    config = dataclasses.replace(tiny_bundle.config, **changes)
    wrong = Bundle(tiny_bundle.path, dataclasses.replace(tiny_bundle.manifest, config=config))
    with pytest.raises(DecoderError, match="than its manifest's geometry asks for; export it again") as caught:
        new_decoder(wrong)
    assert str(tiny_bundle.path) in one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "keep"), [("model.onnx", 0), ("model.onnx", 5_000), ("model.onnx.data", 0), ("model.onnx.data", 100_000)]
)
def test_graph_that_cannot_be_loaded_is_a_decoder_error(
    tiny_bundle: Bundle, tmp_path: Path, name: str, keep: int
) -> None:
    """A graph or weights cut short after the bundle was checked."""
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    file = folder / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DecoderError, match="ONNX Runtime cannot load") as caught:
        new_decoder(Bundle(folder, tiny_bundle.manifest))
    assert str(folder) in one_line(caught.value)


QUESTIONS = ("Name the capital of France.", "Write 3 haiku about the sea 🌊, numbered 1 to 3.", "def fibonacci(n):")


@pytest.mark.model
def test_default_model_answers_the_same_in_chunks_and_in_a_batch(default_bundle: Bundle) -> None:
    """The served bundle: chunks of several sizes, then four rows together against each alone."""
    tokenizer = Tokenizer(default_bundle.tokenizer_json)
    prompts = [np.array(tokenizer.encode(question)) for question in QUESTIONS]
    prompts.append(random_ids(131, vocab_size=default_bundle.config.vocab_size))
    decoder = new_decoder(default_bundle, len(prompts))
    alone = [continue_greedily(decoder, prompt, 8)[1] for prompt in prompts]
    for prompt, expected in zip(prompts, alone, strict=True):
        for size in (2, 5, 16, 129):  # attention tiles have 128 queries for this head size
            whole, rest = divmod(len(prompt), size)
            sizes = [size] * whole + [rest] * bool(rest)
            np.testing.assert_array_equal(prefill_in_chunks(decoder, 1, prompt, sizes), expected[0])
    for found, expected in zip(decode_together(decoder, prompts, 8), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.model
@pytest.mark.parametrize("precision", ["default", "int8", "fp32"])
@pytest.mark.parametrize("length", [2, 8, 31, 256])
def test_logits_of_one_position_are_the_same_among_those_of_all(
    request: pytest.FixtureRequest, precision: str, length: int
) -> None:
    """So asking for log-probabilities of a prompt, or verifying a draft, changes no choice."""
    bundle: Bundle = request.getfixturevalue(f"{precision}_bundle")
    decoder = new_decoder(bundle)
    ids = random_ids(length, vocab_size=bundle.config.vocab_size)
    last = decoder.prefill(0, ids, 0)[0].copy()
    every = decoder.prefill(0, ids, 0, np.arange(length))
    np.testing.assert_array_equal(every[-1], last)


def test_the_samplers_kernels_are_what_they_say_and_the_same_in_every_batch(tiny_bundle: Bundle) -> None:
    """Against numpy; each row's sum bit for bit as if it were alone."""
    decoder, random = new_decoder(tiny_bundle), np.random.default_rng(3)
    for num_rows in (1, 2, 5, 16):
        logits = random.normal(0, 4, (num_rows, 49152)).astype(np.float32)
        logits[0, :100] = -np.inf
        largest, inverse = logits.max(-1), random.uniform(0.5, 1e6, num_rows).astype(np.float32)
        sums = decoder.weight_sums(logits, largest, inverse)
        np.testing.assert_allclose(sums, NumpyKernels().weight_sums(logits, largest, inverse), rtol=1e-5)
        for index in range(num_rows):
            row = slice(index, index + 1)
            assert decoder.weight_sums(logits[row], largest[row], inverse[row])[0] == sums[index]
        for ours, numpys in zip(decoder.top_k(logits, 50), NumpyKernels().top_k(logits, 50), strict=True):
            np.testing.assert_array_equal(ours, numpys)
