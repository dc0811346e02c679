"""Tokens that only tokenizer_config.json or added_tokens.json name, put into the tokenizer.json of the bundle.

Separate from special_tokens.py, which settles what the named tokens are for. A tokenizer.json that lacks them would
read them as plain text: a template's `<|im_end|>` would be seven tokens that the model never saw.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.config import UnsupportedModelError

FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class NamedToken:
    """A token as a file names it. entry: as in the `added_tokens` of a tokenizer.json."""

    file: str
    entry: Mapping[str, Any]

    def __str__(self) -> str:
        """For a message: the token, its id and the file."""
        return f"{self.file}'s token {self.entry['content']!r} ({self.entry['id']})"


def named_tokens(tokenizer_config: Mapping[str, Any], added: Mapping[str, Any], special: set[str]) -> list[NamedToken]:
    """The tokens that the two files list, each id once, in the order of ids; what is no token is passed over.

    added: of added_tokens.json, ids by text. special: texts that are special wherever no file says so.
    """
    tokens: dict[int, NamedToken] = {}
    decoder = tokenizer_config.get("added_tokens_decoder")
    for key, value in (decoder if isinstance(decoder, dict) else {}).items():
        content = value.get("content") if isinstance(value, dict) else None
        if key.isdecimal() and isinstance(content, str) and content:
            entry = _entry(int(key), content, value, bool(value.get("special", content in special)))
            tokens[int(key)] = NamedToken("tokenizer_config.json", entry)
    for content, token_id in added.items():
        if content and isinstance(token_id, int) and token_id >= 0:
            entry = _entry(token_id, content, {}, content in special)
            tokens.setdefault(token_id, NamedToken("added_tokens.json", entry))
    return [tokens[token_id] for token_id in sorted(tokens)]


def special_texts(*sources: Mapping[str, Any]) -> set[str]:
    """The additional special tokens that the files list, as text."""
    listed = (source.get("additional_special_tokens") for source in sources)
    values = [value for values in listed if isinstance(values, list) for value in values]
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {text for text in texts if isinstance(text, str)}


def with_named_tokens(tokenizer_json: str, named: Sequence[NamedToken], vocab_size: int) -> tuple[str, list[str]]:
    """The tokenizer.json with the tokens that it lacks, and lines about those that the model has no embedding for.

    Raises:
        UnsupportedModelError: a token cannot have the id that its file gives it.
    """
    values = json.loads(tokenizer_json)
    own = values.get("added_tokens") or []
    known = {entry["content"] for entry in own}
    missing = [token for token in named if token.entry["content"] not in known]
    useless = [token for token in missing if token.entry["id"] >= vocab_size]
    notes = [f"{token} is left out: the vocabulary has {vocab_size} tokens" for token in useless]
    missing = [token for token in missing if token not in useless]
    if not missing:
        return tokenizer_json, notes
    _refuse_taken(FastTokenizer.from_str(tokenizer_json), missing)
    values["added_tokens"] = sorted([*own, *(dict(token.entry) for token in missing)], key=lambda entry: entry["id"])
    completed = json.dumps(values, ensure_ascii=False)
    _refuse_moved(FastTokenizer.from_str(completed), missing)
    notes += [f"{token} is not in tokenizer.json; it is one of the bundle's tokens" for token in missing]
    return completed, notes


def _entry(token_id: int, content: str, flags: Mapping[str, Any], special: bool) -> dict[str, Any]:
    entry = {"id": token_id, "content": content, "special": special}
    entry |= {flag: bool(flags.get(flag, False)) for flag in FLAGS}
    return {**entry, "normalized": bool(flags.get("normalized", not special))}


def _refuse_taken(tokenizer: FastTokenizer, missing: Sequence[NamedToken]) -> None:
    for token in missing:
        holder = tokenizer.id_to_token(token.entry["id"])
        if holder not in (None, token.entry["content"]):
            raise UnsupportedModelError(
                f"{token} is another token in tokenizer.json, {holder!r}; save the tokenizer again with transformers, "
                "so that its files agree"
            )


def _refuse_moved(tokenizer: FastTokenizer, missing: Sequence[NamedToken]) -> None:
    for token in missing:
        token_id = tokenizer.token_to_id(token.entry["content"])
        if token_id != token.entry["id"]:
            raise UnsupportedModelError(
                f"{token} is not in tokenizer.json and would have id {token_id} there; save the tokenizer again with "
                "transformers, so that its files agree"
            )
