"""GGUF files: the same model as the equivalent folder, and damaged ones refused in one line."""

import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, TokenType
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from model.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from model.config import UnsupportedModelError, config_from_hugging_face
from model.tokenizer import Tokenizer
from tests.support.errors import one_line
from tests.support.reference import default_checkpoint
from tests.support.tiny_checkpoint import tiny_config_json, tiny_tensors
from tests.support.tiny_gguf import END_TOKEN, MERGES, USER_TOKEN, gguf_vocabulary, write_tiny_gguf

TEXTS = (
    "hello there, hello the world",
    "  two  spaces\n\n\ttab, it's I'll",
    f"a{END_TOKEN}b{USER_TOKEN}c",
    "Ünïcödé 日本語 👩‍👧 e\u0301",
    "12 of 1212",
    "",
)


def tiny(**changes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The config.json and tensors of the folder that the tiny GGUF is equivalent to."""
    vocabulary = gguf_vocabulary()
    config = tiny_config_json(vocab_size=len(vocabulary), eos_token_id=vocabulary.index(END_TOKEN), **changes)
    return config, tiny_tensors(config)


def read_tiny(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Checkpoint:
    """Write a tiny GGUF and read it back."""
    return read_checkpoint(write_tiny_gguf(folder / "tiny.gguf", *tiny(**(changes or {})), **options), "tiny")


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4, "head_dim": 32}])
def test_tensors_and_geometry_equal_those_of_the_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    """llama.cpp's names and rotary permutation are undone exactly."""
    config, tensors = tiny(**changes)
    read = read_tiny(tmp_path, changes)
    assert read.config == config_from_hugging_face("tiny", config)
    assert {name.removeprefix("model.") for name in tensors} == set(read.tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read.tensors[name.removeprefix("model.")], tensor)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (GGMLQuantizationType.F16, 2**10),
        (GGMLQuantizationType.BF16, 2**7),
        (GGMLQuantizationType.Q8_0, 127),
        (GGMLQuantizationType.Q4_0, 7),
        (GGMLQuantizationType.Q4_1, 7),
    ],
)
def test_quantised_tensors_are_expanded_to_the_values_they_stand_for(
    tmp_path: Path, kind: GGMLQuantizationType, steps: int
) -> None:
    """Each value lies within one quantisation step of the original."""
    _, tensors = tiny()
    for name, tensor in read_tiny(tmp_path, tensor_type=kind).tensors.items():
        original = tensors[name if name.startswith("lm_head") else f"model.{name}"]
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, original, atol=float(np.abs(original).max()) / steps, rtol=0)


def reference_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer) -> FastTokenizer:
    """The tokenizer that the tiny GGUF describes, put together by hand."""
    vocabulary = {token: index for index, token in enumerate(gguf_vocabulary())}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)]
    tokenizer = FastTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(USER_TOKEN, normalized=False)])
    return tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_equals_that_of_the_folder(tmp_path: Path, text: str) -> None:
    """Ids and text both ways, with merges, a control token and a user-defined one."""
    read = Tokenizer(read_tiny(tmp_path).tokenizer_json)
    expected = reference_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    ids = expected.encode(text).ids
    assert read.encode(text) == ids
    assert read.decode(ids) == expected.decode(ids)
    assert read.decode(ids, skip_special_tokens=False) == text


def test_merges_and_special_tokens_are_used(tmp_path: Path) -> None:
    """`hello` is one token, the end token too, and it is named for chat templates."""
    read = read_tiny(tmp_path)
    vocabulary = gguf_vocabulary()
    ids = Tokenizer(read.tokenizer_json).encode(f"hello{END_TOKEN}")
    assert ids == [vocabulary.index("hello"), vocabulary.index(END_TOKEN)]
    assert read.special_tokens == {"eos_token": END_TOKEN}


@pytest.mark.parametrize(
    ("pre_tokenizer", "digits"),
    [("gpt-2", ["12"]), ("default", ["12"]), ("llama-bpe", ["12"]), ("smollm", ["1", "2"])],
)
def test_pre_tokenizer_named_by_the_file_decides_how_digits_are_cut(
    tmp_path: Path, pre_tokenizer: str, digits: list[str]
) -> None:
    """The merge `1 2` applies unless digits are cut apart first."""
    tokenizer = Tokenizer(read_tiny(tmp_path, pre_tokenizer=pre_tokenizer).tokenizer_json)
    assert tokenizer.encode("12") == [gguf_vocabulary().index(token) for token in digits]


@pytest.mark.parametrize(("pre_tokenizer", "is_whole"), [("llama-bpe", True), ("llama3", True), ("gpt-2", False)])
def test_a_word_of_the_vocabulary_is_one_token_to_llama_3(tmp_path: Path, pre_tokenizer: str, is_whole: bool) -> None:
    """Its tokenizer looks words up before it merges; others only merge."""
    config = tiny_config_json(vocab_size=len(gguf_vocabulary()) + 1)
    file = write_tiny_gguf(
        tmp_path / "t.gguf",
        config,
        tiny_tensors(config),
        pre_tokenizer=pre_tokenizer,
        more_tokens={"xyz": TokenType.NORMAL},
    )
    ids = Tokenizer(read_checkpoint(file).tokenizer_json).encode("xyz")
    assert (ids == [len(gguf_vocabulary())]) == is_whole


