"""prepared_graph: a bundle's graph as this machine runs it, in files that every process maps.

Loading a graph optimises it and packs its weights for the processor's kernels, into memory of the process's own. Done
once and written down, loading is a mapping, and all replicas on a machine share one copy of the weights. Separate from
the bundle, which is the same for every machine: what lies here belongs to one bundle, one processor and one version of
ONNX Runtime, is made when it is missing, and may be deleted at any time.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path

from model.bundle import EXTERNAL_DATA_NAME, GRAPH_NAME, Bundle, file_sha256, locked
from model.decoder import runtime_version, write_prepared_graph

FOLDER_NAME = "prepared"
DIGESTS_NAME = "digests.json"
KEPT_DAYS = 30  # what nobody has loaded for so long is removed when another is written


def prepared_graph(bundle: Bundle, cache_dir: Path) -> Path:
    """The prepared graph's path; written now if it is missing or damaged.

    Raises:
        OSError: it cannot be written.
        DecoderError: ONNX Runtime cannot load the bundle's graph.
    """
    folder = cache_dir / FOLDER_NAME / _name(bundle)
    if not _is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if not _is_whole(folder):
                _write(bundle, folder)
    with suppress(OSError):  # a folder of somebody else's is good enough
        os.utime(folder)
    return folder / GRAPH_NAME


def _name(bundle: Bundle) -> str:
    """Another name for whatever would give other files."""
    files = bundle.manifest.files
    parts = [files[GRAPH_NAME], files[EXTERNAL_DATA_NAME], runtime_version(), platform.machine(), _processor()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What decides which kernels run: the processor's model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU part"):
            told.setdefault(name.strip(), value.strip())
    return json.dumps(told)


def _is_whole(folder: Path) -> bool:
    try:
        digests = json.loads((folder / DIGESTS_NAME).read_text(encoding="utf-8"))
        return all(file_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write(bundle: Bundle, folder: Path) -> None:
    """Whole or not at all, as a bundle is written."""
    _remove_unused(folder.parent)
    partial = folder.with_name(folder.name + ".partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        write_prepared_graph(bundle, partial)
        digests = {file.name: file_sha256(file) for file in partial.iterdir()}
        (partial / DIGESTS_NAME).write_text(json.dumps(digests), encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_unused(parent: Path) -> None:
    oldest_s = time.time() - KEPT_DAYS * 86_400
    for folder in parent.iterdir():
        with suppress(OSError):
            if folder.is_dir() and folder.stat().st_mtime < oldest_s:
                shutil.rmtree(folder)
