"""Small tokenizers of every kind that published models have, with control tokens, each as the text of a tokenizer.json.

Their vocabularies can spell any text that uses printable ASCII, so that decoding gives back what was encoded.
"""

import json
import string
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CONTROL = ("<|im_start|>", "<|im_end|>", "<|im|>", "<s>", "</s>", "[INST]", "[/INST]", "<unk>")
NOT_SPECIAL = ("<think>", "</think>", "<\uff5cUser\uff5c>", "<tool_call>")  # control tokens all the same
TEXT_TOKENS = ("\n\n", "    ")  # added tokens that are pieces of text
CHARACTERS = sorted({*string.printable, "\u2581", "\uff5c"})
MERGED = ["th", "the", "an", "and", "in", "ing", "er", "</", "s>", "</s>", "im", "_e", "<|"]


def added(**flags: Any) -> list[AddedToken]:
    """The added tokens, with flags for the special ones."""
    special = [AddedToken(token, special=True, **{"normalized": False, **flags}) for token in CONTROL]
    plain = [AddedToken(token, special=False, normalized=False) for token in (*NOT_SPECIAL, *TEXT_TOKENS)]
    return [*special, *plain]


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Merges that build each piece from its beginning and its last character, or from two pieces."""
    splits = {"the": ("th", "e"), "and": ("an", "d"), "ing": ("in", "g"), "</s>": ("</", "s>")}
    return [splits.get(piece, (piece[:1], piece[1:])) for piece in pieces]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["th", "the", "an", "and", "in", "ing", "er"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *pieces, *(f"Ġ{piece}" for piece in ("th",))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[*merges_of(pieces), ("Ġ", "th")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2: a normalizer puts a space in front, control tokens are in the vocabulary and merges build them."""
    pieces = [*CONTROL[3:5], "<unk>", *CHARACTERS, *[piece for piece in MERGED if piece != "</s>"]]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    merges = merges_of([piece for piece in MERGED if piece not in ("the", "and", "ing")])
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary | {"▁th": len(vocabulary)}, merges=[*merges, ("▁", "th")], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return tokenizer


def metaspace(scheme: str) -> Callable[[], Tokenizer]:
    """As Mistral: the space in front belongs to the first piece, to each, or to none."""

    def make() -> Tokenizer:
        tokenizer = sentence_piece()
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
        return tokenizer

    return make


def unigram() -> Tokenizer:
    """As XGLM or T5: the likeliest pieces, among them the control tokens themselves."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece, -5.0) for piece in CHARACTERS)]
    pieces += [(piece, -2.0) for piece in ("▁the", "the", "ing", "an")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "sentence-piece": sentence_piece,
    "metaspace-first": metaspace("first"),
    "metaspace-always": metaspace("always"),
    "metaspace-never": metaspace("never"),
    "unigram": unigram,
}
FLAGS: dict[str, dict[str, bool]] = {
    "plain": {},
    "normalized": {"normalized": True},
    "strips-left": {"lstrip": True},
    "strips-right": {"rstrip": True},
    "single-word": {"single_word": True},
}


def tokenizer_json(kind: str, flags: str = "plain") -> str:
    """A tokenizer of a kind whose special tokens have these flags; it begins texts with `<s>` when asked."""
    tokenizer = MAKERS[kind]()
    tokens = added(**FLAGS[flags])
    tokenizer.add_special_tokens([token for token in tokens if token.special])
    tokenizer.add_tokens([token for token in tokens if not token.special])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return tokenizer.to_str()


def with_old_merges(text: str) -> str:
    """The same tokenizer.json with merges as older versions write them: `"a b"` for `["a", "b"]`."""
    values = json.loads(text)
    values["model"]["merges"] = [" ".join(merge) for merge in values["model"]["merges"]]
    return json.dumps(values)


def out_of_order(text: str) -> str:
    """The same tokenizer.json with its added tokens listed backwards, so that a reader numbers them anew."""
    values = json.loads(text)
    values["added_tokens"].reverse()
    return json.dumps(values)
