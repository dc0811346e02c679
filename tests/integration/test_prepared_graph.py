"""The prepared graph: the same bits as the bundle's own, mapped, made once, and made again when it must be."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import model.prepared_graph
from model.bundle import GRAPH_NAME, Bundle, file_sha256, open_bundle
from model.bundle_writer import ExportRequest, export_bundle
from model.decoder import Decoder, DecoderError
from model.kv_cache import KVCache
from model.precision import PRECISION_NAMES
from model.prepared_graph import prepared_graph
from service.app import build_app
from service.settings import Settings

pytestmark = pytest.mark.usefixtures("traced_once")

MAPPED = """
import sys
from pathlib import Path
from model.bundle import open_bundle
from model.decoder import Decoder, DecoderError
from model.kv_cache import KVCache

bundle = open_bundle(Path(sys.argv[1]))
decoder = Decoder(bundle, KVCache(bundle.config, 1, 64), 1, Path(sys.argv[2]))
resident = {"mapped": 0, "own": 0}
kind = ""
for line in Path("/proc/self/smaps").read_text().splitlines():
    name, *values = line.split()
    if not name.endswith(":"):
        kind = "mapped" if line.endswith("model.onnx.data") else "own" if len(values) < 5 or "heap" in line else ""
    elif name == "Rss:" and kind:
        resident[kind] += int(values[0])
print(resident["mapped"] // 1024, resident["own"] // 1024)
"""


def logits_of(bundle: Bundle, graph: Path | None) -> np.ndarray:
    """Logits after a prompt, then after a token of three rows."""
    decoder = Decoder(bundle, KVCache(bundle.config, 3, 64), 1, graph)
    for row in range(3):
        after_prompt = decoder.prefill(row, np.arange(1, 18), 0)[-1].copy()
    return np.vstack([after_prompt, decoder.decode(np.array([5, 6, 7]), np.array([17, 17, 17]))])


@pytest.mark.parametrize("precision", PRECISION_NAMES)
def test_a_prepared_graph_computes_the_same_bits(tiny_folder: Path, tmp_path: Path, precision: str) -> None:
    """In prefill and decode, at every precision."""
    bundle = export_bundle(ExportRequest(str(tiny_folder), tmp_path / "tiny", precision), tmp_path)
    prepared = prepared_graph(bundle, tmp_path)
    assert prepared.parent != bundle.path
    np.testing.assert_array_equal(logits_of(bundle, prepared), logits_of(bundle, None))


@pytest.mark.model
def test_the_default_model_is_mapped_and_not_copied(default_bundle: Bundle, cache_dir: Path) -> None:
    """The packed weights lie in the file's pages, which processes share; the same bits come out."""
    prepared = prepared_graph(default_bundle, cache_dir)
    command = [sys.executable, "-c", MAPPED, str(default_bundle.path), str(prepared)]
    mapped_mb, own_mb = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert mapped_mb > 100
    assert own_mb < 80
    np.testing.assert_array_equal(logits_of(default_bundle, prepared), logits_of(default_bundle, None))


def test_it_is_made_once(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A second call finds it and writes nothing."""
    first = prepared_graph(tiny_bundle, tmp_path)
    written = first.stat()
    assert prepared_graph(tiny_bundle, tmp_path) == first
    assert first.stat().st_mtime_ns == written.st_mtime_ns
    assert first.stat().st_ino == written.st_ino


@pytest.mark.parametrize("damage", ["flipped byte", "missing file", "broken digests"])
def test_a_damaged_one_is_made_again(tiny_bundle: Bundle, tmp_path: Path, damage: str) -> None:
    """It is never loaded as it is."""
    graph = prepared_graph(tiny_bundle, tmp_path)
    whole = graph.read_bytes()
    match damage:
        case "flipped byte":
            graph.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        case "missing file":
            graph.unlink()
        case "broken digests":
            (graph.parent / "digests.json").write_text("[]")
    again = prepared_graph(tiny_bundle, tmp_path)
    np.testing.assert_array_equal(logits_of(tiny_bundle, again), logits_of(tiny_bundle, None))


def test_another_runtime_or_processor_gets_its_own(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed weights fit the kernels of one processor and one version of ONNX Runtime."""
    paths = {prepared_graph(tiny_bundle, tmp_path)}
    monkeypatch.setattr(model.prepared_graph, "runtime_version", lambda: "0.0.1")
    paths.add(prepared_graph(tiny_bundle, tmp_path))
    monkeypatch.setattr(model.prepared_graph, "_processor", lambda: "another")
    paths.add(prepared_graph(tiny_bundle, tmp_path))
    assert len(paths) == 3


def test_what_nobody_loads_any_more_is_removed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """But only when another is written, and not what was loaded lately."""
    kept, forgotten = tmp_path / "prepared" / "kept", tmp_path / "prepared" / "forgotten"
    for folder in (kept, forgotten):
        folder.mkdir(parents=True)
        (folder / GRAPH_NAME).write_text("a graph")
    long_ago_s = time.time() - 31 * 86_400
    os.utime(forgotten, (long_ago_s, long_ago_s))
    prepared_graph(tiny_bundle, tmp_path)
    assert kept.is_dir()
    assert not forgotten.exists()


def test_a_cache_that_cannot_be_written_costs_memory_only(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts from the bundle itself and says why."""
    cache = tmp_path / "cache"
    cache.write_text("a file, not a folder")
    app = build_app(Settings(bundle=tiny_bundle.path, cache_dir=cache))
    assert app.state.generator.model_id == tiny_bundle.config.model_id
    assert "no prepared graph" in caplog.text


def test_a_writing_that_fails_leaves_nothing_behind(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: half a graph would only take more room."""

    def fills_the_disk(_bundle: Bundle, folder: Path) -> None:
        (folder / GRAPH_NAME).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.prepared_graph, "write_prepared_graph", fills_the_disk)
    with pytest.raises(OSError, match="No space left"):
        prepared_graph(tiny_bundle, tmp_path)
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


def test_a_graph_that_cannot_be_loaded_is_the_bundles_fault(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The error names the bundle's graph, not the file made of it."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bundle.path, folder)
    (folder / GRAPH_NAME).write_bytes(b"no graph")
    manifest = folder / "manifest.json"
    digests = tiny_bundle.manifest.files[GRAPH_NAME], file_sha256(folder / GRAPH_NAME)
    manifest.write_text(manifest.read_text().replace(*digests))
    with pytest.raises(DecoderError, match=r"broken/model\.onnx"):
        build_app(Settings(bundle=open_bundle(folder).path, cache_dir=tmp_path))
