"""From what a command was given (SOURCE, a bundle, a precision, or nothing) to the bundle that it uses.

Separate from the commands, which all ask for a model in the same words. What has to be exported is exported by a
process of its own, `attend export`: torch takes a gigabyte, and nothing that serves may hold it.
"""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from model.bundle import EXPORTER_KEY, EXPORTER_VERSION, GRAPH_NAME, MANIFEST_NAME, Bundle, BundleError, open_bundle
from model.errors import UserError
from model.precision import DEFAULT_PRECISION, PRECISION_NAMES

DEFAULT_SOURCE = "default"
HUB_PREFIX = "hf:"
EXPORT_MODULES = ("gguf", "onnx", "onnxscript", "safetensors", "torch")  # what the extra `export` brings
INSTALL_EXPORT = "`pip install 'attend[export]'`, in a checkout `pip install --editable '.[export]'`"

Say = Callable[[str], None]
Export = Callable[[str, str, Path], Path]  # SOURCE, precision and cache folder -> bundle folder


class SourceError(UserError):
    """A model that cannot be used as it was named; the message is one line."""


@dataclass(frozen=True)
class ModelChoice:
    """The model that a command was asked for. All None: the default model at the default precision.

    source: `default`, a Hugging Face folder, a .gguf file, hf:org/name, or a bundle folder. bundle: a bundle folder.
    """

    cache_dir: Path
    source: str | None = None
    bundle: Path | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            SourceError: source and bundle both given, or a precision that does not exist.
        """
        if self.source is not None and self.bundle is not None:
            raise SourceError(
                f"the source {self.source} and the bundle {self.bundle} are both given; leave one out "
                "(--bundle may come from ATTEND_BUNDLE, the source from ATTEND_SOURCE)"
            )
        if self.source == "":
            raise SourceError("the source is empty; give `default`, a folder, a .gguf file or hf:organisation/name")
        if self.precision is not None and self.precision not in PRECISION_NAMES:
            raise SourceError(f"precision {self.precision!r} does not exist; choose {' or '.join(PRECISION_NAMES)}")


def missing_export_module() -> str | None:
    """The first module of the extra `export` that is not installed; None when exporting is possible."""
    return next((name for name in EXPORT_MODULES if importlib.util.find_spec(name) is None), None)


def check_can_export() -> None:
    """Refuse to begin an export that would fail after a download.

    Raises:
        SourceError: the extra `export` is not installed.
    """
    if (name := missing_export_module()) is not None:
        raise SourceError(missing_export_message(name))


def missing_export_message(module: str) -> str:
    """How to get what an export needs."""
    return f"exporting needs {module}, which the extra `export` brings; install it with {INSTALL_EXPORT}"


def find_bundle(choice: ModelChoice, say: Say = lambda _: None, export: Export | None = None) -> Bundle:
    """Open the bundle that `choice` means, checked, with an absolute path; make it first where that takes an export.

    export: makes a bundle; by default `attend export` in a process of its own.

    Raises:
        SourceError: the source is not there, or exporting is not possible here.
        BundleError: the bundle that was named cannot be used.
    """
    folder = choice.bundle or _bundle_folder(choice.source)
    if folder is not None:
        return _open(folder, choice.precision)
    source, precision = choice.source or DEFAULT_SOURCE, choice.precision or DEFAULT_PRECISION
    if source == DEFAULT_SOURCE and (bundle := _cached_default(choice.cache_dir, precision, say)):
        return bundle
    _check_exists(source)
    check_can_export()
    return open_bundle((export or export_in_child)(source, precision, choice.cache_dir.resolve()))


def export_in_child(source: str, precision: str, cache_dir: Path) -> Path:
    """Run `attend export` into the cache; its progress and its errors go to our stderr, its stdout is the folder.

    Raises:
        SourceError: it was killed.
        SystemExit: it has said what is wrong; with its exit status.
    """
    options = ["--precision", precision, "--cache-dir", str(cache_dir), "--print-path"]
    # -P: the current folder may hold modules named as ours
    command = [sys.executable, "-P", "-m", "service.cli", "export", *options, "--", source]
    with _terminated_by_exception():
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise SourceError(f"the export was ended by {name}; SIGKILL mostly means too little memory")
    if result.returncode:
        raise SystemExit(result.returncode)
    return Path(result.stdout.rstrip("\n"))


def _bundle_folder(source: str | None) -> Path | None:
    """The folder that SOURCE names, if a bundle lies in it."""
    if source is None or _is_keyword(source):
        return None
    folder = Path(source)
    is_bundle = any(_exists(folder / name) for name in (MANIFEST_NAME, GRAPH_NAME))
    return folder.expanduser() if is_bundle else None


def _open(folder: Path, precision: str | None) -> Bundle:
    """A bundle that was named; a precision given with it has to be its own."""
    bundle = open_bundle(folder.resolve())
    if precision not in (None, bundle.manifest.precision):
        raise SourceError(
            f"{folder} is a bundle of precision {bundle.manifest.precision}, not {precision}; leave --precision "
            "(ATTEND_PRECISION) out, or name the checkpoint that it was made from"
        )
    return bundle


def _cached_default(cache_dir: Path, precision: str, say: Say) -> Bundle | None:
    """The default model's bundle if it lies in the cache, whole; an older exporter's only where none can be made.

    Found without the source's files, which are the same for a release: serving it needs nothing of the exporter.
    """
    folder = (cache_dir / "bundles" / f"{DEFAULT_SOURCE}-{precision}").resolve()
    try:
        bundle = open_bundle(folder)
    except BundleError:
        return None
    if bundle.manifest.exporter.get(EXPORTER_KEY) == EXPORTER_VERSION:
        return bundle
    if (name := missing_export_module()) is None:
        return None
    say(f"an older exporter made {folder}, which is used as it is: {missing_export_message(name)}")
    return bundle


def _check_exists(source: str) -> None:
    """Refuse a mistyped path before anything is loaded.

    Raises:
        SourceError: nothing is there.
    """
    if not _is_keyword(source) and not _exists(Path(source)):
        raise SourceError(
            f"cannot read {source!r}: no such file or folder; give `default`, a Hugging Face folder, a .gguf file, "
            "hf:organisation/name or a bundle folder"
        )


def _is_keyword(source: str) -> bool:
    return source == DEFAULT_SOURCE or source.startswith(HUB_PREFIX)


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError):  # such as a name longer than the system allows, or the home of nobody
        return False


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, which takes the child along; by default it would go on by itself."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