def test_chat_template_and_licence_come_from_the_metadata(tmp_path: Path) -> None:
    """Both are optional strings."""
    read = read_tiny(tmp_path, extra={"tokenizer.chat_template": "{{ messages }}", "general.license": "mit"})
    assert (read.chat_template, read.licence) == ("{{ messages }}", "mit")
    assert read_tiny(tmp_path).chat_template is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"architecture": "gpt2"}, "'gpt2'"),
        ({"tokenizer_model": "llama"}, "'llama'"),
        ({"pre_tokenizer": "deepseek-llm"}, "'deepseek-llm'"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "rotary scaling"),
        ({"changes": {"head_dim": 24}}, "head_dim is 24"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    """Readable, but nothing that Attend exports."""
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        read_tiny(tmp_path, **options)
    one_line(caught.value)


def test_tensor_that_a_plain_llama_lacks_is_refused(tmp_path: Path) -> None:
    """Such as the factors of a stretched context, which would otherwise be ignored."""
    config, tensors = tiny()
    path = write_tiny_gguf(tmp_path / "tiny.gguf", config, tensors)
    renamed = path.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_what.weight")
    path.write_bytes(renamed)
    with pytest.raises(UnsupportedModelError, match=r"blk\.1\.ffn_what\.weight"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "key",
    [
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ],
)
def test_missing_metadata_is_named(tmp_path: Path, key: str) -> None:
    """Nothing that decides the model's answers is guessed."""
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        read_tiny(tmp_path, without=key)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"a text file with a wrong name\n" * 100,
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        # one key `k` whose value is an array of 2**60 numbers; then one of arrays within arrays, 4,000 deep
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 4000,
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + b"k",
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<IB", 0, 0),
    ],
    ids=[
        "empty",
        "only the magic",
        "text",
        "version 99",
        "no metadata",
        "endless tensors",
        "endless metadata",
        "endless array",
        "nested arrays",
        "endless name",
        "name that is not UTF-8",
    ],
)
def test_file_that_is_no_gguf_is_a_checkpoint_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes ask for, reading ends at once, in one line."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.gguf as GGUF") as caught:
        read_checkpoint(path)
    one_line(caught.value)


def test_file_cut_short_anywhere_is_a_checkpoint_error(tmp_path: Path) -> None:
    """At every kind of place: header, metadata, tensor table, weights."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", *tiny())
    whole = path.read_bytes()
    places = [*range(0, 64, 3), *range(64, 16_384, 487), *range(16_384, len(whole), 30_011), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        one_line(caught.value)


def test_flipped_bytes_never_raise_another_type(tmp_path: Path) -> None:
    """Damage to the metadata is refused, or changes only what no check can know."""
    from model.transformer import load_transformer

    path = write_tiny_gguf(tmp_path / "tiny.gguf", *tiny())
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4])):
            damaged[generator.randrange(generator.choice([1_500, 12_000]))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read = read_checkpoint(path)
            load_transformer(read.config, read.tensors)
        except (CheckpointError, UnsupportedModelError) as error:
            one_line(error)


@pytest.mark.model
def test_default_file_has_the_published_geometry(cache_dir: Path) -> None:
    """SmolLM2-135M-Instruct as its config.json on the hub states it."""
    read = default_checkpoint(cache_dir)
    config = read.config
    assert config.model_id == "smollm2-135m-instruct"
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (49_152, 576, 1_536)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.context_tokens, config.rope_theta, config.rms_norm_eps) == (8_192, 100_000.0, 1e-5)
    assert (config.tie_word_embeddings, config.eos_token_ids, config.bos_token_id) == (True, (2, 0), 1)
    assert read.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert read.licence.startswith("Apache-2.0")


@pytest.fixture(scope="module")
def transformers_encode(cache_dir: Path) -> Callable[[str], list[int]]:
    """The tokenizer that transformers makes of the same GGUF file."""
    from transformers import AutoTokenizer

    downloads = cache_dir / "downloads"
    default_checkpoint(cache_dir)  # fetched if it is not there
    tokenizer = AutoTokenizer.from_pretrained(downloads, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return lambda text: [int(token_id) for token_id in tokenizer.encode(text)]


@pytest.mark.model
@pytest.mark.parametrize(
    "text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>", "It's\r\n\r\n x²", " \u00a0\u3000 ", "def f(x):\n    return x\n"]
)
def test_default_tokenizer_agrees_with_transformers(
    cache_dir: Path, transformers_encode: Callable[[str], list[int]], text: str
) -> None:
    """Two readers of the same metadata cut text alike."""
    assert Tokenizer(default_checkpoint(cache_dir).tokenizer_json).encode(text) == transformers_encode(text)


@pytest.mark.model
def test_default_tokenizer_cuts_digits_one_by_one(cache_dir: Path) -> None:
    """SmolLM2 was trained so."""
    tokenizer = Tokenizer(default_checkpoint(cache_dir).tokenizer_json)
    assert [tokenizer.decode([token_id]) for token_id in tokenizer.encode("in 2048, 7.5")] == [
        "in", " ", "2", "0", "4", "8", ",", " ", "7", ".", "5",
    ]  # fmt: skip
