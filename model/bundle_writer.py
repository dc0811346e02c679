"""SOURCE -> bundle folder, atomically. Offline only: the one place that runs checkpoint, export and quantize in order.

Separate from bundle.py, which serving imports and which must not need torch. The folder appears whole or not at all:
everything is written beside it as `NAME.partial`, under a lock, and renamed at the end. A killed export leaves only the
partial folder, which the next one removes.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from model.bundle import (
    CHAT_TEMPLATE_NAME,
    EXPORTER_KEY,
    EXPORTER_VERSION,
    EXTERNAL_DATA_NAME,
    GRAPH_NAME,
    MANIFEST_NAME,
    SAMPLER_GRAPH_NAMES,
    TOKENIZER_NAME,
    Bundle,
    BundleError,
    Manifest,
    file_sha256,
    locked,
    open_bundle,
    read_manifest,
)
from model.checkpoint import (
    DEFAULT_SOURCE,
    Checkpoint,
    SourceFile,
    four_bit_blocks,
    read_checkpoint,
    resolve_source,
    source_files,
    source_name,
)
from model.errors import UserError
from model.gguf_file import FourBitBlocks
from model.model_name import model_id_fault
from model.precision import DEFAULT_PRECISION, PRECISION_NAMES, PRODUCT_PARTS, ROTATED_PRECISIONS, weight_name
from model.template_check import template_findings
from model.tokenizer import Tokenizer

DEVICES = ("cpu",)
CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")
Say = Callable[[str], None]
NOTE = "note: "  # how a line begins that is to stay on the screen


class ExportError(UserError, ValueError):
    """The export cannot be done as asked; the message is one line."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export: SOURCE as given by the user, where to, how."""

    source: str
    out: Path
    precision: str = DEFAULT_PRECISION
    device: str = "cpu"
    model_id: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown choices.

        Raises:
            ExportError: a precision or device that does not exist, or a model id that clients could not send.
        """
        if self.precision not in PRECISION_NAMES:
            raise ExportError(f"precision {self.precision!r} does not exist; choose {' or '.join(PRECISION_NAMES)}")
        if self.device not in DEVICES:
            raise ExportError(f"device {self.device!r} is not offered by this release; choose {' or '.join(DEVICES)}")
        fault = None if self.model_id is None else model_id_fault(self.model_id)
        if fault is not None:
            raise ExportError(fault)


def default_bundle_path(cache_dir: Path, precision: str = DEFAULT_PRECISION) -> Path:
    """Where the default model's bundle of a precision is kept."""
    return cache_dir / "bundles" / f"{DEFAULT_SOURCE}-{precision}"


