"""A byte-level tokenizer that has the control tokens of every family in chat_templates.py."""

from functools import cache

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from model.chat import ChatTemplate
from model.tokenizer import Tokenizer
from tests.support.chat_templates import MARKS, SPECIAL_TOKENS, TEMPLATES
from tests.support.tiny_tokenizers import byte_level


def marked_tokenizer_json() -> str:
    """Every second control token is special, as in published files."""
    tokenizer: FastTokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS[::2]])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS[1::2]])
    return tokenizer.to_str()


@cache
def marked_tokenizer() -> Tokenizer:
    """The tokenizer, made once."""
    return Tokenizer(marked_tokenizer_json())


@cache
def marked_template(family: str) -> ChatTemplate:
    """The template of a family, with that tokenizer's control tokens."""
    return ChatTemplate(TEMPLATES[family], SPECIAL_TOKENS, marked_tokenizer().control_tokens)
