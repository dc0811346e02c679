"""Bundle: one exported model as a folder that proves itself. `manifest.json` lists every file with its sha256.

Separate from the exporter (which needs torch) because serving opens bundles and must refuse a damaged one with one
clear line. Layout: manifest.json, model.onnx, model.onnx.data, top_k.onnx and weight_sums.onnx (the sampler's),
tokenizer.json, chat_template.jinja (if any).
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig, UnsupportedModelError
from model.errors import UserError

FORMAT_VERSION = 2
EXPORTER_KEY = "attend_exporter"  # in a manifest's `exporter`
# Raise it when the same source gives another graph, tokenizer or ends: older bundles are then made again.
EXPORTER_VERSION = "4"
MANIFEST_NAME = "manifest.json"
GRAPH_NAME = "model.onnx"
EXTERNAL_DATA_NAME = "model.onnx.data"
TOP_K_GRAPH_NAME = "top_k.onnx"
WEIGHT_SUMS_GRAPH_NAME = "weight_sums.onnx"
TOKENIZER_NAME = "tokenizer.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
SAMPLER_GRAPH_NAMES = (TOP_K_GRAPH_NAME, WEIGHT_SUMS_GRAPH_NAME)
REQUIRED_FILES = (GRAPH_NAME, EXTERNAL_DATA_NAME, *SAMPLER_GRAPH_NAMES, TOKENIZER_NAME)

STEP_INPUTS = ("input_ids", "last_index", "max_total_tokens", "logit_positions")
LOGITS = "logits"


def past_key_value_names(num_layers: int) -> list[str]:
    """The graph's cache inputs, key then value of each layer."""
    return [f"past_{kind}_{layer}" for layer in range(num_layers) for kind in ("key", "value")]


def present_name(past_name: str) -> str:
    """The output that continues a cache input; both are bound to the same memory."""
    return past_name.replace("past_", "present_")


class BundleError(UserError, ValueError):
    """A bundle that must not be served; the message is one line: what is wrong and what to do."""


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself."""

    config: ModelConfig
    precision: str
    device: str
    opset: int
    licence: str
    sources: tuple[Mapping[str, str], ...]
    special_tokens: Mapping[str, str]
    exporter: Mapping[str, str]
    files: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is written."""
        return {
            "format_version": FORMAT_VERSION,
            "geometry": self.config.to_json(),
            "precision": self.precision,
            "device": self.device,
            "opset": self.opset,
            "licence": self.licence,
            "sources": list(self.sources),
            "special_tokens": dict(self.special_tokens),
            "exporter": dict(self.exporter),
            "files": dict(self.files),
        }


@dataclass(frozen=True)
class Bundle:
    """A validated bundle folder. Open one with `open_bundle`; the files behind it are not read again for checking."""

    path: Path
    manifest: Manifest

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""
        return self.manifest.config

    @property
    def graph_path(self) -> Path:
        """The ONNX graph; its weights lie beside it."""
        return self.path / GRAPH_NAME

    @property
    def tokenizer_json(self) -> str:
        """The text of tokenizer.json."""
        return (self.path / TOKENIZER_NAME).read_text(encoding="utf-8")

    @property
    def chat_template(self) -> str | None:
        """The chat template, or None for a base model without one."""
        file = self.path / CHAT_TEMPLATE_NAME
        return file.read_text(encoding="utf-8") if CHAT_TEMPLATE_NAME in self.manifest.files else None


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest alone, not the files it lists.

    Raises:
        BundleError: no bundle, another format version, or a manifest that makes no sense.
    """
    file = path / MANIFEST_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"no bundle at {path}: {MANIFEST_NAME} is missing; make one with `attend export default --out {path}`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"cannot read {file}: {error}; export the bundle again") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} has bundle format version {version!r}; this release reads version {FORMAT_VERSION}; "
            "export the bundle again"
        )
    try:
        return _manifest_from_json(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = error if isinstance(error, UnsupportedModelError) else f"{type(error).__name__}: {error}"
        one_line = " ".join(str(reason).split())  # it may repeat what stands in the file
        raise BundleError(f"{file} is not a valid manifest ({one_line}); export the bundle again") from error


def open_bundle(path: Path) -> Bundle:
    """Open a bundle after checking every file against its sha256.

    Raises:
        BundleError: as `read_manifest`, or a file is missing or differs by so much as one bit.
    """
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        try:
            found = file_sha256(file)
        except FileNotFoundError:
            raise BundleError(f"{path} lacks {name}, which its manifest lists; export the bundle again") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read {file}: {error}; export the bundle again") from error
        if found != expected:
            raise BundleError(
                f"{file} is damaged: sha256 {found[:12]}…, the manifest says {expected[:12]}…; export the bundle again"
            )
    return Bundle(path, manifest)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the only right to write a folder, across processes; `NAME.lock` beside it stays.

    say: called with a line if another process holds it and this one has to wait.
    """
    with folder.with_name(folder.name + ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which is writing {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _manifest_from_json(values: Mapping[str, Any]) -> Manifest:
    files = {str(name): str(digest) for name, digest in values["files"].items()}
    for name in files:
        if Path(name).name != name:
            raise ValueError(f"file {name!r} lies outside the bundle")
    missing = [name for name in REQUIRED_FILES if name not in files]
    if missing:
        raise ValueError(f"files lack {', '.join(missing)}")
    return Manifest(
        config=ModelConfig.from_json(values["geometry"]),
        precision=str(values["precision"]),
        device=str(values["device"]),
        opset=int(values["opset"]),
        licence=str(values["licence"]),
        sources=tuple(dict(source) for source in values["sources"]),
        special_tokens=dict(values["special_tokens"]),
        exporter=dict(values["exporter"]),
        files=files,
    )