def export_bundle(request: ExportRequest, cache_dir: Path, say: Say = lambda _: None) -> Bundle:
    """Make the bundle that `request` describes, or reuse the valid one that is already there; its path is absolute.

    say: called with a line before each stage, for a progress display.

    Raises:
        ExportError: the target folder holds something else.
        CheckpointError, UnsupportedModelError: the source cannot be read or exported.
        ChatTemplateError: its chat template can never work.
    """
    out = request.out.resolve()  # `.` and links have siblings only there
    request = replace(request, out=out)
    if not out.name:
        raise ExportError(f"{out} cannot be a bundle; name a folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, say):
        path = resolve_source(request.source, cache_dir, say)
        say("checking the source and any bundle already there")
        sources = source_files(path)
        existing = _reusable(request, sources)
        if existing is not None:
            say(f"reusing the valid bundle at {out}")
            return existing
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _write(request, path, sources, partial, say)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _replace(partial, out)
    return open_bundle(out)


def _write(request: ExportRequest, path: Path, sources: tuple[SourceFile, ...], folder: Path, say: Say) -> None:
    """Write every file of the bundle into `folder`, the manifest last."""
    # torch takes seconds to import: a reused bundle must not wait for it
    from model.export import OPSET, save_graph, save_sampler_graphs, trace_graph
    from model.quantize import PRECISIONS, WeightFacts
    from model.rotation import rotate_transformer, second_moments
    from model.transformer import load_transformer

    say("reading the weights")
    checkpoint = read_checkpoint(path, request.model_id or source_name(request.source), sources)
    for note in checkpoint.notes:
        say(NOTE + note)
    for finding in template_findings(checkpoint.chat_template, checkpoint.special_tokens):
        say(NOTE + finding)
    say(f"tracing {checkpoint.config.num_layers} layers to ONNX (licence of the weights: {checkpoint.licence})")
    transformer = load_transformer(checkpoint.config, checkpoint.tensors)
    facts = WeightFacts()
    if request.precision == "int4":
        facts = WeightFacts(four_bit=_four_bit_sources(path, checkpoint))
    elif request.precision in ROTATED_PRECISIONS:
        say("rotating the weights")
        calibration_ids = _calibration_ids(checkpoint)
        rotate_transformer(transformer, calibration_ids)
        facts = WeightFacts(second_moments=second_moments(transformer, calibration_ids))
    graph = trace_graph(transformer)
    say(f"converting to {request.precision}")
    graph = PRECISIONS[request.precision](graph, facts)
    say("writing the bundle")
    save_graph(graph, folder)
    save_sampler_graphs(folder)
    names = [GRAPH_NAME, EXTERNAL_DATA_NAME, *SAMPLER_GRAPH_NAMES, *_write_texts(checkpoint, folder)]
    manifest = Manifest(
        config=checkpoint.config,
        precision=request.precision,
        device=request.device,
        opset=OPSET,
        licence=checkpoint.licence,
        sources=tuple(asdict(source) for source in checkpoint.sources),
        special_tokens=checkpoint.special_tokens,
        exporter=_exporter(),
        files={name: file_sha256(folder / name) for name in names},
    )
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.to_json(), indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def _calibration_ids(checkpoint: Checkpoint) -> np.ndarray:
    """A short text of many kinds as int64 token ids [N]: which channels are loud."""
    text = CALIBRATION_TEXT.read_text(encoding="utf-8")
    return np.array(Tokenizer(checkpoint.tokenizer_json).encode(text), np.int64)


def _four_bit_sources(path: Path, checkpoint: Checkpoint) -> Mapping[str, Sequence[FourBitBlocks]]:
    """The source's own 4-bit blocks of each weight of the graph that it has all parts of."""
    blocks = four_bit_blocks(path, checkpoint.config)
    sources = {}
    for layer in range(checkpoint.config.num_layers):
        for product, parts in PRODUCT_PARTS.items():
            names = [f"layers.{layer}.{part}.weight" for part in parts]
            if all(name in blocks for name in names):
                sources[weight_name(layer, product)] = [blocks[name] for name in names]
    return sources


def _write_texts(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Write the tokenizer and, if the model has one, the chat template; return their names."""
    (folder / TOKENIZER_NAME).write_text(checkpoint.tokenizer_json, encoding="utf-8")
    if checkpoint.chat_template is None:
        return [TOKENIZER_NAME]
    (folder / CHAT_TEMPLATE_NAME).write_text(checkpoint.chat_template, encoding="utf-8")
    return [TOKENIZER_NAME, CHAT_TEMPLATE_NAME]


def _exporter() -> dict[str, str]:
    """Which code made the bundle: the same values from the same sources give the same graph."""
    return {EXPORTER_KEY: EXPORTER_VERSION, "torch": version("torch").split("+")[0]}


def _reusable(request: ExportRequest, sources: tuple[SourceFile, ...]) -> Bundle | None:
    """The bundle already at the target if it is valid and is what is asked for; None if one is to be written there.

    Raises:
        ExportError: the target holds a different bundle, or something that is no bundle.
    """
    out = request.out
    if not out.exists():
        return None
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_NAME).is_file()):
        raise ExportError(f"{out} exists and is not a bundle; choose another --out")
    if request.force or not any(out.iterdir()):
        return None
    try:
        manifest = read_manifest(out)
    except BundleError:
        return None  # another format version, or damaged: nothing worth keeping
    same = (
        manifest.precision == request.precision
        and manifest.device == request.device
        and [dict(source) for source in manifest.sources] == [asdict(source) for source in sources]
    )
    if not same:
        raise ExportError(
            f"{out} holds another bundle ({manifest.config.model_id}, {manifest.precision}); "
            "choose another --out, or --force to replace it"
        )
    wanted_id = request.model_id or manifest.config.model_id
    if dict(manifest.exporter) != _exporter() or manifest.config.model_id != wanted_id:
        return None
    try:
        return open_bundle(out)
    except BundleError:
        return None


def _replace(partial: Path, out: Path) -> None:
    """Put the finished folder in place of whatever was there."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)  # of an export killed between the two renames
    if out.exists():
        out.rename(old)
        partial.rename(out)
        shutil.rmtree(old)
    else:
        partial.rename(out)
