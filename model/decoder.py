"""Decoder: token ids in, logits out, keys and values written in place. The only importer of onnxruntime.

Separate so that the engine can be driven by a fake and so that one file knows how memory is bound. On a CPU:

* `prefill` runs a chunk of one row, [1, T]; `decode` runs one token of each of the rows 0..B-1, [B, 1].
* A chunk runs with an even T: attention computes queries in tiles of an even size, and a query alone in its tile on
  another path, whose last bits differ. A chunk of odd length takes one token more, written behind the row's own.
* Every cache row is bound by address as past and as present, so a step copies nothing.
* There is one IOBinding per batch size and one per prefilled row, made once: their small inputs have fixed addresses
  and are filled in place, so a decode step binds nothing.

Logits returned are views of the decoder's own buffers, valid until the next call. One thread at a time.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.bundle import (
    EXTERNAL_DATA_NAME,
    GRAPH_NAME,
    LOGITS,
    STEP_INPUTS,
    TOP_K_GRAPH_NAME,
    WEIGHT_SUMS_GRAPH_NAME,
    Bundle,
    past_key_value_names,
    present_name,
)
from model.config import ModelConfig
from model.errors import UserError
from model.kv_cache import KVCache
from model.processors import session_threads

FATAL = 4  # onnxruntime's log severity
ERROR = 3


class DecoderError(UserError, RuntimeError):
    """The ONNX session could not be created or a run failed; the message is one line."""


@dataclass
class _Binding:
    """An IOBinding with the small arrays it reads and writes."""

    io: Any
    input_ids: npt.NDArray[np.int64]
    last_index: npt.NDArray[np.int32]
    max_total_tokens: npt.NDArray[np.int32]
    logit_positions: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    @property
    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits of each row's only position, [B, V]."""
        view: npt.NDArray[np.float32] = self.logits[:, 0]
        return view


