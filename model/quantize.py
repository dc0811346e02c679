"""ONNX -> ONNX of another precision. Offline only.

Separate from export.py: tracing knows torch, this knows only the traced graph. A precision is one function from graph
to graph; add one to `PRECISIONS` and it is offered everywhere.
"""

import logging
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

INT8_BLOCK = 64
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level: activations as int8 too, which selects the integer kernels
EMBEDDING_WEIGHT = "embed_tokens.weight"
HEAD_OUTPUT = "logits"


def to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep float32; a head tied to the embedding is stored once and transposed when the graph is loaded."""
    head, weight = _head_and_weight(model)
    embedding = _initializer(model, EMBEDDING_WEIGHT)
    if not _is_tied(weight, embedding):
        return model
    model.graph.initializer.remove(weight)
    transpose = helper.make_node("Transpose", [EMBEDDING_WEIGHT], [weight.name], name="head_weight", perm=[1, 0])
    model.graph.node.insert(list(model.graph.node).index(head), transpose)
    return model


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every weight product in blocks of 64 symmetric int8 values with one float32 scale each (MatMulNBits).

    A tied embedding reads the head's int8 blocks, so the largest tensor is stored once.
    """
    tied = _is_tied(_head_and_weight(model)[1], _initializer(model, EMBEDDING_WEIGHT))
    config = DefaultWeightOnlyQuantConfig(
        block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_ACTIVATIONS, bits=8
    )
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)  # a line a node
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    quantized: onnx.ModelProto = quantizer.model.model
    if tied:
        _gather_from_head(quantized)
    return quantized


PRECISIONS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {"fp32": to_fp32, "int8": to_int8}


def _gather_from_head(model: onnx.ModelProto) -> None:
    """Replace the embedding's Gather by one that dequantises the rows it needs from the head's blocks."""
    graph = model.graph
    head = next(node for node in graph.node if HEAD_OUTPUT in node.output)
    gather = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] == EMBEDDING_WEIGHT)
    blocks, scales = _initializer(model, head.input[1]), _initializer(model, head.input[2])
    vocabulary, num_blocks, block_size = blocks.dims
    hidden_size = num_blocks * block_size
    if hidden_size != _initializer(model, EMBEDDING_WEIGHT).dims[1]:
        return  # the last block is padded: keep the float32 table
    row_scales = numpy_helper.to_array(scales).reshape(vocabulary, num_blocks, 1)
    shape = numpy_helper.from_array(np.array([0, 0, hidden_size], np.int64), "embedding_shape")
    graph.initializer.extend([numpy_helper.from_array(row_scales, "embedding_scales"), shape])
    position = list(graph.node).index(gather)
    output = gather.output[0]
    graph.node.remove(gather)
    rows = helper.make_node(
        "GatherBlockQuantized",
        [blocks.name, gather.input[1], "embedding_scales"],
        ["embedding_blocks"],
        name="embedding_gather",
        domain="com.microsoft",
        bits=8,
        block_size=block_size,
        gather_axis=0,
        quantize_axis=2,
    )
    # [B, T, blocks, 64] -> [B, T, E]; a zero in the shape keeps that axis
    merge = helper.make_node("Reshape", ["embedding_blocks", "embedding_shape"], [output], name="embedding_reshape")
    graph.node.insert(position, merge)
    graph.node.insert(position, rows)
    graph.initializer.remove(_initializer(model, EMBEDDING_WEIGHT))


def _head_and_weight(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """The product that makes the logits and its weight [E, V]."""
    head = next(node for node in model.graph.node if HEAD_OUTPUT in node.output)
    return head, _initializer(model, head.input[1])


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor


def _is_tied(head_weight: onnx.TensorProto, embedding: onnx.TensorProto) -> bool:
    """Whether the head's weight is the embedding transposed, value for value."""
    if list(head_weight.dims) != list(reversed(embedding.dims)):
        return False
    return bool(np.array_equal(numpy_helper.to_array(head_weight).T, numpy_helper.to_array(embedding)))
