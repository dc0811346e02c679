"""Read a Hugging Face folder: config.json, tokenizer.json, *.safetensors (sharded or not). Offline only.

Separate from checkpoint.py, which finds sources and settles what any of them says.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.added_tokens import named_tokens, special_texts, with_named_tokens
from model.checkpoint_error import CheckpointError, reason, way_out
from model.config import config_from_hugging_face
from model.source_content import SourceContent
from model.special_tokens import AddedEnds, special_tokens
from model.tokenizer import Tokenizer, TokenizerError
from model.weight_files import (
    INDEX_NAME,
    other_format,
    read_tensors,
    refuse_adapter,
    refuse_quantised,
    stored_tensors,
    weight_files,
)
from model.weight_tensors import check_tensors

TOKENIZER_CONFIG, TOKEN_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")


def read_folder(path: Path) -> SourceContent:
    """Everything that a folder says; what can be refused by its small files is refused before weights are read.

    Raises:
        CheckpointError: files are missing, damaged or not what they claim.
        UnsupportedModelError: another model than Attend exports, or tensors that don't fit.
    """
    refuse_adapter(path)
    config_json = _config_json(path)
    refuse_quantised(config_json)
    config = config_from_hugging_face("unnamed", config_json, _read_json(path / "generation_config.json"))
    tokenizer_json = _tokenizer_json(path)
    tokenizer_config, token_map = _read_json(path / TOKENIZER_CONFIG), _read_json(path / TOKEN_MAP)
    files, left_out = weight_files(path, _read_json(path / INDEX_NAME))
    check_tensors(config, [tensor for file in files for tensor in stored_tensors(file)])
    tokens = special_tokens(tokenizer_config, token_map)
    special = {*tokens.values(), *special_texts(tokenizer_config, token_map)}
    listed = named_tokens(tokenizer_config, _read_json(path / ADDED_TOKENS), special)
    tokenizer_json, token_notes = with_named_tokens(tokenizer_json, listed, config.vocab_size)
    named = {TOKENIZER_CONFIG: special_tokens(tokenizer_config), TOKEN_MAP: special_tokens(token_map)}
    return SourceContent(
        config=config,
        tensors={name: tensor for file in files for name, tensor in read_tensors(file)},
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(path, tokenizer_config),
        special_tokens=tokens,
        licence=str(config_json.get("license", "not stated; see the model's card")),
        name=_text(config_json.get("_name_or_path")),
        eos_texts={file: texts["eos_token"] for file, texts in named.items() if "eos_token" in texts},
        added_ends=AddedEnds(
            bos=tokens.get("bos_token"),
            eos=tokens.get("eos_token"),
            add_bos=_switch(tokenizer_config, "add_bos_token"),
            add_eos=_switch(tokenizer_config, "add_eos_token"),
        ),
        notes=(
            *(f"{file.name} is left out: it is none of the model's weight files" for file in left_out),
            *token_notes,
        ),
    )


def _config_json(path: Path) -> dict[str, Any]:
    """config.json, or an error that says what the folder holds instead."""
    if not (path / "config.json").exists() and (instead := other_format(path)):
        raise CheckpointError(f"{path} has no config.json; {instead}")
    return _read_json(path / "config.json", required=True)


def _tokenizer_json(path: Path) -> str:
    """The text of a tokenizer.json that works."""
    if not (path / "tokenizer.json").exists():
        there = next((name for name in SLOW_TOKENIZERS if (path / name).exists()), None)
        only = f", only {there}" if there else ""
        raise CheckpointError(
            f"{path} has no tokenizer.json{only}; write one with "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    text = json.dumps(_read_json(path / "tokenizer.json", required=True), ensure_ascii=False)
    try:
        Tokenizer(text)
    except TokenizerError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    return text


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint folder; {} when it is optional and absent."""
    if not required and not path.exists() and not path.is_symlink():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; a Hugging Face folder must hold it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: {reason(error)}; {way_out(path)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _chat_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The chat template: its own file, or the entry of tokenizer_config.json (`default` where several are named)."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {file}: {reason(error)}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(entries, {}).get("template")
    return template if isinstance(template, str) else None


def _switch(values: Mapping[str, Any], key: str) -> bool | None:
    """True, false, or None where the file does not say."""
    value = values.get(key)
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
