"""The tensors of a checkpoint against its geometry, by name, shape and type, before one of them is loaded.

Separate from reading, so that a strange checkpoint is refused in a moment and by name: nothing is dropped silently.
Names are Hugging Face's without the `model.` prefix.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from model.config import ModelConfig, UnsupportedModelError

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
READABLE_TYPES = ("F32", "F16", "BF16", "F64")
NUM_NAMED = 3  # tensors that a message names
HARMLESS = re.compile(r"rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$")  # computed from the config
META = "in Meta's own layout"
LAYER_NORM = re.compile(r"layers\.\d+\.input_layernorm\.weight")
UNQUANTISED = "give the unquantised checkpoint (Attend quantises itself: --precision) or a .gguf file"
STRANGE_KINDS = (  # how a tensor's name tells what it belongs to, and what to do
    (r"^_orig_mod\.", "named by torch.compile's wrapper; save the state of model._orig_mod, without this prefix"),
    (r"^module\.", "named by a wrapper of training; save the state of model.module, without this prefix"),
    (r"lora_|\.modules_to_save\.|^base_model\.", "a LoRA adapter's; merge it into its model first"),
    (r"\.(qweight|qzeros|g_idx)$", f"GPTQ's or AWQ's packed weights; {UNQUANTISED}"),
    (r"\.(absmax|quant_map|nested_\w+|SCB|weight_format|quant_state\..+)$", f"bitsandbytes' packing; {UNQUANTISED}"),
    (r"_(blocks|scales)$", f"MXFP4's packed weights; {UNQUANTISED}"),
    (r"\.(\w*_scale(_inv|_2)?|weight_(packed|shape|zero_point))$", f"FP8's or compressed-tensors'; {UNQUANTISED}"),
    (r"\.(scales|biases)$", f"packed weights' scales; {UNQUANTISED}"),
    (r"\.(wq|wk|wv|wo|w1|w2|w3)\.|\.attention_norm\.|^tok_embeddings\.", f"{META}; give the folder transformers reads"),
    (r"(q|k)_norm\.", "a norm of queries or keys, which the Llama architecture does not have"),
    (r"experts|block_sparse_moe|_exps\.", "an expert's, which the Llama architecture does not have"),
    (r"rope_factors_|rotary", "a rotary scaling that Attend does not know"),
    (r"self_attn\.\w+\.bias$", "a bias that config.json does not announce; say attention_bias: true there to use it"),
    (r"mlp\.\w+\.bias$", "a bias that config.json does not announce; say mlp_bias: true there to use it"),
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file announces it. shape: outermost axis first. file: the name of its file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str


def check_tensors(config: ModelConfig, stored: Iterable[StoredTensor]) -> None:
    """Compare what a checkpoint holds with what its geometry asks for; a tied model may hold a head of its own.

    Raises:
        UnsupportedModelError: a tensor is unknown, missing, stored twice, or of another shape or type.
    """
    found: dict[str, StoredTensor] = {}
    for tensor in stored:
        if tensor.name in found:
            files = f"{found[tensor.name].file} and {tensor.file}"
            raise UnsupportedModelError(f"the checkpoint holds tensor {tensor.name} twice, in {files}; keep one")
        found[tensor.name] = tensor
    if not any(LAYER_NORM.fullmatch(name) for name in found):  # all names are strange: the count may well be right
        _refuse_unknown([tensor for name, tensor in found.items() if name not in (EMBEDDING, HEAD, "norm.weight")])
    last_layer = config.num_layers - 1
    if f"layers.{last_layer}.input_layernorm.weight" not in found:  # a damaged count would name tensors without end
        raise UnsupportedModelError(
            f"the checkpoint has no layer {last_layer} ({len(found)} tensors in all), its geometry has "
            f"{config.num_layers}; fetch what is missing, or set num_hidden_layers right"
        )
    expected = _expected_shapes(config)
    _refuse_unknown([tensor for name, tensor in found.items() if name not in expected])
    _refuse_missing([name for name in expected if name not in found and not _may_be_absent(name, config, found)])
    for name, shape in expected.items():
        if name in found:
            _check_one(found[name], shape)


def settle_head(
    config: ModelConfig, tensors: Mapping[str, np.ndarray]
) -> tuple[ModelConfig, dict[str, np.ndarray], str | None]:
    """One embedding and one head: (geometry, tensors, a line about what was decided, if it needs saying).

    A stored head that differs from the embedding is used, whatever the geometry says: it was trained. An equal one is
    the embedding's copy. A tied model that holds only the head has its embedding there.
    """
    kept = dict(tensors)
    if not config.tie_word_embeddings or HEAD not in kept:
        return config, kept, None
    if EMBEDDING not in kept:
        kept[EMBEDDING] = kept.pop(HEAD)
        return config, kept, f"the tied embedding is stored as {HEAD} alone; it is used for both"
    if np.array_equal(kept[HEAD], kept[EMBEDDING]):
        del kept[HEAD]
        return config, kept, None
    line = f"config.json says tie_word_embeddings, but {HEAD} differs from {EMBEDDING}; both are used, untied"
    return replace(config, tie_word_embeddings=False), kept, line


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    products = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    layer: dict[str, tuple[int, ...]] = {
        f"{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")
    }
    for product, shape in products.items():
        layer[f"{product}.weight"] = shape
        if config.attention_bias if product.startswith("self_attn") else config.mlp_bias:
            layer[f"{product}.bias"] = shape[:1]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((EMBEDDING, HEAD), (config.vocab_size, hidden))
    shapes["norm.weight"] = (hidden,)
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _may_be_absent(name: str, config: ModelConfig, found: Mapping[str, StoredTensor]) -> bool:
    """Whether the other of a tied pair does instead."""
    return config.tie_word_embeddings and (name == HEAD or (name == EMBEDDING and HEAD in found))


def _refuse_unknown(unknown: list[StoredTensor]) -> None:
    if not unknown:
        return
    kind = next((kind for pattern, kind in STRANGE_KINDS if re.search(pattern, unknown[0].name)), None)
    count = "a tensor" if len(unknown) == 1 else f"{len(unknown)} tensors"
    what = f"; {unknown[0].name} is {kind}" if kind else "; leaving them out would change the answers"
    raise UnsupportedModelError(
        f"the checkpoint's tensors don't fit its geometry: {count} a plain Llama does not have, "
        f"{_listed([tensor.name for tensor in unknown])}{what}"
    )


def _refuse_missing(missing: list[str]) -> None:
    if missing == [HEAD]:
        raise UnsupportedModelError(
            f"config.json does not say tie_word_embeddings: true, so the model has a head of its own, but {HEAD} is "
            "missing; fetch it, or set tie_word_embeddings to true if the head is the embedding"
        )
    if missing:
        count = "a tensor is" if len(missing) == 1 else f"{len(missing)} tensors are"
        raise UnsupportedModelError(
            f"the checkpoint's tensors don't fit its geometry: {count} missing, {_listed(missing)}; fetch it again"
        )


def _check_one(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in READABLE_TYPES:
        raise UnsupportedModelError(
            f"tensor {tensor.name} in {tensor.file} is stored as {tensor.dtype}; Attend reads "
            f"{', '.join(READABLE_TYPES)}; {UNQUANTISED}"
        )
    if tensor.shape != shape:
        raise UnsupportedModelError(
            f"the checkpoint's tensors don't fit its geometry: {tensor.name} has shape {list(tensor.shape)}, expected "
            f"{list(shape)}; config.json and the weights must be of one model"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
