"""torch -> ONNX: the textbook transformer becomes the graph that serves.

Only the way of computing changes, never the weights: attention, its cache and its rotary positions become one
`com.microsoft::GroupQueryAttention` node, residual and norm one node, Q/K/V and gate/up one product each, and the
last layer and the head run only where logits are asked for. docs/adr/0002 says why. Offline only (torch).

Shapes: B batch, T tokens, P positions with logits, E hidden size, H/G query/kv heads, D head size, V vocabulary,
S capacity of a cache row.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from model.bundle import (
    EXTERNAL_DATA_NAME,
    GRAPH_NAME,
    LOGITS,
    STEP_INPUTS,
    TOP_K_GRAPH_NAME,
    WEIGHT_SUMS_GRAPH_NAME,
    past_key_value_names,
    present_name,
)
from model.config import ModelConfig
from model.precision import HEAD_PRODUCT, PRODUCT_PARTS, weight_name
from model.transformer import DecoderLayer, Transformer, rotary_tables

OPSET = 21
MICROSOFT = "com.microsoft"


def _multi_out(
    op: str, inputs: list[Tensor | None], shapes: list[list[int | torch.SymInt]], **attributes: int | float
) -> list[Tensor]:
    """One ONNX Runtime operator with float32 outputs of the given shapes, as a symbolic node of the traced graph."""
    return list(
        torch.onnx.ops.symbolic_multi_out(
            f"{MICROSOFT}::{op}", inputs, attributes, dtypes=[torch.float32] * len(shapes), shapes=shapes, version=1
        )
    )


def _fused_linear(*layers: nn.Linear) -> nn.Linear:
    """Several products of the same input as one: weights (and biases) stacked along the output axis."""
    fused = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), device="meta")
    fused.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
    return fused


class CachedAttention(nn.Module):
    """Attention over a cache row: reads past keys and values, appends this step's, in one node."""

    def __init__(self, layer: DecoderLayer, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        attention = layer.self_attn
        self.qkv_proj = _fused_linear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], lengths: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From x [B, T, E], past key and value [B, G, S, D] to heads [B, T, H * D], present key and value (as past)."""
        config = self.config
        packed = self.qkv_proj(x)  # [B, T, (H + 2G) * D]
        output_shape = [packed.shape[0], packed.shape[1], config.num_heads * config.head_dim]
        output, key, value = _multi_out(
            "GroupQueryAttention",
            [packed, None, None, *past, *lengths, *rotary],
            [output_shape, list(past[0].shape), list(past[1].shape)],
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            do_rotary=1,
        )
        return output, key, value


class GatedFeedForward(nn.Module):
    """SwiGLU with gate and up computed by one product."""

    def __init__(self, layer: DecoderLayer, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = [config.intermediate_size, config.intermediate_size]
        self.gate_up_proj = _fused_linear(layer.mlp.gate_proj, layer.mlp.up_proj)
        self.down_proj = layer.mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:  # [B, T, E] -> [B, T, E]
        gate, up = self.gate_up_proj(x).split(self.sizes, dim=-1)
        return self.down_proj(gate * torch.sigmoid(gate) * up)


class ServingGraph(nn.Module):
    """The graph that is exported: token ids and cache rows in, logits at chosen positions and the same rows out."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        config = transformer.config
        self.config = config
        self.embed_tokens = transformer.embed_tokens
        self.lm_head = transformer.lm_head
        self.attentions = nn.ModuleList(CachedAttention(layer, config) for layer in transformer.layers)
        self.feed_forwards = nn.ModuleList(GatedFeedForward(layer, config) for layer in transformer.layers)
        norms = [
            norm for layer in transformer.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self.norms = nn.ModuleList([*norms, transformer.norm])
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(
        self,
        input_ids: Tensor,
        last_index: Tensor,
        max_total_tokens: Tensor,
        logit_positions: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """Run T tokens of B rows.

        input_ids: int64 [B, T]. last_index: int32 [B], index of each row's last valid token, counting its past.
        max_total_tokens: int32 scalar, the longest row's tokens including this step. logit_positions: int64 [B, P],
        indices into T. past: key and value of each layer, float32 [B, G, S, D].
        Returns logits float32 [B, P, V] and the updated key and value of each layer.
        """
        residual = self.embed_tokens(input_ids)  # [B, T, E]
        x = self.norms[0](residual)
        presents: list[Tensor] = []
        for index, (attention, feed_forward) in enumerate(zip(self.attentions, self.feed_forwards, strict=True)):
            pair = (past[2 * index], past[2 * index + 1])
            heads, key, value = attention(x, pair, (last_index, max_total_tokens), (self.cos, self.sin))
            presents += [key, value]
            if index == self.config.num_layers - 1:  # nothing reads the other positions any more
                heads, residual = _at_positions(heads, logit_positions), _at_positions(residual, logit_positions)
            x, residual = self._add_and_norm(attention.o_proj(heads), residual, 2 * index + 1)
            x, residual = self._add_and_norm(feed_forward(x), residual, 2 * index + 2)
        return self.lm_head(x), *presents

    def _add_and_norm(self, x: Tensor, residual: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Add the residual, then normalise: (normed, sum), both [B, T, E], in one node."""
        norm, shape = self.norms[index], list(x.shape)
        outputs = _multi_out(
            "SkipSimplifiedLayerNormalization", [x, residual, norm.weight], [shape] * 4, epsilon=norm.eps
        )
        return outputs[0], outputs[3]


def _at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """The rows of x [B, T, N] at positions [B, P]: [B, P, N]."""
    return torch.gather(x, 1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def trace_graph(transformer: Transformer) -> onnx.ModelProto:
    """The serving graph in float32, traced by torch.onnx, its weights in memory."""
    graph = ServingGraph(transformer).eval().requires_grad_(False)
    config = transformer.config
    batch, tokens, capacity, positions = (torch.export.Dim(n) for n in ("batch", "tokens", "capacity", "positions"))
    past_names = past_key_value_names(config.num_layers)
    past = tuple(torch.zeros(2, config.num_kv_heads, 32, config.head_dim) for _ in past_names)
    example = (
        torch.zeros(2, 3, dtype=torch.int64),
        torch.full((2,), 2, dtype=torch.int32),
        torch.tensor(3, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.int64),
    )
    dynamic: tuple[Any, ...] = (
        {0: batch, 1: tokens},
        {0: batch},
        {},
        {0: batch, 1: positions},
        ({0: batch, 2: capacity},) * len(past),
    )
    with _quiet():
        program = torch.onnx.export(
            graph,
            (*example, *past),
            input_names=[*STEP_INPUTS, *past_names],
            output_names=[LOGITS, *map(present_name, past_names)],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
        )
    assert program is not None
    model = program.model_proto
    _drop_unused_outputs(model)
    _drop_metadata(model)
    _name_weights(model, config.num_layers)
    return model


def save_graph(model: onnx.ModelProto, folder: Path) -> None:
    """Write the graph and, beside it, one file with its weights."""
    onnx.save_model(
        model,
        str(folder / GRAPH_NAME),
        save_as_external_data=True,
        location=EXTERNAL_DATA_NAME,
        all_tensors_to_one_file=True,
    )


def save_sampler_graphs(folder: Path) -> None:
    """Write the sampler's graphs.

    top_k: logits float32 [B, V], count int64 [1] -> the `count` largest of each row and their ids, falling, ties by id.
    weight_sums: logits float32 [B, V], largest and inverse_temperature float32 [B, 1] -> float32 [B], the sum of
    exp((logits - largest) * inverse_temperature) of each row. It is one over the likeliest's softmax: that kernel works
    row by row, so a row's sum has the same bits in every batch, as a plain ReduceSum's has not.
    """
    describe, float32, int64 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    make_node, logits = onnx.helper.make_node, describe("logits", float32, ["batch", "vocabulary"])
    top_k = [make_node("TopK", ["logits", "count"], ["values", "token_ids"], axis=-1, largest=1, sorted=1)]
    outputs = [describe("values", float32, ["batch", "count"]), describe("token_ids", int64, ["batch", "count"])]
    _save_small_graph(folder / TOP_K_GRAPH_NAME, top_k, [logits, describe("count", int64, [1])], outputs)
    weight_sums = [
        make_node("Sub", ["logits", "largest"], ["below"]),
        make_node("Mul", ["below", "inverse_temperature"], ["scaled"]),
        make_node("Softmax", ["scaled"], ["shares"], axis=-1),
        make_node("Constant", [], ["axes"], value_ints=[-1]),
        make_node("ReduceMax", ["shares", "axes"], ["share"], keepdims=0),
        make_node("Reciprocal", ["share"], ["sums"]),
    ]
    columns = [describe(name, float32, ["batch", 1]) for name in ("largest", "inverse_temperature")]
    sums = [describe("sums", float32, ["batch"])]
    _save_small_graph(folder / WEIGHT_SUMS_GRAPH_NAME, weight_sums, [logits, *columns], sums)


def _save_small_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> None:
    graph = onnx.helper.make_graph(nodes, path.stem, inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save_model(model, str(path))


def _drop_unused_outputs(model: onnx.ModelProto) -> None:
    """Leave optional outputs that nothing reads unnamed, so that no kernel computes them."""
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    for node in model.graph.node:
        if node.domain == MICROSOFT:
            node.output[:] = [name if name in used else "" for name in node.output]
            while node.output and not node.output[-1]:
                node.output.pop()


def _name_weights(model: onnx.ModelProto, num_layers: int) -> None:
    """Call each product's weight by its place, `layers.3.qkv_proj`: quantize.py looks up a source's blocks by it."""
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    names = [weight_name(layer, product) for layer in range(num_layers) for product in PRODUCT_PARTS] + [HEAD_PRODUCT]
    new_names = {node.input[1]: name for node, name in zip(products, names, strict=True)}
    for node in products:
        node.input[1] = new_names[node.input[1]]
    for tensor in model.graph.initializer:
        tensor.name = new_names.get(tensor.name, tensor.name)


def _drop_metadata(model: onnx.ModelProto) -> None:
    """Forget where the tracer ran (file names, stack traces): the same weights give the same file anywhere."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's export chatter (prints, log lines, deprecations) off the user's terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
