"""The reference implementation, Hugging Face transformers, and the textbook transformer, over the same weights."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.checkpoint import DEFAULT_SOURCE, Checkpoint, read_checkpoint, resolve_source


@cache
def default_checkpoint(cache_dir: Path) -> Checkpoint:
    """The default model's weights in float32, read once for all tests (0.5 GB)."""
    return read_checkpoint(resolve_source(DEFAULT_SOURCE, cache_dir))


def hugging_face_llama(config_json: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """LlamaForCausalLM of transformers in float32, for a config.json and tensors by name, with `model.` or without."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config_json))
    state = {}
    for name, array in tensors.items():
        plain = name.removeprefix("model.")
        state[plain if plain.startswith("lm_head") else f"model.{plain}"] = torch.tensor(array, dtype=torch.float32)
    if config_json["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.float().eval().requires_grad_(False)


def hugging_face_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json of a checkpoint without rotary scaling."""
    config = checkpoint.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_tokens,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": list(config.eos_token_ids),
        "bos_token_id": config.bos_token_id,
        "pad_token_id": None,
    }


def textbook_logits(checkpoint: Checkpoint, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits of model.transformer.Transformer at every position: token_ids int64 [T] -> float32 [T, V]."""
    import torch

    from model.transformer import load_transformer

    transformer = load_transformer(checkpoint.config, checkpoint.tensors)
    logits: npt.NDArray[np.float32] = transformer(torch.tensor(token_ids)[None])[0].numpy()
    return logits
