"""Tokens back to text, piece by piece: nothing is lost, and no half character is shown."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.bundle import Bundle
from model.tokenizer import Tokenizer, TokenizerError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import END_TOKEN, tiny_tokenizer_json

REPLACEMENT = "\ufffd"
TINY = Tokenizer(tiny_tokenizer_json())
END_ID = 256
TEXTS = (
    "plain words",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 🇪🇺",
    "e\u0301 a\u0308 \u0915\u094d\u0937",
    "你好世界。模型",
    "naïve “quotes” — ½",
    "\n\n\t  spaces \u3000",
    "",
)
REAL = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pieces(tokenizer: Tokenizer, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> list[str]:
    """The text of each token in turn, and at last what was held back."""
    detokenizer = tokenizer.incremental(skip_special_tokens=skip_special_tokens)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def real(default_bundle: Bundle) -> Tokenizer:
    """The default model's tokenizer."""
    return Tokenizer(default_bundle.tokenizer_json)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_bytes_as_tokens(text: str) -> None:
    """One token a byte: every character of several bytes is incomplete for a while."""
    token_ids = TINY.encode(text)
    assert len(token_ids) == len(text.encode())
    assert TINY.decode(token_ids) == text
    shown = pieces(TINY, token_ids)
    assert "".join(shown) == text
    assert REPLACEMENT not in "".join(shown)
    assert shown[-1] == ""


def test_character_is_shown_whole_with_its_last_byte() -> None:
    """An emoji of four bytes: three empty pieces, then the emoji."""
    assert pieces(TINY, TINY.encode("a🙂b")) == ["a", "", "", "", "🙂", "b", ""]


def test_incomplete_character_at_the_end_is_flushed_once() -> None:
    """An answer that stops inside an emoji ends with U+FFFD; a second flush adds nothing."""
    detokenizer = TINY.incremental()
    assert [detokenizer.push(token_id) for token_id in TINY.encode("a🙂")[:3]] == ["a", "", ""]
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


@given(st.lists(st.integers(0, 256), max_size=24))
@settings(max_examples=400, deadline=None)
@example([TINY.encode("é")[0]] * 3)
@example([*TINY.encode("é")[:1], END_ID, *TINY.encode("é")[1:]])
@example([*TINY.encode("🙂")[:3], *TINY.encode("🙂")])
def test_pieces_of_any_bytes_join_to_the_whole(token_ids: list[int]) -> None:
    """Valid UTF-8 or not, with end tokens in between."""
    for skip in (True, False):
        joined = "".join(pieces(TINY, token_ids, skip_special_tokens=skip))
        assert joined == TINY.decode(token_ids, skip_special_tokens=skip)


@given(st.text(alphabet=st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=200, deadline=None)
def test_pieces_of_valid_text_never_hold_half_a_character(text: str) -> None:
    """No U+FFFD and nothing held back, for any text."""
    shown = pieces(TINY, TINY.encode(text))
    assert "".join(shown) == text
    assert shown[-1] == ""


def test_replacement_character_in_the_text_itself_is_shown() -> None:
    """It is a character like others: only later than them."""
    assert "".join(pieces(TINY, TINY.encode(f"a{REPLACEMENT}b{REPLACEMENT}"))) == f"a{REPLACEMENT}b{REPLACEMENT}"


def test_special_tokens_are_one_id_and_not_shown() -> None:
    """Written out in a prompt they count as the token; in an answer they are skipped unless asked for."""
    assert TINY.encode(f"a{END_TOKEN}") == [*TINY.encode("a"), END_ID]
    token_ids = [*TINY.encode("a"), END_ID, *TINY.encode("b")]
    assert TINY.decode(token_ids) == "ab"
    assert pieces(TINY, token_ids) == ["a", "", "b", ""]
    assert TINY.decode(token_ids, skip_special_tokens=False) == f"a{END_TOKEN}b"
    assert pieces(TINY, token_ids, skip_special_tokens=False) == ["a", END_TOKEN, "b", ""]


def test_answers_do_not_share_state() -> None:
    """Two detokenizers of one tokenizer, token by token in turn."""
    first, second = TINY.incremental(), TINY.incremental()
    shown = [(first.push(a), second.push(b)) for a, b in zip(TINY.encode("é1"), TINY.encode("ü2"), strict=True)]
    assert shown == [("", ""), ("é", "ü"), ("1", "2")]


def test_lone_surrogate_is_encoded_as_the_replacement_character() -> None:
    """A command line that is not UTF-8 arrives with them; they are no reason to fail."""
    assert TINY.decode(TINY.encode("a\ud800b")) == f"a{REPLACEMENT}b"


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", '{"version": "1.0", "model": 5}', '"\ud800"', "\x00"])
def test_unreadable_tokenizer_json_is_a_tokenizer_error(text: str) -> None:
    """One line that names the file."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not readable") as caught:
        Tokenizer(text)
    one_line(caught.value)


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_default_tokenizer_returns_every_text(real: Tokenizer, text: str) -> None:
    """Whole and in pieces."""
    token_ids = real.encode(text)
    assert real.decode(token_ids) == text
    shown = pieces(real, token_ids)
    assert "".join(shown) == text
    assert REPLACEMENT not in "".join(shown)


@pytest.mark.model
@given(data=st.data())
@REAL
def test_pieces_of_any_tokens_of_the_default_model_join_to_the_whole(real: Tokenizer, data: st.DataObject) -> None:
    """Any ids, often those that end inside a character, special ones among them."""
    halves = real.encode("🙂é你") + list(range(3))
    token_ids = data.draw(st.lists(st.integers(0, 49_151) | st.sampled_from(halves), max_size=16))
    for skip in (True, False):
        joined = "".join(pieces(real, token_ids, skip_special_tokens=skip))
        assert joined == real.decode(token_ids, skip_special_tokens=skip)
