"""SourceContent: what one source says, before anything is decided about it.

Separate from its readers (Hugging Face folders, GGUF files), so that what both may say is settled in one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from model.config import ModelConfig
from model.special_tokens import AddedEnds


@dataclass(frozen=True)
class SourceContent:
    """`tensors`: float32 arrays by Hugging Face name without `model.`. `name`: what the source calls itself.

    `config` has the end tokens that are stated as ids; `eos_texts` are those stated as text, by the file that does.
    """

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: Mapping[str, str]
    licence: str
    name: str | None = None
    eos_texts: Mapping[str, str] = field(default_factory=dict)
    added_ends: AddedEnds = field(default_factory=AddedEnds)
    notes: tuple[str, ...] = ()
