"""The byte-level BPE tokenizer of a GGUF file's metadata, its end tokens and what it adds to prompts.

Separate from gguf_file.py, which reads geometry and weights. Sources: the GGUF specification of ggml; the spellings
and defaults that files leave unsaid are llama.cpp's.
"""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from model.config import UnsupportedModelError
from model.gguf_parts import Fields
from model.special_tokens import AddedEnds

TYPES = "tokenizer.ggml.token_type"
CONTROL_TOKEN = 3  # ggml's token types
USER_DEFINED_TOKEN = 4
TURN_ENDS = (  # how ends of turns are spelled: older files name no eot token, and some call these plain text
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
)
MESSAGE_END = "<|eom_id|>"  # ends a call of a tool; few files name it as eom
TEXT_ENDS = ("<|end_of_text|>", "<|endoftext|>", "<|return|>", "<EOT>")  # where these are control tokens
LLAMA3_NAMES = ("llama-bpe", "llama-v3", "llama3")  # pre-tokenizers whose files may leave add_bos_token unsaid
LLAMA3_SPLIT = "|".join(  # the pattern in the tokenizer.json of Llama 3
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def named_tokens(fields: Fields) -> dict[str, str]:
    """`bos_token` and `eos_token` as text."""
    tokens = fields.need("tokenizer.ggml.tokens")
    named = {}
    for name in ("bos", "eos"):
        token_id = _token_id(fields, name)
        if token_id is not None:
            named[f"{name}_token"] = str(tokens[token_id])
    return named


def end_token_ids(fields: Fields) -> tuple[int, ...]:
    """The ids called eos, eot and eom, and tokens that are spelled like ends.

    Ends of turns and of messages are looked for only where the metadata names none; ends of texts always.

    Raises:
        UnsupportedModelError: one of them is outside the vocabulary.
    """
    tokens = list(fields.need("tokenizer.ggml.tokens"))
    control = {text for text, kind in zip(tokens, fields.need(TYPES), strict=False) if kind == CONTROL_TOKEN}
    eos, eot, eom = (_token_id(fields, name) for name in ("eos", "eot", "eom"))
    spelled = [text for text in TURN_ENDS if text in tokens] if eot is None else []
    spelled += [MESSAGE_END] if eom is None and MESSAGE_END in control else []
    spelled += [text for text in TEXT_ENDS if text in control]
    ids = (eos, eot, eom, *(tokens.index(text) for text in spelled))
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def added_ends(fields: Fields, named: dict[str, str]) -> AddedEnds:
    """The additions to raw prompts that the file asks for; unsaid, nothing but a Llama 3 tokenizer's start token."""
    is_llama3 = fields.get("tokenizer.ggml.pre") in LLAMA3_NAMES
    return AddedEnds(
        bos=named.get("bos_token"),
        eos=named.get("eos_token"),
        add_bos=bool(fields.get("tokenizer.ggml.add_bos_token", is_llama3 and "bos_token" in named)),
        add_eos=bool(fields.get("tokenizer.ggml.add_eos_token", False)),
    )


def _token_id(fields: Fields, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value, size = fields.get(key), fields.length("tokenizer.ggml.tokens")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < size:
        raise UnsupportedModelError(f"GGUF {key} is {value!r}, which is not in the vocabulary of {size}")
    return value


def read_tokenizer(fields: Fields) -> str:
    """The byte-level BPE tokenizer of the metadata, as a `tokenizer.json`."""
    kind, split = fields.need("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UnsupportedModelError(f"GGUF tokenizer {kind!r} is not supported; export from the Hugging Face folder")
    tokens = fields.need("tokenizer.ggml.tokens")
    types = fields.need(TYPES)
    merges = [tuple(merge.split(" ", 1)) for merge in fields.need("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in LLAMA3_NAMES))
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN or t in TURN_ENDS]
    defined = [t for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED_TOKEN and t not in TURN_ENDS]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in defined])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by the name that GGUF gives it."""
    if name in ("smollm", "starcoder", "refact", "command-r"):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in LLAMA3_NAMES:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise UnsupportedModelError(f"GGUF pre-tokenizer {name!r} is not supported; export from the Hugging Face folder")
