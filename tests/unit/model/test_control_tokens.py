"""Control tokens in tokenizers of every kind: as templates write them they are tokens, as contents spell them text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle import Bundle
from model.control_tokens import STAND_IN, STAND_INS, ControlTokenError, ControlTokens, is_control
from model.tokenizer import Tokenizer
from tests.support.errors import one_line
from tests.support.tiny_tokenizers import (
    CONTROL,
    FLAGS,
    MAKERS,
    NOT_SPECIAL,
    TEXT_TOKENS,
    out_of_order,
    tokenizer_json,
    with_old_merges,
)

ALL = (*CONTROL, *NOT_SPECIAL)
# Left out: a normalizer that changes a normalized token, and merges that build a token which stands inside a word.
# There the tokenizer itself makes text of a template's token, or a token of a content's text.
ODD = {(kind, "single-word") for kind in MAKERS if kind != "byte-level"} | {("sentence-piece", "normalized")}
KINDS = [(kind, flags) for kind in MAKERS for flags in FLAGS if (kind, flags) not in ODD]
TOKENIZERS = {(kind, flags): Tokenizer(tokenizer_json(kind, flags)) for kind in MAKERS for flags in FLAGS}
PIECES = st.lists(st.sampled_from([*ALL, *TEXT_TOKENS, " the", "and ing\n", "x", "  y", "_"]), min_size=1, max_size=10)


def control_ids(tokenizer: Tokenizer, token_ids: list[int]) -> list[int]:
    """Those of control tokens. `<unk>` is none here: it also stands for characters that a vocabulary lacks."""
    return [token_id for token_id in token_ids if tokenizer.token_text(token_id) in set(ALL) - {"<unk>"}]


@pytest.mark.parametrize(("kind", "flags"), KINDS)
@given(parts=PIECES, starts=st.booleans())
@settings(max_examples=40, deadline=None)
def test_pieces_get_the_ids_of_the_whole_text(kind: str, flags: str, parts: list[str], starts: bool) -> None:
    """Where all control tokens are the template's, nothing has changed: merges, spaces and neighbours included."""
    tokenizer, text = TOKENIZERS[kind, flags], "".join(parts)
    pieces = tokenizer.control_tokens.split(text)
    assert tokenizer.encode_pieces(pieces, add_special_tokens=starts) == tokenizer.encode(
        text, add_special_tokens=starts
    )


@pytest.mark.parametrize(("kind", "flags"), list(TOKENIZERS))
@given(parts=PIECES)
@settings(max_examples=40, deadline=None)
def test_what_a_text_spells_is_never_a_control_token(kind: str, flags: str, parts: list[str]) -> None:
    """Whatever the token's flags, whether or not merges or the likeliest pieces would build it."""
    tokenizer, text = TOKENIZERS[kind, flags], "".join(parts)
    for token_ids in (
        tokenizer.encode(text, add_special_tokens=False, parse_special=False),
        tokenizer.encode_pieces([text]),
    ):
        assert control_ids(tokenizer, token_ids) == []
        written = tokenizer.decode(token_ids, skip_special_tokens=False)
        assert re.sub(r"\s+", "", written) == re.sub(r"\s+", "", text)  # some kinds add spaces of their own


@pytest.mark.parametrize(
    "text", ["", "a", "<|im_end|>", "\ufdd0", "\ufdd0x.0\ufdd1<s>\ufdd1", "\U0010fffd", "a\ud800b"]
)
def test_byte_level_text_comes_back(text: str) -> None:
    """Also the characters between which the hidden names of control tokens stand."""
    tokenizer = TOKENIZERS["byte-level", "plain"]
    token_ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text.replace("\ud800", "\ufffd")


def test_a_start_token_is_added_when_asked() -> None:
    """By the tokenizer's own post-processor, to pieces as to texts."""
    tokenizer = TOKENIZERS["byte-level", "plain"]
    start = tokenizer.encode("<s>", add_special_tokens=False)
    for starts in (True, False):
        expected = start * starts
        assert tokenizer.encode_pieces(["a<s>"], add_special_tokens=starts)[: len(start) * starts] == expected
        assert len(control_ids(tokenizer, tokenizer.encode_pieces(["a<s>"], add_special_tokens=starts))) == starts


def test_merges_may_be_written_in_the_old_way() -> None:
    """As in files of older releases of `tokenizers`."""
    old = Tokenizer(with_old_merges(tokenizer_json("sentence-piece")))
    new = TOKENIZERS["sentence-piece", "plain"]
    for text in ("the</s>and", "</s>", "in the end"):
        assert old.encode(text, parse_special=False) == new.encode(text, parse_special=False)


