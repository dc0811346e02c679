"""The textbook transformer against the reference implementation, on random weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from model.checkpoint import Checkpoint
from model.config import UnsupportedModelError, config_from_hugging_face
from tests.support.errors import one_line
from tests.support.reference import hugging_face_llama, textbook_logits
from tests.support.tiny_biases import with_biases
from tests.support.tiny_checkpoint import tiny_config_json, tiny_tensors

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain heads": {"num_key_value_heads": 4},
    "grouped heads": {"num_key_value_heads": 2},
    "one shared head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 32},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    "llama3 scaling": {"rope_parameters": LLAMA3},
    "attention biases": {"attention_bias": True},
    "mlp biases": {"mlp_bias": True},
    "untied head": {"tie_word_embeddings": False},
}


def checkpoint_of(config_json: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> Checkpoint:
    """A checkpoint in memory."""
    config = config_from_hugging_face("tiny", config_json)
    plain = {name.removeprefix("model."): array for name, array in tensors.items()}
    return Checkpoint(config, plain, "{}", None, {}, "none")


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_logits_equal_those_of_transformers(changes: dict[str, Any]) -> None:
    """Every position's logits of 120 random tokens agree within 1e-4."""
    import torch

    config_json = tiny_config_json(**changes)
    tensors = with_biases(config_json, tiny_tensors(config_json))
    token_ids = np.random.default_rng(1).integers(0, config_json["vocab_size"], 120)
    with torch.no_grad():
        expected = hugging_face_llama(config_json, tensors)(torch.tensor(token_ids)[None]).logits[0].numpy()
    logits = textbook_logits(checkpoint_of(config_json, tensors), token_ids)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1  # not equal for being all zero


def test_attention_looks_only_back() -> None:
    """Weights are a distribution over each position and those before it."""
    import torch

    from model.transformer import scaled_dot_product_attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 16) for _ in range(3))
    output, weights = scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5))
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    torch.testing.assert_close(output[..., 0, :], value[..., 0, :])


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    """The product of a rotated query and key is the same at every pair of positions equally far apart."""
    import torch

    from model.transformer import rotary_tables, rotate

    config = config_from_hugging_face("tiny", tiny_config_json())
    cos, sin = rotary_tables(config)
    torch.manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 16).expand(1, 1, 256, 16) for _ in range(2))
    scores = rotate(query, cos, sin) @ rotate(key, cos, sin).transpose(-2, -1)  # [1, 1, 256, 256]
    for distance in (0, 1, 17):
        diagonal = scores[0, 0].diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("norm.weight", None),
        ("layers.1.input_layernorm.weight", None),
        ("layers.0.self_attn.q_proj.bias", (64,)),
        ("layers.0.mlp.up_proj.weight", (96, 65)),
        ("layers.0.self_attn.k_proj.weight", (64, 64)),
        ("embed_tokens.weight", (300, 64)),
    ],
)
def test_tensors_that_do_not_fit_the_geometry_are_refused(name: str, shape: tuple[int, ...] | None) -> None:
    """A missing, unknown or misshapen tensor is named in one line."""
    from model.transformer import load_transformer

    config_json = tiny_config_json()
    checkpoint = checkpoint_of(config_json, tiny_tensors(config_json))
    tensors = dict(checkpoint.tensors)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(UnsupportedModelError) as caught:
        load_transformer(checkpoint.config, tensors)
    assert name.split(".")[1] in one_line(caught.value)


def test_damaged_layer_count_is_refused_before_layers_are_built() -> None:
    """A count of a billion would otherwise fill the memory."""
    from model.transformer import load_transformer

    config_json = tiny_config_json(num_hidden_layers=2)
    checkpoint = checkpoint_of({**config_json, "num_hidden_layers": 10**9}, tiny_tensors(config_json))
    with pytest.raises(UnsupportedModelError, match="no layer 999999999"):
        load_transformer(checkpoint.config, checkpoint.tensors)
