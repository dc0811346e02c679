"""The exported graph computes what the textbook transformer computes, with the nodes and weights it should have."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model.bundle import Bundle
from model.bundle_writer import ExportRequest, export_bundle
from model.checkpoint import read_checkpoint
from tests.support.decoding import Ids, Logits, new_decoder, random_ids
from tests.support.reference import textbook_logits
from tests.support.tiny_biases import add_biases
from tests.support.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("traced_once")

PROMPT = random_ids(80)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "one head for all": {"num_key_value_heads": 1, "rope_scaling": LLAMA3},
    "a key head each": {"num_key_value_heads": 4, "num_hidden_layers": 1},
    "hidden size off the block": {"hidden_size": 80, "head_dim": 48},
}


def export(folder: Path, precision: str, **changes: Any) -> tuple[Path, Bundle]:
    """A tiny checkpoint with these changes, and its bundle."""
    source = add_biases(write_tiny_checkpoint(folder / "source", **changes))
    return source, export_bundle(ExportRequest(str(source), folder / precision, precision), folder)


def graph_of(bundle: Bundle) -> Any:
    """The bundle's graph with its weights."""
    return onnx.load(bundle.graph_path).graph


def logits_at_every_position(bundle: Bundle, token_ids: Ids) -> Logits:
    """Half of the prompt as a chunk with all its logits, the other half token by token: float32 [T, V]."""
    decoder, half = new_decoder(bundle), len(token_ids) // 2
    first = decoder.prefill(0, token_ids[:half], 0, np.arange(half)).copy()
    rest = [decoder.decode(token_ids[at : at + 1], np.array([at])).copy() for at in range(half, len(token_ids))]
    return np.concatenate([first, *rest])


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_fp32_graph_equals_the_textbook_at_every_position(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Prefilled or decoded, within 1e-4."""
    source, bundle = export(tmp_path, "fp32", **changes)
    expected = textbook_logits(read_checkpoint(source), PROMPT)
    np.testing.assert_allclose(logits_at_every_position(bundle, PROMPT), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_8_bit_graph_stays_close_to_the_textbook(tmp_path: Path, shape: str, precision: str) -> None:
    """Random weights have no outliers: logits off by less than a third of their spread, 9 of 10 choices the same."""
    source, bundle = export(tmp_path, precision, **SHAPES[shape])
    expected = textbook_logits(read_checkpoint(source), PROMPT)
    found = logits_at_every_position(bundle, PROMPT)
    assert np.abs(found - expected).max() < expected.std() / 3
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.9


@pytest.mark.parametrize("num_layers", [1, 3])
def test_graph_has_one_attention_node_a_layer(tmp_path: Path, num_layers: int) -> None:
    """Attention, cache and rotary positions are one node; nothing of them is left outside it."""
    _, bundle = export(tmp_path, "fp32", num_hidden_layers=num_layers)
    kinds = Counter(node.op_type for node in graph_of(bundle).node)
    assert kinds["GroupQueryAttention"] == num_layers
    assert kinds["SkipSimplifiedLayerNormalization"] == 2 * num_layers
    assert kinds["MatMul"] == 4 * num_layers + 1  # qkv, output, gate and up, down; the head
    assert not kinds.keys() & {"Softmax", "Cos", "Sin", "Concat", "ScatterND", "Loop", "If"}


def test_graph_says_nothing_of_the_machine_it_was_made_on(tiny_bundle: Bundle) -> None:
    """No paths, stack traces or names of files: they would differ from export to export."""
    content = tiny_bundle.graph_path.read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("tied", [True, False])
def test_fp32_weights_are_stored_once(tmp_path: Path, tied: bool) -> None:
    """The file holds the checkpoint's numbers and two rotary tables, and a tied head no second time."""
    source, bundle = export(tmp_path, "fp32", tie_word_embeddings=tied)
    num_weights = sum(tensor.size for tensor in read_checkpoint(source).tensors.values())
    num_rotary = bundle.config.context_tokens * bundle.config.head_dim
    arrays = [numpy_helper.to_array(tensor) for tensor in graph_of(bundle).initializer]
    assert sum(array.size for array in arrays if array.size > 1 and array.dtype == np.float32) == (
        num_weights + num_rotary
    )
    wanted_bytes = 4 * (num_weights + num_rotary)
    assert wanted_bytes * 0.99 < (bundle.path / "model.onnx.data").stat().st_size < wanted_bytes * 1.01 + 65_536


@pytest.mark.parametrize("tied", [True, False])
def test_int8_weights_take_a_byte_each_and_a_tied_head_is_stored_once(tmp_path: Path, tied: bool) -> None:
    """A tied embedding reads the head's blocks; an untied one keeps its float32 table."""
    _, bundle = export(tmp_path, "int8", tie_word_embeddings=tied)
    config, graph = bundle.config, graph_of(bundle)
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MatMulNBits"] == 4 * config.num_layers + 1
    assert kinds["MatMul"] == 0
    assert (kinds["GatherBlockQuantized"], kinds["Gather"]) == ((1, 0) if tied else (0, 1))
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    tables = [array for array in arrays if array.size == config.vocab_size * config.hidden_size]
    assert sorted(str(table.dtype) for table in tables) == (["uint8"] if tied else ["float32", "uint8"])


@pytest.mark.parametrize("precision", ["int8", "w8a8"])
def test_answer_does_not_depend_on_the_batch(tmp_path: Path, precision: str) -> None:
    """Activations are quantised row by row: a neighbour with huge values changes nothing, bit for bit."""
    _, bundle = export(tmp_path, precision)
    alone, together = new_decoder(bundle, 1), new_decoder(bundle, 4)
    expected = alone.decode(np.array([7]), np.array([0])).copy()
    for neighbours in ([1, 2, 3], [256, 0, 255]):
        found = together.decode(np.array([7, *neighbours]), np.zeros(4, np.int64))
        np.testing.assert_array_equal(found[0], expected[0])
