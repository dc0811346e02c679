"""Incremental detokenizing for tokenizers that differ from the default's: byte fallback, as in Llama 2."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.tokenizer import REPLACEMENT, Tokenizer

WORDS = ["\u2581Hello", "\u2581world", "llo", "\u2581", "a", "\u00e9", "\U0001f600"]


def byte_fallback_tokenizer() -> Tokenizer:
    """Words, and a token for each byte that no word covers."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = FastTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return Tokenizer(tokenizer.to_str())


TOKENIZER = byte_fallback_tokenizer()
NUM_TOKENS = 1 + 256 + len(WORDS) + 1


@given(st.lists(st.integers(0, NUM_TOKENS - 1), max_size=24))
@settings(max_examples=400, deadline=None)
def test_no_sequence_of_tokens_raises_and_nothing_shown_is_half_a_character(token_ids: list[int]) -> None:
    """Stray fallback bytes between words included: what is shown before the end never stops at a broken character."""
    detokenizer = TOKENIZER.incremental()
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces)
    detokenizer.flush()


@given(st.text(alphabet="a\u00e9\U0001f600 Hello\u4e16", max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_joined_are_the_text_decoded_at_once(text: str) -> None:
    """For every real text: characters in one token, in several bytes, and words with their spaces."""
    token_ids = TOKENIZER.encode(text)
    detokenizer = TOKENIZER.incremental()
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(token_ids)