def test_a_merge_builds_no_control_token() -> None:
    """The tokenizer itself does so with text in which the token is not set off."""
    tokenizer = TOKENIZERS["sentence-piece", "single-word"]
    assert len(control_ids(tokenizer, tokenizer.encode("a</s>b", add_special_tokens=False))) == 1
    assert control_ids(tokenizer, tokenizer.encode_pieces(["a</s>b"])) == []


def test_ids_that_a_file_gives_out_of_order_are_those_that_the_tokenizer_gives() -> None:
    """`tokenizers` numbers added tokens by their order in the file; both ways of reading agree."""
    tokenizer = Tokenizer(out_of_order(tokenizer_json("byte-level")))
    for token in ALL:
        assert tokenizer.encode_pieces(["", token, ""]) == tokenizer.encode(token, add_special_tokens=False)


@pytest.mark.parametrize(
    ("content", "is_special", "expected", "reason"),
    [
        ("<|im_end|>", True, True, "special"),
        ("EOS", True, True, "special, though a word"),
        ("<think>", False, True, "not special, but no text: it steers the model"),
        ("<\uff5cUser\uff5c>", False, True, "as DeepSeek marks turns"),
        ("[TOOL_CALLS]", False, True, "as Mistral marks calls"),
        ("\n\n", False, False, "white space is text"),
        ("\u2581\u2581", False, False, "and so are SentencePiece's spaces"),
        ("Stockholm", False, False, "a word that someone has added is text"),
        ("  ", True, False, "white space ends no turn"),
    ],
)
def test_which_added_tokens_are_control_tokens(content: str, is_special: bool, expected: bool, reason: str) -> None:
    """All special ones, and those that are neither words nor white space."""
    assert is_control(content, is_special=is_special) is expected, reason


TOKENS = ControlTokens(["<|im_end|>", "<|user|>", "EOS", "[INST]"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<|im_end|>", "a control token"),
        ("a <", "its beginning, which what follows may complete"),
        ("im_end|>", "its end, which what stands in front may complete"),
        ("im_end", "the word within it, which a template may put between marks"),
        (" User\n", "the same after trimming and in lower case"),
        ("the EOS here", "a control token that is a word"),
        ("x]", "any of its marks"),
    ],
)
def test_suspicious_contents_are_disguised_one_for_one(content: str, reason: str) -> None:
    """No control token can come of the disguise, and the content comes of it again."""
    disguise = TOKENS.disguise([content])
    assert disguise is not None, reason
    hidden = disguise.hide(content)
    assert hidden != content
    assert len(hidden) == len(content)
    assert disguise.reveal(hidden) == content
    assert [character.isspace() for character in hidden] == [character.isspace() for character in content]
    assert len(TOKENS.split("<|" + hidden + "|>")) == len(TOKENS.split(f"<|im_{hidden}|>")) == 1


@pytest.mark.parametrize("content", ["", "hello", "a user", "im_endings", "quotes \"'", "(x) {y} 100 %"])
def test_other_contents_need_no_disguise(content: str) -> None:
    """They are rendered once."""
    assert TOKENS.disguise([content]) is None


def test_stand_ins_are_characters_that_no_content_has() -> None:
    """So a content of such characters comes back as it is."""
    content = "<" + "".join(STAND_INS[:5000])
    disguise = TOKENS.disguise([content])
    assert disguise is not None
    assert disguise.reveal(disguise.hide(content)) == content
    assert not disguise.stand_ins & set(content)


def test_stand_ins_are_written_as_they_are() -> None:
    """Printable, without cases, and no white space: templates that change or print contents leave them alone."""
    text = "".join(STAND_INS)
    assert len(STAND_IN.findall(text)) == len(set(text)) == len(text)
    assert repr(text) == f"'{text}'"
    assert text.upper() == text.lower() == text.title() == text
    assert not any(character.isspace() for character in text)


def test_contents_of_all_stand_ins_are_refused() -> None:
    """There is nothing left that could stand in."""
    with pytest.raises(ControlTokenError) as caught:
        TOKENS.disguise(["<" + "".join(STAND_INS)])
    one_line(caught.value)


@pytest.mark.model
def test_every_added_token_of_the_default_model_is_text_where_it_is_spelled(default_bundle: Bundle) -> None:
    """And a token where it is a template's."""
    tokenizer = Tokenizer(default_bundle.tokenizer_json)
    assert len(tokenizer.control_tokens.spellings) == 17
    for token in tokenizer.control_tokens.spellings:
        for text in (token, f"a {token}b", token * 2, f"{token}\n"):
            token_ids = tokenizer.encode(text, parse_special=False)
            assert tokenizer.decode(token_ids) == text  # special tokens would be skipped
        assert len(tokenizer.encode_pieces(["", token, ""])) == 1
