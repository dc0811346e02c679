"""Token ids to text, piece by piece, from a byte-level tokenizer.json. Both shims need it, neither owns it."""

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def token_bytes(tokenizer_json: Path) -> list[bytes]:
    """The bytes of each token of a byte-level BPE vocabulary, by id; special tokens have none."""
    tokenizer = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary = tokenizer["model"]["vocab"]
    table = [b""] * (max(vocabulary.values()) + 1)
    for text, token_id in vocabulary.items():
        if token_id not in special:
            table[token_id] = bytes(byte_of[character] for character in text if character in byte_of)
    return table


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, bytes_to_unicode)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


class TextStream:
    """One answer's text; a character that is not complete yet waits for its other bytes."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens add."""
        return self._decoder.decode(b"".join(self._table[token_id] for token_id in token_ids))
