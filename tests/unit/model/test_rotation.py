"""A rotated transformer computes the same function, and its activations fit 8 bits better."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import read_checkpoint
from model.rotation import orthogonal_matrix, rotate_transformer, second_moments
from model.transformer import Transformer, load_transformer
from tests.support.decoding import random_ids
from tests.support.tiny_biases import add_biases
from tests.support.tiny_checkpoint import write_tiny_checkpoint

CALIBRATION = random_ids(150)
PROMPT = torch.from_numpy(random_ids(40))[None]


@pytest.fixture(
    params=[{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}, {"hidden_size": 80}],
    ids=["tied", "biases", "size with an odd factor"],
)
def transformer(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Transformer]:
    """A tiny transformer whose norms have weights that matter."""
    checkpoint = read_checkpoint(add_biases(write_tiny_checkpoint(tmp_path / "tiny", **request.param)))
    built = load_transformer(checkpoint.config, checkpoint.tensors)
    random = torch.Generator().manual_seed(5)
    for name, weight in built.named_parameters():
        if name.endswith("norm.weight"):
            weight.data = torch.rand(weight.shape, generator=random) * 3 + 0.2
    return built


def logits(transformer: Transformer) -> np.ndarray[Any, Any]:
    """Of the prompt, at every position."""
    with torch.no_grad():
        values: np.ndarray[Any, Any] = transformer(PROMPT).numpy()
    return values


@pytest.mark.parametrize("size", [1, 2, 9, 64, 80, 576])
def test_the_matrix_is_orthogonal_and_spreads_every_channel(size: int) -> None:
    """No entry is larger than an even spread over the power of two and the cosines of the odd factor allow."""
    matrix = orthogonal_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    assert matrix.abs().max() <= np.sqrt(2 / size) + 1e-12


def test_rotation_changes_no_logit(transformer: Transformer) -> None:
    """Within float32 rounding, with biases, tied or not."""
    before = logits(transformer)
    rotate_transformer(transformer, CALIBRATION)
    np.testing.assert_allclose(logits(transformer), before, atol=1e-4, rtol=0)
    assert not transformer.config.tie_word_embeddings
    assert all(bool((norm == 1).all()) for name, norm in transformer.named_parameters() if name.endswith("norm.weight"))


def test_a_loud_channel_is_spread(transformer: Transformer) -> None:
    """One hidden channel a hundred times the others: what the first product reads gets several times flatter."""
    transformer.embed_tokens.weight.data[:, 3] *= 100

    def loudness() -> float:
        moment = second_moments(transformer, CALIBRATION)["layers.0.qkv_proj"]
        return float(moment.diagonal().max() / moment.diagonal().mean())

    before = loudness()
    rotate_transformer(transformer, CALIBRATION)
    assert loudness() < before / 5


def test_second_moments_are_those_of_what_each_product_reads(transformer: Transformer) -> None:
    """One symmetric matrix a product, its trace the energy of the rows: for the head, of the last norm's output."""
    moments = second_moments(transformer, CALIBRATION)
    assert len(moments) == 4 * transformer.config.num_layers + 1
    hidden: list[torch.Tensor] = []
    hook = transformer.norm.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
    with torch.no_grad():
        for ids in torch.from_numpy(CALIBRATION).split(min(512, transformer.config.context_tokens)):
            transformer(ids[None])
    hook.remove()
    rows = torch.cat(hidden)
    np.testing.assert_allclose(moments["lm_head"], (rows.T @ rows).numpy(), rtol=1e-4, atol=1e-4)
