"""Tokens that only tokenizer_config.json or added_tokens.json name are the bundle's tokens, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from model.checkpoint import read_checkpoint
from model.config import UnsupportedModelError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import END_TOKEN, edit_json, write_tiny_checkpoint

START, END = "<|im_start|>", "<|im_end|>"
ENTRY = {"content": END, "special": True}


def folder_with(path: Path, vocab_size: int, decoder: Any = ..., added: dict[str, Any] | None = None) -> Path:
    """A checkpoint whose tokenizer.json has 257 tokens and whose other files name more."""
    folder = write_tiny_checkpoint(path / "m", vocab_size=vocab_size)
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder, additional_special_tokens=[START])
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.mark.parametrize(
    ("vocab_size", "decoder", "added", "expected", "special"),
    [
        pytest.param(258, {"257": ENTRY}, None, {END: 257}, {END}, id="the decoder alone: the commonest"),
        pytest.param(
            259, {"257": {"content": START}, "258": ENTRY}, None, {START: 257, END: 258}, {START, END}, id="two"
        ),
        pytest.param(
            259,
            {"258": ENTRY, "257": {"content": START}},
            None,
            {START: 257, END: 258},
            {START, END},
            id="in any order",
        ),
        pytest.param(259, ..., {END: 258, START: 257}, {START: 257, END: 258}, {START}, id="added_tokens.json alone"),
        pytest.param(259, {"258": ENTRY}, {START: 257}, {START: 257, END: 258}, {START, END}, id="one in each file"),
        pytest.param(258, {"257": {"content": END}}, None, {END: 257}, set(), id="a word that is not special"),
        pytest.param(
            258,
            {"256": {"content": END_TOKEN}, "257": ENTRY},
            None,
            {END_TOKEN: 256, END: 257},
            {END},
            id="one is there",
        ),
    ],
)
def test_a_token_that_tokenizer_json_lacks_is_added(
    tmp_path: Path,
    vocab_size: int,
    decoder: Any,
    added: dict[str, Any] | None,
    expected: dict[str, int],
    special: set[str],
) -> None:
    """One token for its text, hidden from answers where it is special, and a line that says so."""
    read = read_checkpoint(folder_with(tmp_path, vocab_size, decoder, added))
    tokenizer = Tokenizer.from_str(read.tokenizer_json)
    for text, token_id in expected.items():
        assert tokenizer.encode(f"a{text}b").ids[1:-1] == [token_id]
    assert special <= {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert all(any(text in note for note in read.notes) for text in expected if text != END_TOKEN)


def test_an_added_token_can_be_the_end(tmp_path: Path) -> None:
    """An eos_token that tokenizer.json lacks ended nothing."""
    folder = folder_with(tmp_path, 258, {"257": ENTRY})
    edit_json(folder / "tokenizer_config.json", eos_token=END)
    assert read_checkpoint(folder).config.eos_token_ids == (256, 257)


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        pytest.param({"256": ENTRY}, f"is another token in tokenizer.json, '{END_TOKEN}'", id="an added token's id"),
        pytest.param({"65": ENTRY}, "is another token in tokenizer.json", id="a plain token's id"),
        pytest.param({"258": ENTRY}, "would have id 257", id="a gap before it"),
    ],
)
def test_a_token_that_cannot_have_its_id_is_refused_by_name(tmp_path: Path, decoder: Any, named: str) -> None:
    """Another id is another embedding."""
    with pytest.raises(UnsupportedModelError) as caught:
        read_checkpoint(folder_with(tmp_path, 259, decoder))
    assert "<|im_end|>" in one_line(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize("decoder", [..., None, [], {"x": ENTRY}, {"257": "x"}, {"257": {"content": 5}}, {"257": {}}])
def test_what_names_no_token_changes_nothing(tmp_path: Path, decoder: Any) -> None:
    """The tokenizer.json stays as it is."""
    folder = folder_with(tmp_path, 258, decoder)
    assert json.loads(read_checkpoint(folder).tokenizer_json) == json.loads((folder / "tokenizer.json").read_text())


def test_a_token_without_an_embedding_is_left_out_with_a_line(tmp_path: Path) -> None:
    """A padding token behind the vocabulary, most likely."""
    read = read_checkpoint(folder_with(tmp_path, 257, {"257": ENTRY}))
    assert Tokenizer.from_str(read.tokenizer_json).token_to_id(END) is None
    assert any("'<|im_end|>' (257) is left out" in note for note in read.notes)
