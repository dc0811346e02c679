"""Read a GGUF file of the llama architecture: geometry, float32 tensors, tokenizer. Offline only.

Separate from checkpoint.py because GGUF names, permutes and quantises differently from Hugging Face folders.
Sources: the GGUF specification of ggml; the rotary permutation is llama.cpp's, undone here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from model.config import ModelConfig, UnsupportedModelError

CONTROL_TOKEN = 3  # ggml's token types
USER_DEFINED_TOKEN = 4
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
BLOCK = 32  # weights that share a scale in Q4_0 and Q4_1
LLAMA3_SPLIT = "|".join(  # the pattern in the tokenizer.json of Llama 3
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file says, in the terms of a Checkpoint."""

    config: ModelConfig
    tensors: dict[str, np.ndarray]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]
    licence: str


@dataclass(frozen=True)
class FourBitBlocks:
    """A weight [N, K] as its file holds it: scale * code + minimum, in blocks of 32 along K.

    codes: uint8 [N, K], 0 to 15. scales, minima: float32 [N, K / 32].
    """

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray


class _Fields:
    """Typed access to the file's metadata."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        if key not in self._fields:
            raise ValueError(f"the metadata lacks {key}")
        return self.get(key)

    def length(self, key: str) -> int:
        field = self._fields.get(key)
        return len(field.data) if field is not None and field.types[0] == GGUFValueType.ARRAY else 0


class _Reader(GGUFReader):  # type: ignore[misc]  # gguf comes without types
    """Refuses to read past the end, where GGUFReader goes on with empty values: a short file, or a count too large."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("the file ends before its content does; it was cut short or damaged")
        return super()._get(offset, dtype, count, override_order)


def read_gguf_file(path: Path, model_id: str) -> GgufContent:
    """Read the whole file; quantised tensors are expanded to the float32 values that they stand for.

    Raises:
        ValueError: not a GGUF file, cut short, or lacking metadata.
        UnsupportedModelError: another architecture or tokenizer.
    """
    reader = _Reader(path)
    fields = _Fields(reader)
    config = _read_config(fields, model_id, tied=all(t.name != "output.weight" for t in reader.tensors))
    template, special = fields.get("tokenizer.chat_template"), {}
    for name in ("bos", "eos"):
        token_id = fields.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None:
            special[f"{name}_token"] = str(fields.need("tokenizer.ggml.tokens")[token_id])
    return GgufContent(
        config=config,
        tensors=_read_tensors(reader, config),
        tokenizer_json=_read_tokenizer(fields),
        chat_template=None if template is None else str(template),
        special_tokens=special,
        licence=str(fields.get("general.license", "not stated; see the model's card")),
    )


def read_four_bit_blocks(path: Path, config: ModelConfig) -> dict[str, FourBitBlocks]:
    """The tensors that the file holds as Q4_0 or Q4_1, by Hugging Face name; it has been read as a whole before."""
    blocks = {}
    for tensor in _Reader(path).tensors:
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


def _read_config(fields: _Fields, model_id: str, *, tied: bool) -> ModelConfig:
    architecture = fields.need("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(f"GGUF architecture {architecture!r} is not supported; supported: llama")
    if fields.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in fields._fields:
        raise UnsupportedModelError("GGUF rotary scaling is not supported; export from the Hugging Face folder")
    hidden, heads = int(fields.need("llama.embedding_length")), int(fields.need("llama.attention.head_count"))
    eos = fields.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        model_id=model_id,
        vocab_size=fields.length("tokenizer.ggml.tokens"),
        hidden_size=hidden,
        intermediate_size=int(fields.need("llama.feed_forward_length")),
        num_layers=int(fields.need("llama.block_count")),
        num_heads=heads,
        num_kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
        head_dim=int(fields.get("llama.rope.dimension_count", hidden // heads)),
        context_tokens=int(fields.need("llama.context_length")),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        # stored as float32; the shortest decimal is what the model was configured with
        rms_norm_eps=float(str(np.float32(fields.need("llama.attention.layer_norm_rms_epsilon")))),
        tie_word_embeddings=tied,
        eos_token_ids=() if eos is None else (int(eos),),
        bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
    )


def _read_tensors(reader: GGUFReader, config: ModelConfig) -> dict[str, np.ndarray]:
    tensors = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        tensors[name] = _in_order(name, values, config)
    return tensors


def _in_order(name: str, values: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The rows of a tensor in Hugging Face's order."""
    if name.endswith("q_proj.weight"):
        return _undo_rotary_permutation(values, config.num_heads)
    if name.endswith("k_proj.weight"):
        return _undo_rotary_permutation(values, config.num_kv_heads)
    return values


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_TENSORS:
        return f"layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in TOP_TENSORS:
        return f"{TOP_TENSORS[parts[0]]}.{parts[1]}"
    raise UnsupportedModelError(f"GGUF tensor {name!r} is not part of a plain llama model")


def _undo_rotary_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves each head's rotated pairs; put the two halves back side by side. weight: [heads * D, E]."""
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _read_tokenizer(fields: _Fields) -> str:
    """The byte-level BPE tokenizer of the metadata, as a `tokenizer.json`."""
    kind, split = fields.need("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UnsupportedModelError(f"GGUF tokenizer {kind!r} is not supported; export from the Hugging Face folder")
    tokens = fields.need("tokenizer.ggml.tokens")
    types = fields.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.need("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    defined = [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in defined])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by the name that GGUF gives it."""
    if name in ("smollm", "starcoder", "refact", "command-r"):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in ("llama-bpe", "llama-v3", "llama3"):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise UnsupportedModelError(f"GGUF pre-tokenizer {name!r} is not supported; export from the Hugging Face folder")
