"""How far each phase of a bundle is from what this machine can do at best: `python -m loadtest.ceilings BUNDLE`.

Ceilings are measured in the same run: bytes read per second by as many threads as there are cores, and operations per
second of one large matrix product in float32 and in uint8 x int8. A phase's floor is the larger of two times: to read
each weight and each cached key and value once, and to do each multiplication and addition of the weight products once.
Attention's own operations, norms and activations are left out of it: they are part of the distance.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from model.bundle import Bundle, open_bundle
from model.decoder import Decoder
from model.kv_cache import KVCache

PAST_TOKENS = 256
PREFILL_TOKENS = 256
ROWS = (1, 4, 16)
REPEATS = 9
BLOCK_BYTES = 128 << 20
PRODUCT = (256, 1536, 3072)  # rows, inputs, outputs


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do: bytes and operations per second."""

    bytes_s: float
    float_ops_s: float
    integer_ops_s: float


def times_of(run: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of several runs."""
    times = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - started_s)
    return times


def best_of(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs: a ceiling is what was reached once."""
    return min(times_of(run, REPEATS))


def measure_ceilings(num_threads: int) -> Ceilings:
    """Read memory and multiply matrices, each as fast as it goes."""
    blocks = [np.ones(BLOCK_BYTES // 4, np.float32) for _ in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as pool:
        read_s = best_of(lambda: list(pool.map(np.sum, blocks)))
    operations = 2 * np.prod(PRODUCT)
    return Ceilings(
        bytes_s=num_threads * BLOCK_BYTES / read_s,
        float_ops_s=operations / best_of(_product(num_threads, integer=False)),
        integer_ops_s=operations / best_of(_product(num_threads, integer=True)),
    )


def _product(num_threads: int, *, integer: bool) -> Callable[[], object]:
    """A session that multiplies once a call."""
    num_rows, num_inputs, num_outputs = PRODUCT
    random = np.random.default_rng(0)
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, [num_rows, num_inputs])
    y = helper.make_tensor_value_info("y", TensorProto.INT32 if integer else TensorProto.FLOAT, [num_rows, num_outputs])
    values = random.integers(-60, 60, (num_inputs, num_outputs))
    weight = numpy_helper.from_array(values.astype(np.int8 if integer else np.float32), "w")
    node = helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": random.integers(0, 255, (num_rows, num_inputs)).astype(np.uint8 if integer else np.float32)}
    return lambda: session.run(None, feeds)


def product_bytes_and_weights(bundle: Bundle) -> tuple[int, int]:
    """Bytes and number of the weights that every token is multiplied with, head included, embedding not."""
    config = bundle.config
    layer = config.hidden_size * (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer += 3 * config.hidden_size * config.intermediate_size
    num_weights = config.num_layers * layer + config.vocab_size * config.hidden_size
    products = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat")
    graph = onnx.load(bundle.graph_path, load_external_data=False).graph
    sizes = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node if node.op_type in products for name in node.input if name in sizes}
    width = {TensorProto.FLOAT: 4, TensorProto.INT8: 1, TensorProto.UINT8: 1}
    return sum(int(np.prod(sizes[name].dims)) * width[sizes[name].data_type] for name in used), num_weights


def main() -> None:
    """Measure and print."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m loadtest.ceilings BUNDLE")
    bundle, num_threads = open_bundle(Path(sys.argv[1])), os.cpu_count() or 1
    ceilings = measure_ceilings(num_threads)
    weight_bytes, num_weights = product_bytes_and_weights(bundle)
    ops_s = ceilings.float_ops_s if bundle.manifest.precision == "fp32" else ceilings.integer_ops_s
    decoder = Decoder(bundle, KVCache(bundle.config, max(ROWS), PAST_TOKENS + 64))
    table = Table(title=f"{bundle.config.model_id}, {bundle.manifest.precision}, {num_threads} threads")
    for column in ("phase", "MB read", "GOP", "floor ms", "best ms", "median ms", "best / floor"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    head = bundle.config.vocab_size * bundle.config.hidden_size
    prompt = np.arange(PREFILL_TOKENS)
    phases: list[tuple[str, int, int, Callable[[], object]]] = [
        (
            f"prefill of {PREFILL_TOKENS} tokens",
            weight_bytes + PREFILL_TOKENS * bundle.config.kv_bytes_per_token,
            2 * ((num_weights - head) * PREFILL_TOKENS + head),
            lambda: decoder.prefill(0, prompt, 0),
        )
    ]
    for rows in ROWS:
        past = np.full(rows, PAST_TOKENS)
        num_bytes = weight_bytes + rows * PAST_TOKENS * bundle.config.kv_bytes_per_token
        run = partial(decoder.decode, prompt[:rows], past)
        phases.append((f"decode, {rows} rows of {PAST_TOKENS}", num_bytes, 2 * num_weights * rows, run))
    for name, num_bytes, operations, phase in phases:
        times = times_of(phase, REPEATS * 3)
        floor_s = max(num_bytes / ceilings.bytes_s, operations / ops_s)
        numbers = (num_bytes / 1e6, operations / 1e9, floor_s * 1e3, min(times) * 1e3, statistics.median(times) * 1e3)
        table.add_row(name, *(f"{number:.1f}" for number in numbers), f"{min(times) / floor_s:.2f}")
    console = Console()
    console.print(
        f"ceilings: {ceilings.bytes_s / 1e9:.1f} GB/s read, {ceilings.float_ops_s / 1e9:.0f} GFLOP/s float32, "
        f"{ceilings.integer_ops_s / 1e9:.0f} GOP/s uint8 x int8"
    )
    console.print(table)


if __name__ == "__main__":
    main()
