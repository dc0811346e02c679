"""ONNX -> ONNX of another precision. Offline only.

Separate from export.py: tracing knows torch, this knows only the traced graph. A precision is one function from graph
to graph; add one to `PRECISIONS` and it is offered everywhere. docs/adr/0014 says what each one costs and is for.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from model.gguf_file import FourBitBlocks

MICROSOFT = "com.microsoft"
INT8_BLOCK = 64
INT4_BLOCK = 32  # other sizes take another kernel for one row than for many: answers would depend on the batch
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: activations as int8 too, which selects the integer kernels
LARGEST_INT8 = 127
# Processors without VNNI add two neighbouring products in 16 bits: 255 * 128 fits, 255 * 129 does not.
LARGEST_PAIR = 128
ZERO_POINT = 128  # of an activation, as uint8
NORM_RANGE = 4.0  # what a rotated row reaches in units of its root mean square; 1 in 16,000 values lies outside
SMALLEST = 1e-6
SPREAD_PRODUCT = "down_proj"  # reads the product of gate and up, whose loud channels a rotation of weights cannot reach
SPREAD_BLOCK = 16  # channels
MOMENT_DAMPING = 0.01  # of the mean diagonal
ROUNDING_BLOCK = 64  # rows whose errors are passed on together
OFFSETS = ".offsets"
EMBEDDING_WEIGHT = "embed_tokens.weight"
HEAD_OUTPUT = "logits"


@dataclass(frozen=True)
class WeightFacts:
    """What is known of the weights beyond the graph, by the weight's name; a precision uses what it can.

    four_bit: the source's own blocks, whose rows, stacked, are the weight. second_moments: float32 [K, K], the sum of
    outer products of the rows that the product reads on a calibration text.
    """

    four_bit: Mapping[str, Sequence[FourBitBlocks]] = field(default_factory=dict)
    second_moments: Mapping[str, np.ndarray] = field(default_factory=dict)


def to_fp32(model: onnx.ModelProto, _: WeightFacts) -> onnx.ModelProto:
    """Keep float32; a head tied to the embedding is stored once and transposed when the graph is loaded."""
    head, weight = _head_and_weight(model)
    embedding = _initializer(model.graph, EMBEDDING_WEIGHT)
    if not _is_tied(weight, embedding):
        return model
    model.graph.initializer.remove(weight)
    transpose = helper.make_node("Transpose", [EMBEDDING_WEIGHT], [weight.name], name="head_weight", perm=[1, 0])
    model.graph.node.insert(list(model.graph.node).index(head), transpose)
    return model


def to_int8(model: onnx.ModelProto, _: WeightFacts) -> onnx.ModelProto:
    """Every weight product in blocks of 64 symmetric int8 values with one float32 scale each (MatMulNBits).

    A tied embedding reads the head's int8 blocks, so the largest tensor is stored once.
    """
    tied = _is_tied(_head_and_weight(model)[1], _initializer(model.graph, EMBEDDING_WEIGHT))
    quantized = _in_blocks(model, bits=8, block_size=INT8_BLOCK)
    if tied:
        _gather_from_head(quantized)
    return quantized


def to_w8a8(model: onnx.ModelProto, facts: WeightFacts) -> onnx.ModelProto:
    """Every weight product in integers: int8 with a scale per output channel times uint8 with a scale per token.

    The sums are exact, so they are the same in every batch. Expects a rotated transformer (model/rotation.py).
    """
    graph = model.graph
    norms = _norm_outputs(graph)
    splits = {node.input[0]: node for node in graph.node if node.op_type == "Split"}
    _add(graph, "activation_scale", np.array(1 / LARGEST_INT8, np.float32))
    _add(graph, "norm_scale", np.array(NORM_RANGE / LARGEST_INT8, np.float32))
    _add(graph, "zero_point", np.array(ZERO_POINT, np.uint8))
    _add(graph, "last_axis", np.array([-1], np.int64))
    _add(graph, "smallest", np.array(SMALLEST, np.float32))
    nodes: list[onnx.NodeProto] = []
    divided: set[str] = set()
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[0] in norms:
            split = splits.get(node.output[0])
            outputs = list(node.output if split is None else split.output)
            divided.update(node.output)
            nodes += _product_of_norm(graph, node, facts.second_moments[node.input[1]], outputs)
        elif node.op_type == "MatMul":
            nodes += _product_of_any(graph, node, facts.second_moments[node.input[1]])
        elif node.op_type != "Split" or node.input[0] not in divided:
            nodes.append(node)
    _replace_nodes(graph, nodes)
    _quantize_embedding(graph)
    return model


def to_int4(model: onnx.ModelProto, facts: WeightFacts) -> onnx.ModelProto:
    """Blocks of 32 4-bit codes; the head in int8. A weight that its source holds in such blocks is kept to the bit.

    A source's block is w = scale * code + minimum. The product of scale * (code - 8) is MatMulNBits's symmetric kind;
    what is missing, (minimum + 8 * scale) times the sum of the block's inputs, is a product 32 times smaller.
    """
    graph = model.graph
    head, weight = _head_and_weight(model)
    tied = _is_tied(weight, _initializer(model.graph, EMBEDDING_WEIGHT))
    nodes: list[onnx.NodeProto] = []
    summed: set[str] = set()
    for node in graph.node:
        source = facts.four_bit.get(node.input[1]) if node.op_type == "MatMul" else None
        nodes += [node] if source is None else _source_product(graph, node, source, summed)
    _replace_nodes(graph, nodes)
    corrections = [node.name for node in nodes if node.op_type == "MatMul" and node.name.endswith(OFFSETS)]
    model = _in_blocks(model, bits=4, block_size=INT4_BLOCK, keep=[*corrections, head.name])
    model = _in_blocks(model, bits=8, block_size=INT4_BLOCK, keep=corrections)
    if tied:
        _gather_from_head(model)
    return model


PRECISIONS: Mapping[str, Callable[[onnx.ModelProto, WeightFacts], onnx.ModelProto]] = {
    "fp32": to_fp32,
    "int8": to_int8,
    "w8a8": to_w8a8,
    "int4": to_int4,
}


def _norm_outputs(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that leave an RMS norm: for each row, its root mean square is one."""
    outputs = {node.output[0] for node in graph.node if node.op_type == "SkipSimplifiedLayerNormalization"}
    first = next(node for node in graph.node if node.op_type == "MatMul")  # what it reads leaves the very first norm
    return outputs | {first.input[0]}


