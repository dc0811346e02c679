"""Control tokens: contents may spell them, only templates make them. See docs/adr/0017-contents-are-plain-text.md.

Separate from the tokenizer and the template because it is the agreement between both: a prompt is a list of pieces in
which every second one is a control token of the template's own, and nothing else becomes one.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

QUOTING = frozenset("\"'\\")  # JSON and templates write these in other ways
# Characters that stand in for others: printable, so that no form of writing values escapes them, neither letters with
# cases nor white space, and rare. Byzantine musical symbols, then the rarer ideographs.
STAND_INS = (*map(chr, range(0x1_D000, 0x1_D0F6)), *map(chr, range(0x2_0000, 0x2_A6D0)))
STAND_IN = re.compile("[\U0001d000-\U0001d0f5\U00020000-\U0002a6cf]")


class ControlTokenError(ValueError):
    """Contents and control tokens cannot be told apart; the message is one line."""


def is_control(content: str, *, is_special: bool) -> bool:
    """Whether an added token steers the model. Others are words or white space: pieces of text like any token."""
    text = content.replace("\u2581", " ").strip()  # SentencePiece's space
    return bool(text) and (is_special or re.search(r"[^\w\s]", text) is not None)


class PlainTextTokenizer:
    """The same tokenizer with its control tokens spelled as no text can spell them: what is spelled stays text.

    The new spellings hold a secret of this process. Ids, flags, normalisation and what surrounds a token stay the same,
    so that a prompt without forged tokens gets the ids that the tokenizer itself gives it.
    """

    def __init__(self, tokenizer: FastTokenizer, values: dict[str, Any], control_tokens: Mapping[str, int]) -> None:
        """Rename `control_tokens` (spelling to id). values: the tokenizer.json of the tokenizer, parsed."""
        secret = secrets.token_hex(16)
        self._names = {token: f"\ufdd0{secret}.{at}\ufdd1" for at, token in enumerate(control_tokens)}
        added = [dict(token) for token in values.get("added_tokens") or ()]
        self._single_words = frozenset(token["content"] for token in added if token["single_word"])
        for entry in added:
            # a normalizer that changes the token itself would no longer find it under its new name
            entry["normalized"] &= _is_unchanged(tokenizer, entry["content"])
        self._tokenizer = FastTokenizer.from_str(json.dumps(_renamed({**values, "added_tokens": added}, self._names)))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        for token, token_id in control_tokens.items():
            assert self._tokenizer.token_to_id(self._names[token]) == token_id, "ids go by order, which has not changed"

    def encode(self, pieces: Sequence[str], *, add_special_tokens: bool) -> list[int]:
        """Token ids of a prompt's pieces: text, control token, text, and so on."""
        text = "".join(self._names[piece] if self._is_token(pieces, at) else piece for at, piece in enumerate(pieces))
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def _is_token(self, pieces: Sequence[str], at: int) -> bool:
        """Whether a piece is a control token: one that must be a word of its own is text beside letters."""
        if at % 2 == 0 or pieces[at] not in self._single_words:
            return at % 2 == 1
        before, after = "".join(pieces[max(at - 2, 0) : at]), "".join(pieces[at + 1 : at + 3])
        return re.search(r"\w\Z", before) is None and re.match(r"\w", after) is None


def _is_unchanged(tokenizer: FastTokenizer, text: str) -> bool:
    return tokenizer.normalizer is None or tokenizer.normalizer.normalize_str(text) == text


