"""Which tokens begin and end a text: what the tokenizer's files say, and the tokenizer.json that does it.

Separate from tokenizer.py, which serves: here the files of a checkpoint are settled into one tokenizer.json, so that a
bundle needs no further setting to add a start token to raw prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from model.tokenizer import added_ids

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedEnds:
    """Tokens added to raw prompts. bos, eos: the tokens' text, if known. add_*: None keeps what tokenizer.json does."""

    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None


def special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the files name, as text: chat templates may refer to them. The first source wins."""
    tokens: dict[str, str] = {}
    for name in TOKEN_NAMES:
        for source in sources:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens.setdefault(name, text)
    return tokens


def with_added_ends(tokenizer_json: str, wanted: AddedEnds) -> tuple[str, list[str]]:
    """The tokenizer.json that adds exactly the wanted tokens to a text, and lines about what could not be done.

    Nothing changes where the tokenizer already does what is wanted: most of them come with a post-processor that does.
    """
    tokenizer = FastTokenizer.from_str(tokenizer_json)
    before, behind = added_ids(tokenizer)
    notes: list[str] = []
    begin = _with_or_without(tokenizer, before, wanted.bos, wanted.add_bos, notes, "add_bos_token")
    end = _with_or_without(tokenizer, behind, wanted.eos, wanted.add_eos, notes, "add_eos_token")
    if wanted.add_eos and end:
        notes.append(f"add_eos_token: raw prompts end with {wanted.eos!r}, and answers continue behind it")
    if (begin, end) == (before, behind):
        return tokenizer_json, notes
    values = json.loads(tokenizer_json)
    values["post_processor"] = _post_processor(tokenizer, begin, end)
    return json.dumps(values, ensure_ascii=False), notes


def _with_or_without(
    tokenizer: FastTokenizer, ids: list[int], token: str | None, wanted: bool | None, notes: list[str], setting: str
) -> list[int]:
    """The ids to add at one side: with the token once, or without it."""
    if wanted is None:
        return ids
    token_id = None if token is None else tokenizer.token_to_id(token)
    if token_id is None:
        if wanted:
            fault = "no such token is named" if token is None else f"{token!r} is not in the vocabulary"
            notes.append(f"{setting} is true, but {fault}; raw prompts begin and end as they are")
        return ids
    others = [other for other in ids if other != token_id]
    return [token_id, *others] if wanted else others


def _post_processor(tokenizer: FastTokenizer, begin: Sequence[int], end: Sequence[int]) -> dict[str, Any] | None:
    """A `TemplateProcessing` that adds the ids; None for no ids."""
    if not begin and not end:
        return None
    names = {token_id: tokenizer.id_to_token(token_id) for token_id in (*begin, *end)}

    def special(ids: Sequence[int], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[token_id], "type_id": type_id}} for token_id in ids]

    single = [*special(begin, 0), {"Sequence": {"id": "A", "type_id": 0}}, *special(end, 0)]
    pair = [*single, *special(begin, 1), {"Sequence": {"id": "B", "type_id": 1}}, *special(end, 1)]
    described = {name: {"id": name, "ids": [token_id], "tokens": [name]} for token_id, name in names.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": described}