def _product_of_norm(
    graph: onnx.GraphProto, node: onnx.NodeProto, moment: np.ndarray, outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """Nodes that do a MatMul in integers on rows that their root mean square has divided: one scale serves all.

    outputs: the result, or the equal parts of it that are wanted, each then computed on its own.
    """
    inputs, name = node.input[0], node.input[1]
    codes, scales = _round_channels(_take(graph, name), moment)
    nodes = [helper.make_node("QuantizeLinear", [inputs, "norm_scale", "zero_point"], [f"{name}.input"])]
    parts = zip(outputs, np.split(codes, len(outputs), 1), np.split(scales, len(outputs)), strict=True)
    for index, (output, part_codes, part_scales) in enumerate(parts):
        part = name if len(outputs) == 1 else f"{name}.{index}"
        nodes.append(_integer_product(graph, part, f"{name}.input", "norm_scale", (part_codes, part_scales), output))
    return nodes


def _product_of_any(graph: onnx.GraphProto, node: onnx.NodeProto, moment: np.ndarray) -> list[onnx.NodeProto]:
    """Nodes that do a MatMul in integers, each row scaled by its own largest value."""
    inputs, name = node.input[0], node.input[1]
    weight = _take(graph, name)
    spread: list[onnx.NodeProto] = []
    if name.endswith(SPREAD_PRODUCT) and len(weight) % SPREAD_BLOCK == 0:
        weight, moment = _mix_rows(weight), _mix_rows(_mix_rows(moment).T)
        spread, inputs = _spread_nodes(graph, inputs, name), f"{name}.spread"
    weights = _round_channels(weight, moment)
    return [
        *spread,
        helper.make_node("Abs", [inputs], [f"{name}.magnitudes"]),
        helper.make_node("ReduceMax", [f"{name}.magnitudes", "last_axis"], [f"{name}.peak"], keepdims=1),
        helper.make_node("Max", [f"{name}.peak", "smallest"], [f"{name}.largest"]),
        helper.make_node("Div", [inputs, f"{name}.largest"], [f"{name}.unit"]),
        helper.make_node("QuantizeLinear", [f"{name}.unit", "activation_scale", "zero_point"], [f"{name}.input"]),
        _integer_product(graph, name, f"{name}.input", "activation_scale", weights, f"{name}.product"),
        helper.make_node("Mul", [f"{name}.product", f"{name}.largest"], [node.output[0]]),
    ]


def _integer_product(
    graph: onnx.GraphProto,
    name: str,
    inputs: str,
    input_scale: str,
    weights: tuple[np.ndarray, np.ndarray],
    output: str,
) -> onnx.NodeProto:
    """The product of uint8 inputs and int8 weights, (codes [K, N], scales [N]), as float32."""
    codes, scales = _add(graph, f"{name}.codes", weights[0]), _add(graph, f"{name}.scales", weights[1])
    operands = [inputs, codes, input_scale, scales, "zero_point"]
    return helper.make_node("MatMulIntegerToFloat", operands, [output], name=name, domain=MICROSOFT)


def _spread_nodes(graph: onnx.GraphProto, inputs: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that mix each block of neighbouring channels: one loud channel becomes several half as loud.

    The weight has been mixed the same way, which undoes it. No rotation of weights alone reaches this place, since what
    comes before it, a product of two activations, commutes with none (Ashkboos et al. 2024).
    """
    hadamard = _add_once(graph, "hadamard", _hadamard(SPREAD_BLOCK))
    blocks = _add_once(graph, "spread_blocks", np.array([0, 0, -1, SPREAD_BLOCK], np.int64))
    row = _add_once(graph, "spread_row", np.array([0, 0, -1], np.int64))
    return [
        helper.make_node("Reshape", [inputs, blocks], [f"{name}.blocks"]),
        helper.make_node("MatMul", [f"{name}.blocks", hadamard], [f"{name}.mixed"]),
        helper.make_node("Reshape", [f"{name}.mixed", row], [f"{name}.spread"]),
    ]


def _mix_rows(matrix: np.ndarray) -> np.ndarray:
    """[K, N], each block of its rows mixed as `_spread_nodes` mixes the inputs."""
    blocks = matrix.reshape(-1, SPREAD_BLOCK, matrix.shape[1])
    mixed: np.ndarray = np.matmul(_hadamard(SPREAD_BLOCK), blocks).reshape(matrix.shape)
    return mixed


def _hadamard(size: int) -> np.ndarray:
    """The symmetric orthogonal Hadamard matrix, float32 [size, size]; size is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    unit: np.ndarray = matrix / np.sqrt(np.float32(size))
    return unit


def _round_channels(weight: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight [K, N] as int8 codes and a float32 scale for each of the N columns.

    Rows are rounded in turn, and what rounding a row has done to the outputs is made good by those that follow, as far
    as their inputs move together: `moment` [K, K]. Source: Frantar et al. 2022 (GPTQ). Two neighbouring rows that a
    kernel adds in 16 bits cannot overflow, whatever the activations are.
    """
    num_rows, rest = len(weight), weight.astype(np.float32)
    scales = _channel_scales(rest)
    damping = MOMENT_DAMPING * np.trace(moment) / num_rows + 1e-12
    inverse = np.linalg.inv(moment.astype(np.float64) + damping * np.eye(num_rows))
    spread = np.linalg.cholesky(inverse).T.astype(
        np.float32
    )  # row k: how an error in row k is shared by those after it
    codes = np.zeros_like(rest)
    for start in range(0, num_rows, ROUNDING_BLOCK):
        end = min(start + ROUNDING_BLOCK, num_rows)
        errors = np.empty((end - start, rest.shape[1]), np.float32)
        for row in range(start, end):
            before = codes[row - 1] if row % 2 else 0.0
            lowest = np.maximum(-LARGEST_INT8, -LARGEST_PAIR - np.minimum(before, 0))
            highest = np.minimum(LARGEST_INT8, LARGEST_PAIR - np.maximum(before, 0))
            codes[row] = np.clip(np.rint(rest[row] / scales), lowest, highest)
            errors[row - start] = (rest[row] - codes[row] * scales) / spread[row, row]
            rest[row + 1 : end] -= spread[row, row + 1 : end, None] * errors[row - start]
        rest[end:] -= spread[start:end, end:].T @ errors
    return codes.astype(np.int8), scales


def _channel_scales(weight: np.ndarray) -> np.ndarray:
    """The scale of each column of [K, N]: its largest value fits, and so does its largest pair of neighbours."""
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    same_sign = np.maximum(np.maximum(pairs, 0).sum(1).max(0), np.maximum(-pairs, 0).sum(1).max(0))
    largest = np.maximum(np.abs(weight).max(0) / LARGEST_INT8, same_sign / (LARGEST_PAIR - 1))  # both may be rounded up
    scales: np.ndarray = np.maximum(largest, 1e-12).astype(np.float32)
    return scales


def _source_product(
    graph: onnx.GraphProto, node: onnx.NodeProto, parts: Sequence[FourBitBlocks], summed: set[str]
) -> list[onnx.NodeProto]:
    """Nodes that do a MatMul with a source's own 4-bit blocks. summed: inputs whose blocks are summed already."""
    inputs, name, output = node.input[0], node.input[1], node.output[0]
    codes = np.concatenate([part.codes for part in parts])  # [N, K]
    scales = np.concatenate([part.scales for part in parts])  # [N, K / 32]
    minima = np.concatenate([part.minima for part in parts])
    assert _take(graph, name).shape == codes.T.shape, f"{name}: the blocks have another shape"
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(*scales.shape, INT4_BLOCK // 2)
    offsets = np.ascontiguousarray((minima + 8 * scales).T)  # [K / 32, N]
    has_offsets = bool(offsets.any())
    product = helper.make_node(
        "MatMulNBits",
        [inputs, _add(graph, f"{name}.codes", packed), _add(graph, f"{name}.scales", scales.reshape(-1))],
        [f"{name}.product" if has_offsets else output],
        name=name,
        domain=MICROSOFT,
        K=codes.shape[1],
        N=codes.shape[0],
        bits=4,
        block_size=INT4_BLOCK,
        accuracy_level=INT8_ACTIVATIONS,
    )
    if not has_offsets:
        return [product]
    nodes = []
    if inputs not in summed:
        summed.add(inputs)
        # a product and no ReduceSum: that one adds in another order for one row than for many
        is_member = np.repeat(np.eye(len(offsets), dtype=np.float32), INT4_BLOCK, axis=0)
        membership = _add_once(graph, f"blocks_of_{codes.shape[1]}", is_member)
        nodes.append(helper.make_node("MatMul", [inputs, membership], [f"{inputs}.sums"], name=f"{inputs}{OFFSETS}"))
    _add(graph, f"{name}{OFFSETS}", offsets)
    return [
        *nodes,
        helper.make_node("MatMul", [f"{inputs}.sums", f"{name}{OFFSETS}"], [f"{name}.rest"], name=f"{name}{OFFSETS}"),
        product,
        helper.make_node("Add", [f"{name}.product", f"{name}.rest"], [output]),
    ]


def _quantize_embedding(graph: onnx.GraphProto) -> None:
    """Store the embedding in blocks of 32 int8 values; a row is dequantised when it is looked up."""
    table = numpy_helper.to_array(_initializer(graph, EMBEDDING_WEIGHT))
    if table.shape[1] % INT4_BLOCK:
        return  # the last block would be padded: keep the float32 table
    blocks = table.reshape(len(table), -1, INT4_BLOCK)
    scales = (np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-12) / LARGEST_INT8).astype(np.float32)
    codes = _add(graph, "embedding_codes", (np.rint(blocks / scales) + ZERO_POINT).astype(np.uint8))
    _gather_blocks(graph, _initializer(graph, codes), scales)


def _gather_from_head(model: onnx.ModelProto) -> None:
    """Let the embedding read the head's int8 blocks."""
    graph = model.graph
    head = next(node for node in graph.node if HEAD_OUTPUT in node.output)
    blocks, scales = _initializer(graph, head.input[1]), _initializer(graph, head.input[2])
    vocabulary, num_blocks, block_size = blocks.dims
    if num_blocks * block_size != _initializer(graph, EMBEDDING_WEIGHT).dims[1]:
        return  # the last block is padded: keep the float32 table
    _gather_blocks(graph, blocks, numpy_helper.to_array(scales).reshape(vocabulary, num_blocks, 1))


def _gather_blocks(graph: onnx.GraphProto, blocks: onnx.TensorProto, scales: np.ndarray) -> None:
    """Replace the embedding's table by int8 blocks, uint8 [V, blocks, size], and their scales [V, blocks, 1]."""
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == EMBEDDING_WEIGHT)
    position = list(graph.node).index(gather)
    hidden_size = blocks.dims[1] * blocks.dims[2]
    rows = helper.make_node(
        "GatherBlockQuantized",
        [blocks.name, gather.input[1], _add(graph, "embedding_scales", scales)],
        ["embedding_blocks"],
        name="embedding_gather",
        domain=MICROSOFT,
        bits=8,
        block_size=blocks.dims[2],
        gather_axis=0,
        quantize_axis=2,
    )
    # [B, T, blocks, size] -> [B, T, E]; a zero in the shape keeps that axis
    shape = _add(graph, "embedding_shape", np.array([0, 0, hidden_size], np.int64))
    merge = helper.make_node("Reshape", ["embedding_blocks", shape], [gather.output[0]], name="embedding_reshape")
    graph.node.remove(gather)
    graph.node.insert(position, merge)
    graph.node.insert(position, rows)
    graph.initializer.remove(_initializer(graph, EMBEDDING_WEIGHT))


def _in_blocks(model: onnx.ModelProto, bits: int, block_size: int, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """Every MatMul of a stored weight but those named in `keep` as MatMulNBits; 4 bits get zero points as well."""
    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size, is_symmetric=bits == 8, accuracy_level=INT8_ACTIVATIONS, bits=bits
    )
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)  # a line a node
    quantizer = MatMulNBitsQuantizer(model, algo_config=config, nodes_to_exclude=list(keep))
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _head_and_weight(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """The product that makes the logits and its weight [E, V]."""
    head = next(node for node in model.graph.node if HEAD_OUTPUT in node.output)
    return head, _initializer(model.graph, head.input[1])


def _initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name == name)
    return tensor


def _add(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    """Store a tensor; returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def _add_once(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    """Store a tensor that several nodes share, unless it is there already; returns its name."""
    return name if any(tensor.name == name for tensor in graph.initializer) else _add(graph, name, values)


def _take(graph: onnx.GraphProto, name: str) -> np.ndarray:
    """Remove a stored tensor and return its values."""
    tensor = _initializer(graph, name)
    graph.initializer.remove(tensor)
    return numpy_helper.to_array(tensor)


def _replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)


def _is_tied(head_weight: onnx.TensorProto, embedding: onnx.TensorProto) -> bool:
    """Whether the head's weight is the embedding transposed, value for value."""
    if list(head_weight.dims) != list(reversed(embedding.dims)):
        return False
    return bool(np.array_equal(numpy_helper.to_array(head_weight).T, numpy_helper.to_array(embedding)))
