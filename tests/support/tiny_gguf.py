"""A tiny llama GGUF: llama.cpp's tensor names and rotary layout, a byte-level BPE tokenizer with a few merges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tokenizers import pre_tokenizers

MERGES = ("h e", "l l", "he ll", "hell o", "Ġ hello", "t h", "th e", "1 2")
END_TOKEN = "<|end|>"
USER_TOKEN = "<|note|>"
LLAMA_CPP_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def gguf_vocabulary() -> list[str]:
    """256 bytes, what the merges make of them, a control token and a user-defined one."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), *merged, END_TOKEN, USER_TOKEN]


def llama_cpp_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    parts = name.removeprefix("model.").split(".")
    stem = f"{LLAMA_CPP_NAMES[parts[-2]]}.{parts[-1]}"
    return f"blk.{parts[1]}.{stem}" if parts[0] == "layers" else stem


def interleave_rotated_pairs(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The permutation of llama.cpp's convert_hf_to_gguf.py, for the q and k of a Hugging Face checkpoint."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_tiny_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    *,
    architecture: str = "llama",
    tokenizer_model: str = "gpt2",
    pre_tokenizer: str = "gpt-2",
    without: str | None = None,
    extra: Mapping[str, str | int | float | bool] | None = None,
    tensor_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    more_tokens: Mapping[str, TokenType] | None = None,
    more_tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """Write the GGUF equivalent of a config.json and its tensors (by Hugging Face name), and return its path.

    without: one metadata key to leave out. extra: metadata to add or replace. tensor_type: of the matrices.
    more_tokens: behind the tiny vocabulary. more_tensors: by GGUF's own names. split_max_tensors: write parts of at
    most so many, named after the path.
    """
    writer = GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    end_id = gguf_vocabulary().index(END_TOKEN)
    integers = {
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.context_length": config["max_position_embeddings"],
        "tokenizer.ggml.eos_token_id": end_id,
    }
    floats = {
        "llama.rope.freq_base": config["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    }
    strings = {"tokenizer.ggml.model": tokenizer_model, "tokenizer.ggml.pre": pre_tokenizer}
    more = more_tokens or {}
    num_plain = len(gguf_vocabulary()) - 2
    arrays: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": [*gguf_vocabulary(), *more],
        "tokenizer.ggml.token_type": [int(TokenType.NORMAL)] * num_plain
        + [int(TokenType.CONTROL), int(TokenType.USER_DEFINED), *map(int, more.values())],
        "tokenizer.ggml.merges": list(MERGES),
    }
    for values, add in (
        (integers, writer.add_uint32),
        (floats, writer.add_float32),
        (strings, writer.add_string),
        (arrays, writer.add_array),
    ):
        for key, value in values.items():
            if key != without and key not in (extra or {}):
                add(key, value)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in (extra or {}).items():
        adders[type(value)](key, value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in tensors.items():
        kind = name.split(".")[-2]
        stored = interleave_rotated_pairs(tensor, heads[kind]) if kind in heads else tensor
        kept = GGMLQuantizationType.F32 if tensor.ndim == 1 else tensor_type
        writer.add_tensor(llama_cpp_name(name), quantize(np.ascontiguousarray(stored), kept), raw_dtype=kept)
    for name, tensor in (more_tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
