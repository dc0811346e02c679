"""The names that precisions share with the graph, apart from the code that makes them (which needs onnx)."""

from typing import Literal, get_args

PrecisionName = Literal["fp32", "int8", "w8a8", "int4"]
PRECISION_NAMES: tuple[str, ...] = get_args(PrecisionName)
DEFAULT_PRECISION: PrecisionName = "w8a8"
ROTATED_PRECISIONS = frozenset({"w8a8"})  # one scale for a whole row needs rows without outliers: model/rotation.py

PRODUCT_PARTS = {  # a layer's weights in the order of use -> what a checkpoint has of each, stacked in this order
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
HEAD_PRODUCT = "lm_head"


def weight_name(layer: int, product: str) -> str:
    """What a layer's weight is called in the exported graph."""
    return f"layers.{layer}.{product}"
