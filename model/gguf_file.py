"""Read a GGUF file of the llama architecture: geometry, float32 tensors, tokenizer. Offline only.

Separate from checkpoint.py because GGUF names, permutes and quantises differently from Hugging Face folders.
Sources: the GGUF specification of ggml; the rotary permutation is llama.cpp's, undone here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, dequantize

from model.config import ModelConfig, RopeScaling, UnsupportedModelError
from model.gguf_parts import Fields, open_parts
from model.gguf_tokenizer import added_ends, end_token_ids, named_tokens, read_tokenizer
from model.source_content import SourceContent
from model.weight_tensors import READABLE_TYPES, StoredTensor, check_tensors

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's scaling, worked out: a divisor for each frequency
HARMLESS = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?")  # rotary frequencies of old files, computed anyway
ATTENTION_PRODUCTS, MLP_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
SCALING_TYPE = "llama.rope.scaling.type"
BLOCK = 32  # weights that share a scale in Q4_0 and Q4_1


@dataclass(frozen=True)
class FourBitBlocks:
    """A weight [N, K] as its file holds it: scale * code + minimum, in blocks of 32 along K.

    codes: uint8 [N, K], 0 to 15. scales, minima: float32 [N, K / 32].
    """

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray


def read_gguf_file(path: Path) -> SourceContent:
    """Read the whole file, or all parts of a split one; quantised tensors become the float32 values they stand for.

    Raises:
        ValueError: not a GGUF file, cut short, or lacking metadata or a part.
        UnsupportedModelError: another architecture or tokenizer, or tensors that don't fit.
    """
    fields, readers = open_parts(path)
    raw = [tensor for reader in readers for tensor in reader.tensors if not HARMLESS.fullmatch(tensor.name)]
    weights = [tensor for tensor in raw if tensor.name != ROPE_FACTORS]
    stored = [_stored(tensor, path.name) for tensor in weights]
    config = _read_config(fields, {tensor.name for tensor in stored})
    config = _with_rope_factors(config, [tensor for tensor in raw if tensor.name == ROPE_FACTORS])
    tokens = named_tokens(fields)
    zeros = _absent_biases(config, stored)
    check_tensors(config, [*stored, *zeros])
    template = fields.get("tokenizer.chat_template")
    return SourceContent(
        config=replace(config, eos_token_ids=end_token_ids(fields)),
        tensors={**_read_tensors(weights, config), **{zero.name: np.zeros(zero.shape, np.float32) for zero in zeros}},
        tokenizer_json=read_tokenizer(fields),
        chat_template=None if template is None else str(template),
        special_tokens=tokens,
        licence=str(fields.get("general.license", "not stated; see the model's card")),
        name=str(fields.get("general.name") or ""),
        added_ends=added_ends(fields, tokens),
    )


def read_four_bit_blocks(path: Path, config: ModelConfig) -> dict[str, FourBitBlocks]:
    """The tensors that the file holds as Q4_0 or Q4_1, by Hugging Face name; it has been read as a whole before."""
    blocks = {}
    for tensor in (tensor for reader in open_parts(path)[1] for tensor in reader.tensors):
        if tensor.tensor_type not in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1):
            continue
        name = _hugging_face_name(tensor.name)
        blocks[name] = FourBitBlocks(*(_in_order(name, part, config) for part in _unpack(tensor)))
    return blocks


def _unpack(tensor: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and minima. A block is a float16 scale, in Q4_1 a float16 minimum, and 16 bytes of two codes."""
    has_minimum = tensor.tensor_type == GGMLQuantizationType.Q4_1
    header = 4 if has_minimum else 2  # bytes
    rows = tensor.data.reshape(tensor.data.shape[0], -1, header + BLOCK // 2)  # uint8 [N, K / 32, bytes]
    floats = np.ascontiguousarray(rows[..., :header]).view(np.float16).astype(np.float32)
    packed = rows[..., header:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(len(rows), -1)  # low halves come first
    scales = floats[..., 0]
    return codes, scales, floats[..., 1] if has_minimum else -8 * scales


def _read_config(fields: Fields, names: set[str]) -> ModelConfig:
    """The geometry; what no metadata says, a head of its own and biases, is read off the tensors' names."""
    architecture = fields.need("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(f"GGUF architecture {architecture!r} is not supported; supported: llama")
    hidden, heads = int(fields.need("llama.embedding_length")), int(fields.need("llama.attention.head_count"))
    rotated = int(fields.get("llama.rope.dimension_count", hidden // heads))
    head_dim = int(fields.get("llama.attention.key_length", rotated))
    if (rotated, int(fields.get("llama.attention.value_length", head_dim))) != (head_dim, head_dim):
        raise UnsupportedModelError(
            f"GGUF rotates {rotated} of a head's {head_dim} numbers, or has values of another size than keys; Attend "
            "rotates whole heads of one size"
        )
    return ModelConfig(
        model_id="unnamed",
        vocab_size=fields.length("tokenizer.ggml.tokens"),
        hidden_size=hidden,
        intermediate_size=int(fields.need("llama.feed_forward_length")),
        num_layers=int(fields.need("llama.block_count")),
        num_heads=heads,
        num_kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
        head_dim=head_dim,
        context_tokens=int(fields.need("llama.context_length")),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        # stored as float32; the shortest decimal is what the model was configured with
        rms_norm_eps=float(str(np.float32(fields.need("llama.attention.layer_norm_rms_epsilon")))),
        tie_word_embeddings="lm_head.weight" not in names,
        eos_token_ids=(),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
        attention_bias=any(f"layers.0.self_attn.{product}.bias" in names for product in ATTENTION_PRODUCTS),
        mlp_bias=any(f"layers.0.mlp.{product}.bias" in names for product in MLP_PRODUCTS),
        rope_scaling=_rope_scaling(fields),
    )


def _rope_scaling(fields: Fields) -> RopeScaling:
    """The scaling that the metadata names, `linear` alone of all; a factor without a type is linear, too."""
    kind = fields.get(SCALING_TYPE, "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(f"GGUF rotary scaling {kind!r} is not supported; supported: none, linear, llama3's")
    factor = float(fields.get("llama.rope.scaling.factor", fields.get("llama.rope.scale_linear", 1.0)))
    unsaid = fields.get(SCALING_TYPE) is None and factor == 0.0
    return RopeScaling() if kind == "none" or factor == 1.0 or unsaid else RopeScaling("linear", factor)


def _with_rope_factors(config: ModelConfig, tensors: Sequence[Any]) -> ModelConfig:
    """The geometry with the divisors that llama.cpp works out from Llama 3.1's scaling and stores as a tensor."""
    if not tensors:
        return config
    factors = tuple(float(factor) for factor in _dequantized(tensors[0]).ravel())
    if config.rope_scaling.kind != "none":
        raise UnsupportedModelError(f"GGUF has both {ROPE_FACTORS} and a rotary scaling; give the Hugging Face folder")
    if all(factor == 1.0 for factor in factors) and len(factors) == config.head_dim // 2:
        return config
    return replace(config, rope_scaling=RopeScaling("factors", factors=factors))


def _absent_biases(config: ModelConfig, stored: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Biases of zeros for the products that have none in any layer, where others of their kind have some."""
    names = {tensor.name for tensor in stored}
    absent = []
    for has_bias, part, products in (
        (config.attention_bias, "self_attn", ATTENTION_PRODUCTS),
        (config.mlp_bias, "mlp", MLP_PRODUCTS),
    ):
        for product in products if has_bias else ():
            if any(name.endswith(f"{part}.{product}.bias") for name in names):
                continue
            shapes = {
                tensor.name: tensor.shape for tensor in stored if tensor.name.endswith(f"{part}.{product}.weight")
            }
            absent += [
                StoredTensor(name.removesuffix("weight") + "bias", shape[:1], "F32", "no file")
                for name, shape in shapes.items()
            ]
    return absent


def _stored(tensor: Any, file: str) -> StoredTensor:
    """A tensor as the file announces it. Every type that can be expanded counts as F32, which it becomes."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return StoredTensor(_hugging_face_name(tensor.name), shape, READABLE_TYPES[0], file)


def _read_tensors(tensors: Sequence[Any], config: ModelConfig) -> dict[str, np.ndarray]:
    read = {}
    for tensor in tensors:
        name = _hugging_face_name(tensor.name)
        read[name] = _in_order(name, _dequantized(tensor), config)
    return read


def _dequantized(tensor: Any) -> np.ndarray:
    """A tensor's values as float32.

    Raises:
        UnsupportedModelError: its type cannot be expanded; names both.
    """
    if tensor.tensor_type == GGMLQuantizationType.F64:
        return np.asarray(tensor.data, np.float32)
    try:
        values: np.ndarray = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError:
        raise UnsupportedModelError(
            f"GGUF tensor {tensor.name!r} is stored as {tensor.tensor_type.name}, which is not supported; give the "
            "file in another quantisation, such as Q8_0 or Q4_K_M"
        ) from None
    return values


def _in_order(name: str, values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The rows of a tensor in Hugging Face's order."""
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return _undo_rotary_permutation(values, config.num_heads)
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return _undo_rotary_permutation(values, config.num_kv_heads)
    return values


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_TENSORS:
        return f"layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in TOP_TENSORS:
        return f"{TOP_TENSORS[parts[0]]}.{parts[1]}"
    raise UnsupportedModelError(
        f"GGUF tensor {name!r} is not part of a plain llama model{_kind(name)}; leaving it out would change the answers"
    )


def _kind(name: str) -> str:
    """A short name for a strange tensor that is known."""
    kinds = {
        "rope_factors": " (the scaling of a stretched context that Attend does not know)",
        "exps": " (an expert's)",
        "lora": " (an adapter's; merge it into its model first)",
        "attn_q_norm": " (a norm of queries)",
        "attn_k_norm": " (a norm of keys)",
        ".scale": " (a packed weight's scale)",
    }
    return next((kind for part, kind in kinds.items() if part in name), "")


def _undo_rotary_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves each head's rotated pairs; put the two halves back side by side.

    weight: [heads * D, E], or a bias [heads * D].
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
