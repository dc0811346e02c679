"""Rounding to 8 bits and the source's own 4-bit blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from model.bundle_writer import ExportRequest, export_bundle
from model.checkpoint import read_checkpoint
from model.quantize import _round_channels
from tests.support.tiny_checkpoint import tiny_config_json, tiny_tensors
from tests.support.tiny_gguf import gguf_vocabulary, write_tiny_gguf


def moment_of(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sum of outer products of rows [T, K]: [K, K]."""
    moment: np.ndarray[Any, Any] = rows.T @ rows
    return moment


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 40), spike=st.sampled_from([0.0, 1.0, 50.0]))
def test_neighbouring_codes_cannot_overflow_16_bits(seed: int, num_rows: int, spike: float) -> None:
    """255 times the larger same-signed half of every pair of rows fits, whatever the weights are."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(num_rows, 7)).astype(np.float32)
    weight[random.integers(num_rows)] += spike
    codes, scales = _round_channels(weight, moment_of(random.normal(size=(60, num_rows)).astype(np.float32)))
    pairs = np.pad(codes.astype(np.int64), ((0, num_rows % 2), (0, 0))).reshape(-1, 2, 7)
    assert 255 * np.maximum(pairs, 0).sum(1).max() <= 32_767
    assert 255 * np.minimum(pairs, 0).sum(1).min() >= -32_768
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_rounding_heeds_what_the_inputs_do_together() -> None:
    """On correlated inputs, the outputs err less than with every weight rounded to its nearest code."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(400, 8)) @ random.normal(size=(8, 64)) + 0.1 * random.normal(size=(400, 64))
    weight = random.normal(size=(64, 32)).astype(np.float32)
    codes, scales = _round_channels(weight, moment_of(rows.astype(np.float32)))
    nearest = np.rint(weight / scales) * scales
    assert np.abs(rows @ (codes * scales - weight)).mean() < 0.5 * np.abs(rows @ (nearest - weight)).mean()


def test_a_channel_of_zeros_stays_zero() -> None:
    """No division by zero, no NaN."""
    codes, scales = _round_channels(np.zeros((4, 3), np.float32), np.eye(4, dtype=np.float32))
    assert not codes.any()
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1])
def test_int4_keeps_the_weights_of_a_4_bit_source(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    """Scale * (code - 8) and the offset of each block give back what the file stands for, rotary order undone."""
    config = tiny_config_json(vocab_size=len(gguf_vocabulary()))
    source = write_tiny_gguf(tmp_path / "tiny.gguf", config, tiny_tensors(config), tensor_type=kind)
    bundle = export_bundle(ExportRequest(str(source), tmp_path / "int4", "int4"), tmp_path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(bundle.graph_path).graph.initializer}
    tensors = read_checkpoint(source).tensors
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for layer in range(bundle.config.num_layers):
        expected = np.concatenate([tensors[f"layers.{layer}.{part}.weight"] for part in parts])
        name = f"layers.{layer}.qkv_proj"
        packed = stored[f"{name}.codes"]
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], 32).astype(np.float32)
        values = stored[f"{name}.scales"].reshape(packed.shape[:2])[..., None] * (codes - 8)
        if kind == GGMLQuantizationType.Q4_1:
            values = values + stored[f"{name}.offsets"].T[..., None]
        np.testing.assert_allclose(values.reshape(expected.shape), expected, atol=1e-6, rtol=0)
