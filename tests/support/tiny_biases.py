"""Bias vectors for the tiny checkpoint, which has none of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file


def with_biases(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]], seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors, and random biases where `attention_bias` and `mlp_bias` of the config.json ask for them."""
    random = np.random.default_rng(seed)
    wanted = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
    parts = tuple({"attention_bias": "self_attn.", "mlp_bias": "mlp."}[name] for name in wanted)
    biases = {
        name.removesuffix("weight") + "bias": (random.standard_normal(tensor.shape[0]) * 0.2).astype(np.float32)
        for name, tensor in tensors.items()
        if any(part in name for part in parts)
    }
    return {**tensors, **biases}


def add_biases(folder: Path) -> Path:
    """Add to an unsharded checkpoint folder the biases that its config.json asks for."""
    config, file = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    save_file(with_biases(config, load_file(file)), file)
    return folder
