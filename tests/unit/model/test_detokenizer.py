"""Incremental detokenizing for tokenizers that differ from the default's: byte fallback, as in Llama 2."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.tokenizer import MAX_HELD_TOKENS, REPLACEMENT, Tokenizer
from tests.support.tiny_checkpoint import tiny_tokenizer_json

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
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces[:MAX_HELD_TOKENS])  # later, what can be none
    detokenizer.flush()


@given(st.text(alphabet="a\u00e9\U0001f600 Hello\u4e16", max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_joined_are_the_text_decoded_at_once(text: str) -> None:
    """For every real text: characters in one token, in several bytes, and words with their spaces."""
    token_ids = TOKENIZER.encode(text)
    detokenizer = TOKENIZER.incremental()
    pieces = [detokenizer.push(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(token_ids)


def test_stray_bytes_are_shown_before_they_pile_up() -> None:
    """A run of bytes that is no text keeps the detokenizer's work small, and loses nothing."""
    tokenizer = Tokenizer(tiny_tokenizer_json())
    lead = tokenizer.encode("é")[0]
    ids = [lead] * 200 + tokenizer.encode("é漢🙂 end")
    detokenizer, pieces, most_held = tokenizer.incremental(), [], 0
    for token_id in ids:
        pieces.append(detokenizer.push(token_id))
        most_held = max(most_held, len(detokenizer._ids))
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)
    assert most_held < 32


def test_skipped_special_tokens_are_not_held() -> None:
    """They have no text that could change."""
    tokenizer = Tokenizer(tiny_tokenizer_json())
    end = tokenizer.encode("<|end|>")[0]
    ids = [*tokenizer.encode("a"), *[end] * 100, *tokenizer.encode("é")]
    detokenizer = tokenizer.incremental()
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == "aé"
    assert len(detokenizer._ids) < 8
