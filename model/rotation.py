"""The same function with tamer activations: what an export does to a transformer before 8-bit products. Offline only.

A few channels of a trained transformer carry values a hundred times the others, and one 8-bit scale for a whole row
then leaves nothing for the rest. Three changes that cancel out exactly spread them, at no cost when serving:

* the hidden states are turned by an orthogonal matrix, and every weight that reads or writes them turned back;
* so are the values within each head, between the value and the output projection;
* the channels between up and down projection are scaled by what they carry on a short text, and down scaled back.

An RMS norm commutes with a rotation once its weight is moved into the products that follow, so the weights of all norms
become ones. After it, a row's root mean square is one and its largest value rarely above four.
Sources: Ashkboos et al. 2024 (QuaRot), Xiao et al. 2023 (SmoothQuant).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from model.precision import HEAD_PRODUCT, PRODUCT_PARTS, weight_name
from model.transformer import RMSNorm, Transformer

Name = TypeVar("Name")

WINDOW_TOKENS = 512
SMALLEST = 1e-5  # a channel that never carries anything still needs a scale
SIGN_SEED = 0


def rotate_transformer(transformer: Transformer, calibration_ids: np.ndarray) -> None:
    """Change the weights in place; the logits stay the same but for float32 rounding.

    The head no longer equals the embedding afterwards: `transformer.config` says so.
    calibration_ids: int64 [N], tokens of a text, N > 0.
    """
    _untie(transformer)
    _fold_norms(transformer)
    _balance_feed_forward(transformer, _largest_inputs_of_down(transformer, calibration_ids))
    _rotate_hidden(transformer)
    _rotate_values(transformer)


def orthogonal_matrix(size: int) -> Tensor:
    """A float64 [size, size] matrix that spreads any single channel over all: Hadamard, and cosines for an odd factor.

    The signs of its rows are drawn once and for all; the same on every machine.
    """
    power = size & -size  # the largest power of two that divides the size
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    odd = size // power
    index = torch.arange(odd, dtype=torch.float64)
    cosines = torch.cos(math.pi / odd * (index[None] + 0.5) * index[:, None]) * math.sqrt(2 / odd)
    cosines[0] /= math.sqrt(2)  # of the orthonormal discrete cosine transform
    signs = torch.from_numpy(np.random.RandomState(SIGN_SEED).choice([-1.0, 1.0], size))
    return signs[:, None] * torch.kron(hadamard / math.sqrt(power), cosines)


def _untie(transformer: Transformer) -> None:
    transformer.lm_head.weight = nn.Parameter(transformer.lm_head.weight.clone(), requires_grad=False)
    transformer.config = dataclasses.replace(transformer.config, tie_word_embeddings=False)


def _fold_norms(transformer: Transformer) -> None:
    """Move each norm's weight into the products that read its output."""
    for layer in transformer.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _fold_norm(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        _fold_norm(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj)
    _fold_norm(transformer.norm, transformer.lm_head)


def _fold_norm(norm: RMSNorm, *readers: nn.Linear) -> None:
    for reader in readers:
        reader.weight.data = reader.weight.data * norm.weight.data
    norm.weight.data = torch.ones_like(norm.weight.data)


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def second_moments(transformer: Transformer, calibration_ids: np.ndarray) -> dict[str, np.ndarray]:
    """What each product reads on a text, as the sum of outer products of its input rows.

    Returns float32 [K, K] by the name that the product's weight has in the exported graph.
    """
    moments: dict[str, np.ndarray] = {}

    def add(name: str, rows: Tensor) -> None:
        moments[name] = moments.get(name, np.float32(0)) + (rows.T @ rows).numpy()

    readers = {HEAD_PRODUCT: transformer.lm_head}
    for index, layer in enumerate(transformer.layers):
        for product, (first, *_) in PRODUCT_PARTS.items():  # all parts of a product read the same
            readers[weight_name(index, product)] = layer.get_submodule(first)
    _watch_inputs(transformer, readers, calibration_ids, add)
    return moments


def _largest_inputs_of_down(transformer: Transformer, calibration_ids: np.ndarray) -> list[Tensor]:
    """The largest magnitude that each channel of each layer's down projection reads: float32 [F] a layer."""
    largest = [torch.full((transformer.config.intermediate_size,), SMALLEST) for _ in transformer.layers]

    def note(index: int, rows: Tensor) -> None:
        largest[index] = torch.maximum(largest[index], rows.abs().amax(0))

    readers = {index: layer.mlp.down_proj for index, layer in enumerate(transformer.layers)}
    _watch_inputs(transformer, readers, calibration_ids, note)
    return largest


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def _watch_inputs(
    transformer: Transformer,
    readers: Mapping[Name, nn.Linear],
    calibration_ids: np.ndarray,
    see: Callable[[Name, Tensor], None],
) -> None:
    """Run a text and show `see` the rows [T, K] that each of the products reads."""

    def hook(name: Name) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, 1))

    hooks = [reader.register_forward_pre_hook(hook(name)) for name, reader in readers.items()]
    window = min(WINDOW_TOKENS, transformer.config.context_tokens)
    for ids in torch.from_numpy(calibration_ids).split(window):
        transformer(ids[None])
    for handle in hooks:
        handle.remove()


def _balance_feed_forward(transformer: Transformer, largest: list[Tensor]) -> None:
    """Share the spread of each channel between up's output and down's weight, half each (SmoothQuant's alpha 0.5)."""
    for layer, activation in zip(transformer.layers, largest, strict=True):
        mlp = layer.mlp
        scale = (activation / mlp.down_proj.weight.abs().amax(0).clamp(min=SMALLEST)).sqrt()
        mlp.down_proj.weight.data = mlp.down_proj.weight.data * scale
        mlp.up_proj.weight.data = mlp.up_proj.weight.data / scale[:, None]
        if mlp.up_proj.bias is not None:
            mlp.up_proj.bias.data = mlp.up_proj.bias.data / scale


def _rotate_hidden(transformer: Transformer) -> None:
    rotation = orthogonal_matrix(transformer.config.hidden_size)
    transformer.embed_tokens.weight.data = _turn_input(transformer.embed_tokens.weight.data, rotation)
    for layer in transformer.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight.data = _turn_input(reader.weight.data, rotation)
        for writer in (attention.o_proj, mlp.down_proj):
            _turn_output(writer, rotation)
    transformer.lm_head.weight.data = _turn_input(transformer.lm_head.weight.data, rotation)


def _rotate_values(transformer: Transformer) -> None:
    """Within each head: value projections write turned values, the output projection reads them turned back."""
    config = transformer.config
    rotation = orthogonal_matrix(config.head_dim)
    for layer in transformer.layers:
        _turn_output(layer.self_attn.v_proj, torch.block_diag(*[rotation] * config.num_kv_heads))
        output = layer.self_attn.o_proj
        output.weight.data = _turn_input(output.weight.data, torch.block_diag(*[rotation] * config.num_heads))


def _turn_input(weight: Tensor, rotation: Tensor) -> Tensor:
    """The weight [N, K] for inputs turned by `rotation` [K, K]."""
    return (weight.double() @ rotation).float()


def _turn_output(linear: nn.Linear, rotation: Tensor) -> None:
    """Turn what a product writes by `rotation` [N, N]."""
    linear.weight.data = (rotation.T @ linear.weight.data.double()).float()
    if linear.bias is not None:
        linear.bias.data = (linear.bias.data.double() @ rotation).float()