def _renamed(tokenizer: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A parsed tokenizer.json with other spellings for some tokens, and no merge that makes one."""
    model, added_tokens = dict(tokenizer["model"]), tokenizer.get("added_tokens") or ()
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocabulary.items()}
    else:  # Unigram: pairs of a piece and its score
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("merges"):
        skipped = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [merge for merge in model["merges"] if not _makes_one(merge, skipped, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return {**tokenizer, "model": model, "added_tokens": [_with_name(token, names) for token in added_tokens]}


def _with_name(token: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {**token, "content": names[token["content"]], "single_word": False} if token["content"] in names else token


def _makes_one(merge: str | Sequence[str], num_skipped: int, names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right[num_skipped:] in names


class ControlTokens:
    """The spellings of a tokenizer's control tokens."""

    def __init__(self, spellings: Iterable[str] = ()) -> None:
        """Prepare to find and to disguise them."""
        self.spellings = frozenset(spellings)
        longest_first = sorted(self.spellings, key=lambda token: (-len(token), token))  # as `tokenizers` matches them
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        marks = frozenset("".join(re.findall(r"[^\w\s]", " ".join(self.spellings)))) - QUOTING
        bare = [token for token in longest_first if not marks & set(token)]
        spelled = "".join(self.spellings)
        letters = frozenset(spelled.lower() + spelled.upper() + spelled) - QUOTING - frozenset(" \t\r\n")
        self._marks = "".join(sorted(marks))
        self._exchanged = sorted(letters | marks | set("".join(bare)))
        self._words = frozenset(word.lower() for token in self.spellings for word in re.findall(r"\w+", token))
        self._bare = re.compile("|".join(map(re.escape, bare)) or "(?!)")
        self._marked = re.compile("|".join(map(re.escape, self._marks)) or "(?!)")

    def split(self, text: str) -> list[str]:
        """A text as pieces: every second one is a control token that it spells."""
        return self._pattern.split(text)

    def disguise(self, strings: Iterable[str], others: Iterable[str] = ()) -> "Disguise | None":
        """Stand-ins for the characters with which these contents could spell a control token; None if they cannot.

        others: further texts whose characters must not stand in, such as the template's.

        Raises:
            ControlTokenError: the contents use every character that could stand in.
        """
        texts = list(strings)
        has_words = any(_core(text) in self._words or self._bare.search(text) for text in texts)
        if not has_words and not any(self._marked.search(text) for text in texts):
            return None
        taken = {character for text in (*texts, *others) for character in STAND_IN.findall(text)}
        free = (character for character in STAND_INS if character not in taken)
        table = dict(zip(self._exchanged, free, strict=False))
        if len(table) < len(self._exchanged):
            raise ControlTokenError("the messages use every rare ideograph of Unicode; leave some out")
        return Disguise(table, self._marks, self._words, self._bare) if has_words else Disguise(table, self._marks)


class Disguise:
    """Contents under other characters, one for one, so that a rendered prompt shows what stems from contents.

    Lengths, slices, white space and joins stay as they are; only marks (`<`, `|`, `>` …) are exchanged, and all
    characters of a content that is nothing but the word within a token (`im_end`).
    """

    def __init__(
        self,
        table: Mapping[str, str],
        marks: str,
        words: frozenset[str] = frozenset(),
        bare: re.Pattern[str] | None = None,
    ) -> None:
        """table: every character that may be exchanged, and its stand-in. words, bare: where a content has any."""
        self._of_words = str.maketrans(dict(table))
        self.marks = tuple((mark, table[mark]) for mark in marks)
        self._back = [(table[mark], mark) for mark in (table if words or bare else marks)]
        self._words = words
        self._bare = bare
        self.stand_ins = frozenset(table.values())

    def hide(self, value: Any) -> Any:
        """A content in disguise: a text, or JSON with all its keys and texts."""
        if isinstance(value, str):
            return self._hidden(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        return [self.hide(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    def reveal(self, text: str) -> str:
        """The text that was disguised."""
        return exchanged(text, self._back)

    def _hidden(self, text: str) -> str:
        if _core(text) in self._words:
            return text.translate(self._of_words)
        if self._bare is not None:
            text = self._bare.sub(lambda found: found.group().translate(self._of_words), text)
        return exchanged(text, self.marks)


def exchanged(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Character by character; for a few of them many times faster than `str.translate`."""
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def strings_in(value: Any) -> Iterable[str]:
    """Every text in JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings_in(key)
            yield from strings_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings_in(inner)


def _core(text: str) -> str:
    """A short text as templates would put it between marks; a long one is no word."""
    return text.strip().lower() if len(text) <= 256 else ""
