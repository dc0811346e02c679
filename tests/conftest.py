"""Fixtures that many tests share: bundles, made once and kept in the cache."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.bundle import Bundle
from model.bundle_writer import ExportRequest, default_bundle_path, export_bundle
from model.precision import DEFAULT_PRECISION
from tests.support.tiny_checkpoint import write_tiny_checkpoint

TESTS_DIR = Path(__file__).parent
CACHE_DIR = Path(os.environ.get("ATTEND_CACHE_DIR", ".cache/attend")).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, so that no process waits for the other at the end; within that in the random order."""
    kinds = ["integration", "e2e", "unit"]
    items.sort(key=lambda item: kinds.index(item.path.relative_to(TESTS_DIR).parts[0]))


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where downloads and default bundles are kept between runs."""
    return CACHE_DIR


@pytest.fixture(scope="session")
def traced_once() -> Iterator[Callable[[Any], Any]]:
    """Trace each set of weights once, which takes most of an export; yields what does trace every time.

    The same weights give the same graph: `test_same_weights_give_byte_identical_files` proves it without this.
    """
    import onnx

    import model.export

    original = model.export.trace_graph
    graphs: dict[bytes, onnx.ModelProto] = {}

    def trace(transformer: Any) -> onnx.ModelProto:
        digest = hashlib.blake2b(repr(transformer.config).encode())
        for name, tensor in sorted(transformer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        graph = graphs.get(digest.digest())
        if graph is None:
            graph = graphs[digest.digest()] = original(transformer)
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.export.trace_graph", trace)
        yield original


@pytest.fixture(scope="session")
def default_bundle(cache_dir: Path) -> Bundle:
    """The default model at the default precision."""
    path = default_bundle_path(cache_dir, DEFAULT_PRECISION)
    return export_bundle(ExportRequest("default", path, DEFAULT_PRECISION), cache_dir)


@pytest.fixture(scope="session")
def int8_bundle(cache_dir: Path, traced_once: object) -> Bundle:
    """The default model at int8."""
    return export_bundle(ExportRequest("default", default_bundle_path(cache_dir, "int8"), "int8"), cache_dir)


@pytest.fixture(scope="session")
def int4_bundle(cache_dir: Path, traced_once: object) -> Bundle:
    """The default model at int4: its source's own blocks."""
    return export_bundle(ExportRequest("default", default_bundle_path(cache_dir, "int4"), "int4"), cache_dir)


@pytest.fixture(scope="session")
def fp32_bundle(cache_dir: Path, traced_once: object) -> Bundle:
    """The default model at fp32."""
    return export_bundle(ExportRequest("default", default_bundle_path(cache_dir, "fp32"), "fp32"), cache_dir)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder. Don't write to it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, traced_once: object) -> Bundle:
    """The tiny checkpoint exported at fp32. Don't write to it."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return export_bundle(ExportRequest(str(tiny_folder), out, "fp32"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the default settings, whatever the shell has set; the cache's place is passed explicitly."""
    for name in [name for name in os.environ if name.startswith("ATTEND_") and name != "ATTEND_CACHE_DIR"]:
        monkeypatch.delenv(name)
