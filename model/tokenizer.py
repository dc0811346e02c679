"""Tokenizer: text <-> token ids, and the incremental way back that never emits half a UTF-8 character.

Separate from the engine because ids and text meet nowhere else. The work is done by Hugging Face `tokenizers`.
"""

import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer as FastTokenizer

from model.control_tokens import ControlTokens, PlainTextTokenizer, is_control
from model.errors import UserError

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 12  # more than any character has
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies spell single bytes


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for the characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


BYTE_OF_CHARACTER = _byte_of_character()


def added_ids(tokenizer: FastTokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and behind every text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


class TokenizerError(UserError, ValueError):
    """tokenizer.json cannot be read; the message is one line."""


class Tokenizer:
    """A model's tokenizer. Thread-safe: it holds no state of any request."""

    def __init__(self, tokenizer_json: str) -> None:
        """Load the text of a tokenizer.json.

        Raises:
            TokenizerError: it is not one.
        """
        try:
            self._tokenizer = FastTokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(f"tokenizer.json is not readable: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._added_before, self._added_behind = added_ids(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        values = json.loads(tokenizer_json)
        control = {
            token.content: token_id
            for token_id, token in added.items()
            if is_control(token.content, is_special=token.special)
        }
        self.control_tokens = ControlTokens(control)
        self._plain = PlainTextTokenizer(self._tokenizer, values, control)
        decoder = values.get("decoder")
        self._is_byte_level = '"ByteLevel"' in json.dumps(decoder)
        # bytes one after the other and nothing else: a text is its tokens' texts, where those are whole characters
        self._is_additive = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
        self.longest_token_characters = max(map(len, self._tokenizer.get_vocab()))
        self._texts: dict[int, str] = {}  # single tokens that answers have shown, decoded

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text. `add_special_tokens`: what the model's own post-processor adds, such as a start token.

        What a text already begins or ends with is not added again.

        parse_special: control tokens written out in the text become their single ids; otherwise they stay text. A lone
        surrogate (from a command line that is not UTF-8) counts as U+FFFD.
        """
        text = _without_surrogates(text)
        if not parse_special:
            return self._plain.encode([text], add_special_tokens=add_special_tokens)
        # a batch of one: `tokenizers` releases the interpreter lock only for batches, and streams must go on
        ids = list(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
        return self._added_once(ids) if add_special_tokens else ids

    def _added_once(self, ids: list[int]) -> list[int]:
        """The ids without those that the tokenizer added to a text which had them already."""
        before, behind = len(self._added_before), len(self._added_behind)
        if before and ids[before : 2 * before] == self._added_before:
            ids = ids[before:]
        if behind and ids[-2 * behind : -behind] == self._added_behind and len(ids) >= 2 * behind:
            ids = ids[:-behind]
        return ids

    def encode_pieces(self, pieces: Sequence[str], *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a rendered conversation: its second, fourth … piece is a control token, the others are text.

        What the text spells stays text. Otherwise the ids are those of the pieces joined.
        """
        texts = [_without_surrogates(piece) for piece in pieces]
        ids = self._plain.encode(texts, add_special_tokens=add_special_tokens)
        return self._added_once(ids) if add_special_tokens else ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no UTF-8 character become U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """One token's own text, special tokens written out; bytes that form no character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """One token's own bytes, which may be part of a character; empty for an id without a token."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return token.encode("utf-8")
        if self._is_byte_level:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        if (match := BYTE_TOKEN.fullmatch(token)) is not None:
            return bytes([int(match.group(1), 16)])
        return token.replace("\u2581", " ").encode("utf-8")

    def incremental(self, *, skip_special_tokens: bool = True) -> "IncrementalDetokenizer":
        """A fresh detokenizer for one answer."""
        skipped_ids: frozenset[int] = self._special_ids if skip_special_tokens else frozenset()
        return IncrementalDetokenizer(self._tokenizer, skipped_ids, self._texts, is_additive=self._is_additive)


def _without_surrogates(text: str) -> str:
    """`tokenizers` refuses halves of UTF-16 pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class IncrementalDetokenizer:
    """Turns one answer's tokens into text piece by piece; the pieces joined equal the whole decoded at once.

    A token's text can depend on its neighbours (a character's bytes, a leading space), so each piece is the difference
    between two decodings that begin at the same token. A piece that ends in U+FFFD waits: it may be half a character.
    """

    def __init__(
        self,
        tokenizer: FastTokenizer,
        skipped_ids: frozenset[int],
        texts: dict[int, str],
        *,
        is_additive: bool = False,
    ) -> None:
        """Begin an answer.

        skipped_ids: tokens that have no text here. texts: decoded single tokens, kept for all answers. is_additive:
        tokens that are whole characters decode alone to what they add to a text.
        """
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._texts = texts
        self._is_additive = is_additive
        self._ids: list[int] = []  # from the first token of the piece before the last
        self._num_shown = 0  # of these, tokens whose text has been returned
        self._shown = ""  # their text, decoded alone

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        if token_id in self._skipped_ids:
            return ""
        if self._is_additive and self._num_shown == len(self._ids):
            piece = self._single(token_id)
            if piece and REPLACEMENT not in piece:
                self._ids, self._num_shown, self._shown = [token_id], 1, piece
                return piece
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._shown):
            return self._shed(text) if len(self._ids) - self._num_shown > MAX_HELD_TOKENS else ""
        piece = text[len(self._shown) :]
        del self._ids[: self._num_shown]
        self._num_shown = len(self._ids)
        self._shown = self._single(self._ids[0]) if self._num_shown == 1 else self._decode(self._ids)
        return piece

    def _shed(self, text: str) -> str:
        """Show what can no longer become a character, so that an answer of stray bytes does not pile up.

        text: of all that is held. It is cut where the two parts decode to it: among four neighbouring places one lies
        between characters, because a character has at most four bytes.
        """
        for cut in range(len(self._ids) - 3, len(self._ids) - 7, -1):
            head, tail = self._decode(self._ids[:cut]), self._decode(self._ids[cut:])
            if head + tail == text:
                piece = head[len(self._shown) :]
                self._ids, self._num_shown, self._shown = self._ids[cut:], 0, ""
                return piece
        return ""

    def flush(self) -> str:
        """The text of what is still held at the end of the answer, with U+FFFD for an incomplete character."""
        piece = self._decode(self._ids)[len(self._shown) :]
        self._ids, self._num_shown, self._shown = [], 0, ""
        return piece

    def _single(self, token_id: int) -> str:
        """One token's text, decoded once for all answers: most of their decoding."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._decode([token_id])
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=bool(self._skipped_ids)))
