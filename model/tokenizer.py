"""Tokenizer: text <-> token ids, and the incremental way back that never emits half a UTF-8 character.

Separate from the engine because ids and text meet nowhere else. The work is done by Hugging Face `tokenizers`.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import DecodeStream


class TokenizerError(ValueError):
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

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. `add_special_tokens`: what the model's own post-processor adds, such as a start token.

        Special tokens written out in the text become their single ids, as chat templates need. A lone surrogate (from a
        command line that is not UTF-8) counts as U+FFFD.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except TypeError:  # how `tokenizers` refuses lone surrogates
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that form no UTF-8 character become U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def incremental(self, *, skip_special_tokens: bool = True) -> "IncrementalDetokenizer":
        """A fresh detokenizer for one answer."""
        return IncrementalDetokenizer(self._tokenizer, skip_special_tokens)


class IncrementalDetokenizer:
    """Turns one answer's tokens into text piece by piece; the pieces joined equal the whole decoded at once."""

    def __init__(self, tokenizer: FastTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []  # tokens whose bytes don't yet end a character

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; empty while a character is incomplete."""
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            self._held.append(token_id)
            return ""
        self._held.clear()
        return str(text)

    def flush(self) -> str:
        """The text of what is still held at the end of the answer, with U+FFFD for an incomplete character."""
        held, self._held = self._held, []
        return str(self._tokenizer.decode(held, skip_special_tokens=self._skip_special_tokens)) if held else ""
