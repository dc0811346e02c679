"""ModelConfig: the geometry of a decoder-only transformer, stated once.

Separate from the code that computes with it, because the exporter (torch) and the decoder (ONNX Runtime)
both read it and must agree. Imports nothing heavy.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM",)
SCALING_KINDS = ("none", "linear", "llama3", "factors")
ROTARY_HEAD_MULTIPLE = 16  # GroupQueryAttention's rotary kernel takes head sizes that are multiples of this


class UnsupportedModelError(UserError, ValueError):
    """The checkpoint is readable but describes a model that Attend cannot export."""


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    `kind` is `none`, `linear` (frequencies divided by `factor`), `llama3` (only low frequencies are, with a
    smooth band between; Llama 3.1 model card) or `factors` (each frequency divided by its own of `factors`, as GGUF
    files hold them). `original_context_tokens` is the context before stretching.
    """

    kind: str = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 0
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what `rotary_frequencies` cannot compute.

        Raises:
            UnsupportedModelError: an unknown kind, or a factor out of range.
        """
        if self.kind not in SCALING_KINDS:
            raise UnsupportedModelError(f"rotary scaling {self.kind!r} is not one of {', '.join(SCALING_KINDS)}")
        if not 0 < self.factor < math.inf:
            raise UnsupportedModelError(f"rotary scaling factor is {self.factor}; it must be above 0")
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise UnsupportedModelError(
                f"rotary scaling has low_freq_factor {self.low_freq_factor} and high_freq_factor "
                f"{self.high_freq_factor}; the low one must be above 0 and below the high one"
            )
        if not all(0 < factor < math.inf for factor in self.factors):
            raise UnsupportedModelError("a factor of the rotary scaling is not a number above 0")


@dataclass(frozen=True)
class ModelConfig:
    """Geometry and special ids of one model. Counts are plain integers, `*_tokens` are tokens.

    num_heads query heads share num_kv_heads key/value heads in equal groups (grouped-query attention).
    """

    model_id: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_tokens: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling = RopeScaling()

    def __post_init__(self) -> None:
        """Refuse impossible geometry with one line that says which and why.

        Raises:
            UnsupportedModelError: a size is not positive, heads don't divide, or an id is out of vocabulary.
        """
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "context_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UnsupportedModelError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise UnsupportedModelError(f"{name} is {value!r}; it must be a number above 0")
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % ROTARY_HEAD_MULTIPLE:
            raise UnsupportedModelError(f"head_dim is {self.head_dim}; it must be a multiple of {ROTARY_HEAD_MULTIPLE}")
        if self.rope_scaling.kind == "factors" and len(self.rope_scaling.factors) != self.head_dim // 2:
            raise UnsupportedModelError(
                f"rotary scaling has {len(self.rope_scaling.factors)} factors; head_dim {self.head_dim} takes "
                f"{self.head_dim // 2}"
            )
        for token_id in self.eos_token_ids:
            if not isinstance(token_id, int) or not 0 <= token_id < self.vocab_size:
                raise UnsupportedModelError(f"eos token id {token_id!r} is outside the vocabulary of {self.vocab_size}")

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token holds over all layers, float32."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 4

    def to_json(self) -> dict[str, Any]:
        """This geometry as plain JSON values, for a bundle's manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`.

        Raises:
            UnsupportedModelError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            fields = {**values, "model_id": str(values["model_id"]), "eos_token_ids": tuple(values["eos_token_ids"])}
            scaling = {**fields.get("rope_scaling", {})}
            fields["rope_scaling"] = RopeScaling(**{**scaling, "factors": tuple(scaling.get("factors", ()))})
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise UnsupportedModelError(f"geometry is incomplete or has unknown fields: {error}") from error


def config_from_hugging_face(
    model_id: str, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Read a Hugging Face `config.json` (and `generation_config.json`, which may name more end tokens).

    Raises:
        UnsupportedModelError: another architecture, activation or rotary scaling than Attend exports, or a value that
            is missing or makes no sense.
    """
    named = config.get("architectures") or "(none named)"
    architectures = named if isinstance(named, list) else [named]
    if not any(name in SUPPORTED_ARCHITECTURES for name in architectures):
        raise UnsupportedModelError(
            f"architecture {', '.join(map(str, architectures))} is not supported; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"activation {config['hidden_act']!r} is not supported; supported: silu")
    eos_token_ids = _end_token_ids({"generation_config.json": generation or {}, "config.json": config})
    try:
        partial = {"partial_rotary_factor": config.get("partial_rotary_factor")}
        rope = {**partial, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        num_heads = int(config["num_attention_heads"])
        return ModelConfig(
            model_id=model_id,
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // num_heads),
            context_tokens=int(config["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rms_norm_eps=float(config["rms_norm_eps"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_token_ids=eos_token_ids,
            bos_token_id=config.get("bos_token_id"),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            rope_scaling=_rope_scaling(rope, int(config["max_position_embeddings"])),
        )
    except KeyError as error:
        raise UnsupportedModelError(f"config.json lacks {error}") from error
    except UnsupportedModelError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UnsupportedModelError(f"config.json holds a value that makes no sense: {error}") from error


def rotary_frequencies(config: ModelConfig) -> list[float]:
    """Radians per position of each rotated pair, [head_dim / 2] (RoFormer, section 3.2.2; scaling as configured)."""
    half = config.head_dim // 2
    frequencies = [config.rope_theta ** (-i / half) for i in range(half)]
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return [f / scaling.factor for f in frequencies]
    if scaling.kind == "factors":
        return [f / factor for f, factor in zip(frequencies, scaling.factors, strict=True)]
    if scaling.kind == "llama3":
        return [_llama3_frequency(f, scaling) for f in frequencies]
    return frequencies


def _llama3_frequency(frequency: float, scaling: RopeScaling) -> float:
    """One frequency under Llama 3.1's scaling: short waves kept, long ones divided, a linear blend between."""
    turns = scaling.original_context_tokens * frequency / (2 * math.pi)  # rotations within the trained context
    if turns > scaling.high_freq_factor:
        return frequency
    if turns < scaling.low_freq_factor:
        return frequency / scaling.factor
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - keep) * frequency / scaling.factor + keep * frequency


def _rope_scaling(rope: Mapping[str, Any], context_tokens: int) -> RopeScaling:
    """`rope_scaling` / `rope_parameters` of a config.json as a RopeScaling."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModelError(
            f"partial_rotary_factor {rope['partial_rotary_factor']} is not supported; Attend rotates whole heads"
        )
    if kind == "default":
        return RopeScaling()
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"rotary scaling {kind!r} is not supported; supported: default, linear, llama3")
    return RopeScaling(
        kind=kind,
        factor=float(rope["factor"]),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_context_tokens=int(rope.get("original_max_position_embeddings", context_tokens)),
    )


def _end_token_ids(sources: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Every `eos_token_id` (an id, a list or null) of the files, each once, in order. sources: by file name.

    Raises:
        UnsupportedModelError: one is no token id of the vocabulary; says which file names it.
    """
    ids: list[int] = []
    vocab_size = sources["config.json"].get("vocab_size")
    limit = vocab_size if isinstance(vocab_size, int) else math.inf  # what is no size is refused with the geometry
    for file, source in sources.items():
        value = source.get("eos_token_id")
        for token_id in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < limit:
                raise UnsupportedModelError(
                    f"{file} names end token id {token_id!r}, which is not in the vocabulary of {vocab_size}; give a "
                    f"whole number from 0 to {limit - 1}, a list of them, or null"
                )
            ids.append(token_id)
    return tuple(dict.fromkeys(ids))
