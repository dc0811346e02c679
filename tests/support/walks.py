"""Texts walked through constraints of the tiny tokenizer, whose tokens are bytes."""

from typing import Any

import numpy as np

from model.constraint import ConstraintCompiler, ConstraintSpec, SchemaRules
from model.tokenizer import Tokenizer
from tests.support.tiny_checkpoint import tiny_tokenizer_json

END = 256
VOCAB_SIZE = 257
TOKENIZER = Tokenizer(tiny_tokenizer_json())


def tiny_compiler() -> ConstraintCompiler:
    """A compiler for the tiny tokenizer."""
    return ConstraintCompiler(tiny_tokenizer_json(), VOCAB_SIZE, [END])


def accepts(compiler: ConstraintCompiler, schema: dict[str, Any], text: str, rules: SchemaRules | None = None) -> bool:
    """Whether a text may be written for a schema."""
    constraint = compiler.compile(ConstraintSpec.json_schema(schema, rules or SchemaRules()))
    logits = np.zeros(VOCAB_SIZE, np.float32)
    for token_id in [*TOKENIZER.encode(text), END]:
        if constraint.is_finished:
            return token_id == END
        logits[:] = 0
        constraint.mask(logits)
        if not np.isfinite(logits[token_id]):
            return False
        constraint.advance(token_id)
    return True


def check(compiler: ConstraintCompiler, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    """Every good text may be written, and no bad one."""
    assert [text for text in good if not accepts(compiler, schema, text)] == []
    assert [text for text in bad if accepts(compiler, schema, text)] == []