class Decoder:
    """One ONNX session over one KVCache."""

    def __init__(self, bundle: Bundle, kv_cache: KVCache, threads: int = 0, prepared_graph: Path | None = None) -> None:
        """Load the bundle's graph.

        threads: intra-op threads; 0 takes the cores that the process may use. prepared_graph: what
        `write_prepared_graph` made of the graph on this machine.

        Raises:
            DecoderError: ONNX Runtime cannot load the graph.
        """
        self.config = bundle.config
        self.kv_cache = kv_cache
        graph = prepared_graph or bundle.graph_path
        self._session = _create_session(graph, session_threads(threads), bool(prepared_graph))
        _check_geometry(self._session, bundle)
        # one thread: the spinning threads of a second pool would take the cores from the first
        self._top_k_session = _create_session(bundle.path / TOP_K_GRAPH_NAME, threads=1)
        self._weight_sums_session = _create_session(bundle.path / WEIGHT_SUMS_GRAPH_NAME, threads=1)
        self._decode_bindings: dict[int, _Binding] = {}
        self._prefill_bindings: dict[int, _Binding] = {}

    def prefill(
        self, row: int, token_ids: npt.NDArray[np.int64], num_past: int, positions: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Compute a chunk of a row's prompt after the `num_past` tokens that the row already holds.

        token_ids: int64 [T]. positions: int64 [P], indices into the chunk whose logits are wanted; the last by default.
        Returns logits float32 [P, V]. They depend on the row's tokens alone, not on how these were cut into chunks,
        unless an odd chunk leaves its row or the context without room for one more token.
        """
        num_tokens = len(token_ids)
        assert 0 < num_tokens <= self.kv_cache.capacity_tokens - num_past, "chunk does not fit its row"
        binding = self._prefill_bindings.get(row)
        if binding is None:
            binding = self._prefill_bindings[row] = self._new_binding(row, 1)
        token_ids = np.ascontiguousarray(token_ids, np.int64)
        if num_tokens % 2 and num_past + num_tokens < min(self.kv_cache.capacity_tokens, self.config.context_tokens):
            token_ids = np.append(token_ids, 0)
        binding.last_index[0] = num_past + len(token_ids) - 1
        binding.max_total_tokens[...] = num_past + len(token_ids)
        _bind_input(binding.io, "input_ids", token_ids, [1, len(token_ids)])
        if positions is None:
            binding.logit_positions[0, 0] = num_tokens - 1
            self._run(binding)
            return binding.last_logits
        return self._run_at_positions(binding, np.ascontiguousarray(positions, np.int64))

    def decode(self, token_ids: npt.NDArray[np.int64], past_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Compute one token of each of the rows 0..B-1.

        token_ids: int64 [B]. past_tokens: int64 [B], tokens that each row holds before this one. A row that takes no
        part still has one token written after its past; give any id, and its past, so that nothing it needs is lost.
        Returns logits float32 [B, V].
        """
        num_rows = len(token_ids)
        binding = self._decode_bindings.get(num_rows)
        if binding is None:
            binding = self._decode_bindings[num_rows] = self._new_binding(0, num_rows)
        binding.input_ids[:, 0] = token_ids
        binding.last_index[:] = past_tokens
        binding.max_total_tokens[...] = int(past_tokens.max()) + 1
        self._run(binding)
        return binding.last_logits

    def top_k(
        self, logits: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The `count` largest logits of each row and their ids.

        logits: float32 [B, V]. Returns values float32 and token ids int64, both [B, count], falling, ties by id.
        """
        feeds = {"logits": np.ascontiguousarray(logits), "count": np.array([count], np.int64)}
        values, token_ids = self._top_k_session.run(None, feeds)
        return values, token_ids

    def weight_sums(
        self,
        logits: npt.NDArray[np.float32],
        largest: npt.NDArray[np.float32],
        inverse_temperatures: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """Sums of exp((logits - largest) * inverse_temperature), float32 [B]; a row's is the same in every batch.

        logits: float32 [B, V]. largest: float32 [B], the finite maximum of each row. inverse_temperatures: float32 [B].
        """
        columns = {"largest": largest[:, None], "inverse_temperature": inverse_temperatures[:, None]}
        feeds = {"logits": np.ascontiguousarray(logits), **columns}
        sums: npt.NDArray[np.float32] = self._weight_sums_session.run(None, feeds)[0]
        return sums

    def _run(self, binding: _Binding) -> None:
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # onnxruntime raises its own types, none of them public
            raise DecoderError(f"ONNX Runtime failed: {_first_line(error)}") from error

    def _run_at_positions(self, binding: _Binding, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Run a prefill binding once with logits at several positions, then restore its usual single one."""
        num_positions = len(positions)
        logits = np.empty((1, num_positions, self.config.vocab_size), np.float32)
        _bind_input(binding.io, "logit_positions", positions, [1, num_positions])
        _bind_output(binding.io, LOGITS, logits)
        try:
            self._run(binding)
        finally:
            _bind_input(binding.io, "logit_positions", binding.logit_positions, [1, 1])
            _bind_output(binding.io, LOGITS, binding.logits)
        return logits.reshape(num_positions, -1)

    def _new_binding(self, first_row: int, num_rows: int) -> _Binding:
        """Bind the cache rows from `first_row` on, and fresh small arrays."""
        binding = _Binding(
            io=self._session.io_binding(),
            input_ids=np.zeros((num_rows, 1), np.int64),
            last_index=np.zeros(num_rows, np.int32),
            max_total_tokens=np.zeros((), np.int32),
            logit_positions=np.zeros((num_rows, 1), np.int64),
            logits=np.zeros((num_rows, 1, self.config.vocab_size), np.float32),
        )
        for name in STEP_INPUTS:
            array = getattr(binding, name)
            _bind_input(binding.io, name, array, list(array.shape))
        _bind_output(binding.io, LOGITS, binding.logits)
        names = past_key_value_names(self.config.num_layers)
        shape = self.kv_cache.slice_shape(num_rows)
        for name, address in zip(names, self.kv_cache.addresses(first_row), strict=True):
            binding.io.bind_input(name, "cpu", 0, np.float32, shape, address)
            binding.io.bind_output(present_name(name), "cpu", 0, np.float32, shape, address)
        return binding


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def write_prepared_graph(bundle: Bundle, folder: Path) -> None:
    """Write the bundle's graph optimised, with its weights packed as this processor's kernels read them.

    A session on it computes the same bits, maps the packed weights instead of making a copy of its own, and does
    neither work again. It fits this processor and this version of ONNX Runtime only.

    Raises:
        DecoderError: ONNX Runtime cannot load the graph, or cannot write it.
    """
    options = _session_options(threads=1)
    options.optimized_model_filepath = str(folder / GRAPH_NAME)
    for name, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", EXTERNAL_DATA_NAME),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(name, value)
    _load(bundle.graph_path, options)


def _create_session(path: Path, threads: int, is_prepared: bool = False) -> ort.InferenceSession:
    options = _session_options(threads)
    if is_prepared:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _load(path, options)


def _session_options(threads: int) -> ort.SessionOptions:
    # the other attention kernel is faster at every length measured (docs/benchmarks.md); read when a session is made
    os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def _load(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in Decoder._run
        raise DecoderError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error


def _check_geometry(session: ort.InferenceSession, bundle: Bundle) -> None:
    """Refuse a graph that is not the manifest's."""
    if not _fits_geometry(session, bundle.config):
        raise DecoderError(
            f"{bundle.graph_path} has other inputs or outputs than its manifest's geometry asks for; export it again"
        )


def _fits_geometry(session: ort.InferenceSession, config: ModelConfig) -> bool:
    """Whether the graph's names and fixed sizes are those that the bindings will use."""
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    past = past_key_value_names(config.num_layers)
    if inputs.keys() != {*STEP_INPUTS, *past} or outputs.keys() != {LOGITS, *map(present_name, past)}:
        return False
    head = [config.num_kv_heads, config.head_dim]  # of [B, G, S, D]
    return outputs[LOGITS][-1:] == [config.vocab_size] and all(inputs[name][1::2] == head for name in past)


def _bind_input(io: Any, name: str, array: npt.NDArray[Any], shape: list[int]) -> None:
    io.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


def _bind_output(io: Any, name: str, array: npt.NDArray[Any]) -> None:
    io.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
