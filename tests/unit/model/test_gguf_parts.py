"""GGUF files in parts, with Llama 3.1's factors, biases, heads and types: read whole and exactly, or named."""

import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from model.checkpoint import Checkpoint, CheckpointError, four_bit_blocks, read_checkpoint, source_files
from model.config import RopeScaling, UnsupportedModelError, config_from_hugging_face, rotary_frequencies
from tests.support.errors import one_line
from tests.support.tiny_biases import with_biases
from tests.support.tiny_checkpoint import tiny_config_json, tiny_tensors
from tests.support.tiny_gguf import END_TOKEN, gguf_vocabulary, write_tiny_gguf

Array = np.ndarray[Any, Any]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def tiny(**changes: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """The config.json and tensors that the tiny GGUF is equivalent to."""
    vocabulary = gguf_vocabulary()
    config = tiny_config_json(vocab_size=len(vocabulary), eos_token_id=vocabulary.index(END_TOKEN), **changes)
    return config, tiny_tensors(config)


def read_tiny(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Checkpoint:
    """Write a tiny GGUF and read it back."""
    return read_checkpoint(write_tiny_gguf(folder / "tiny.gguf", *tiny(**(changes or {})), **options), "tiny")


def refusal(path: Path) -> str:
    """The one line that a file is refused with."""
    with pytest.raises((UnsupportedModelError, CheckpointError)) as caught:
        read_checkpoint(path)
    return one_line(caught.value)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A tiny GGUF in three parts."""
    write_tiny_gguf(tmp_path / "tiny.gguf", *tiny(), split_max_tensors=8)
    found = sorted(tmp_path.glob("tiny-*.gguf"))
    assert [part.name for part in found] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_split_file_is_read_whole_from_any_part(tmp_path: Path, parts: list[Path], given: int) -> None:
    """The parts beside it are found; all of them are its sources, and it is named after the whole."""
    read = read_checkpoint(parts[given])
    whole = read_checkpoint(write_tiny_gguf(tmp_path / "whole.gguf", *tiny()), "tiny")
    assert read.config == whole.config
    assert read.tensors.keys() == whole.tensors.keys()
    assert all(np.array_equal(read.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert read.sources == source_files(parts[0])
    assert [source.name for source in read.sources] == [part.name for part in parts]


def test_four_bit_blocks_of_every_part_are_found(tmp_path: Path) -> None:
    """An int4 export keeps the file's own blocks, wherever they lie."""
    kind = GGMLQuantizationType.Q4_0
    whole = write_tiny_gguf(tmp_path / "whole.gguf", *tiny(), tensor_type=kind)
    write_tiny_gguf(tmp_path / "tiny.gguf", *tiny(), tensor_type=kind, split_max_tensors=8)
    config = read_checkpoint(whole).config
    part = tmp_path / "tiny-00002-of-00003.gguf"
    assert four_bit_blocks(part, config).keys() == four_bit_blocks(whole, config).keys()


@pytest.mark.parametrize("missing", [[1], [2], [3], [1, 2], [2, 3]])
def test_a_missing_part_is_named(parts: list[Path], missing: list[int]) -> None:
    """Whichever part is given."""
    for number in missing:
        parts[number - 1].unlink()
    given = next(part for part in parts if part.exists())
    line = refusal(given)
    assert f"tiny-0000{missing[0]}-of-00003.gguf is missing ({len(missing)} in all)" in line


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_part_under_another_name_is_told_to_be_one(tmp_path: Path, parts: list[Path], number: int) -> None:
    """Renamed, its neighbours cannot be found."""
    line = refusal(Path(shutil.copy(parts[number - 1], tmp_path / "renamed.gguf")))
    assert f"says that it is part {number} of 3" in line


def test_parts_in_the_wrong_order_are_named(parts: list[Path]) -> None:
    """Each says which it is."""
    shutil.copy(parts[1], parts[2])
    assert "tiny-00003-of-00003.gguf says that it is part 2 of 3" in refusal(parts[0])


def test_a_part_cut_short_is_refused(parts: list[Path]) -> None:
    """As a whole file is."""
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    assert "cut short" in refusal(parts[0])


def factors_of(**scaling: Any) -> Array:
    """The divisors that llama.cpp's converter works out of a config.json's llama3 scaling."""
    changes = {"rope_scaling": {**LLAMA3, **scaling}}
    plain = rotary_frequencies(config_from_hugging_face("tiny", tiny_config_json()))
    scaled = rotary_frequencies(config_from_hugging_face("tiny", tiny_config_json(**changes)))
    return np.array([whole / part for whole, part in zip(plain, scaled, strict=True)], np.float32)


@pytest.mark.parametrize(
    "scaling",
    [
        pytest.param({}, id="the model card's factors over a short context"),
        pytest.param({"factor": 32.0}, id="Llama 3.2's factor"),
        pytest.param({"original_max_position_embeddings": 16}, id="nearly all waves are long"),
        pytest.param({"original_max_position_embeddings": 100_000}, id="nearly all waves are short"),
        pytest.param({"low_freq_factor": 2.0, "high_freq_factor": 3.0}, id="a narrow band between"),
    ],
)
def test_llama_3s_factors_are_applied_as_the_folder_applies_its_scaling(
    tmp_path: Path, scaling: dict[str, Any]
) -> None:
    """rope_freqs.weight is the same scaling, worked out."""
    read = read_tiny(tmp_path, more_tensors={"rope_freqs.weight": factors_of(**scaling)})
    expected = config_from_hugging_face("tiny", tiny_config_json(rope_scaling={**LLAMA3, **scaling}))
    np.testing.assert_allclose(rotary_frequencies(read.config), rotary_frequencies(expected), rtol=1e-6)
    assert "rope_freqs.weight" not in read.tensors


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    """Some converters write them for every model."""
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert read_tiny(tmp_path, more_tensors=ones).config.rope_scaling.kind == "none"


@pytest.mark.parametrize(
    ("tensors", "extra", "named"),
    [
        pytest.param(
            {"rope_freqs.weight": np.ones(4, np.float32) * 2}, {}, "4 factors; head_dim 16 takes 8", id="count"
        ),
        pytest.param({"rope_freqs.weight": np.zeros(8, np.float32)}, {}, "not a number above 0", id="zeros"),
        pytest.param(
            {"rope_factors_long.weight": np.ones(8, np.float32)}, {}, "rope_factors_long.weight", id="longrope"
        ),
        pytest.param({}, {"llama.rope.scaling.type": "yarn"}, "'yarn' is not supported", id="yarn"),
        pytest.param({}, {"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported", id="longrope's name"),
        pytest.param({}, {"llama.attention.key_length": 32}, "rotates 16 of a head's 32", id="half of a head rotates"),
        pytest.param({}, {"llama.attention.value_length": 32}, "values of another size", id="values of another size"),
        pytest.param({"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, {}, "a norm of queries", id="query norms"),
        pytest.param({"blk.0.ffn_gate_exps.weight": np.ones(16, np.float32)}, {}, "an expert's", id="experts"),
        pytest.param({"blk.0.attn_q.weight.lora_a": np.ones(16, np.float32)}, {}, "an adapter's", id="an adapter"),
        pytest.param({"output_norm.bias": np.ones(64, np.float32)}, {}, "norm.bias", id="a norm's bias"),
        pytest.param({"blk.2.attn_norm.weight": np.ones(64, np.float32)}, {}, "layers.2.", id="a layer too many"),
    ],
)
def test_what_a_plain_llama_lacks_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Array], extra: dict[str, Any], named: str
) -> None:
    """Dropping it would change the answers."""
    with pytest.raises(UnsupportedModelError) as caught:
        read_tiny(tmp_path, more_tensors=tensors, extra=extra)
    assert named in one_line(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.factor": 4.0},
    ],
)
def test_linear_scaling_of_a_gguf_is_that_of_the_folder(tmp_path: Path, extra: dict[str, Any]) -> None:
    """Under its key of today and under the older one."""
    expected = config_from_hugging_face("tiny", tiny_config_json(rope_scaling={"rope_type": "linear", "factor": 4.0}))
    assert rotary_frequencies(read_tiny(tmp_path, extra=extra).config) == rotary_frequencies(expected)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, "a factor that nothing uses"),
        ({"llama.rope.scaling.type": "none", "llama.rope.scale_linear": 4.0}, "the older key"),
        ({"llama.rope.scaling.type": "none"}, "no factor"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, "a factor of one"),
        ({"llama.rope.scaling.factor": 0.0}, "a factor of zero means unset"),
    ],
)
def test_a_gguf_that_says_so_is_not_scaled(tmp_path: Path, extra: dict[str, Any], reason: str) -> None:
    """The type decides, whatever factor stands beside it."""
    assert read_tiny(tmp_path, extra=extra).config.rope_scaling == RopeScaling(), reason


def test_old_rotary_frequencies_are_known_to_be_harmless(tmp_path: Path) -> None:
    """Files of 2023 hold what is computed anyway."""
    old = {"blk.0.attn_rot_embd": np.ones(8, np.float32)}
    assert read_tiny(tmp_path, more_tensors=old).tensors.keys() == read_tiny(tmp_path).tensors.keys()


@pytest.mark.parametrize(
    ("kinds", "dropped"),
    [
        pytest.param({"attention_bias": True}, (), id="of attention"),
        pytest.param({"mlp_bias": True}, (), id="of the feed-forward part"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, (), id="of both"),
        pytest.param({"attention_bias": True}, ("o_proj",), id="of queries, keys and values: the rest is zero"),
        pytest.param({"attention_bias": True}, ("k_proj", "o_proj"), id="of queries and values only"),
    ],
)
def test_biases_of_a_gguf_are_those_of_the_folder(
    tmp_path: Path, kinds: dict[str, bool], dropped: tuple[str, ...]
) -> None:
    """No metadata announces them; llama.cpp's permutation is undone for them too."""
    config, tensors = tiny(**kinds)
    tensors = with_biases(config, tensors)
    stored = {
        name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(f"{d}.bias" for d in dropped))
    }
    read = read_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", config, stored))
    assert {f"model.{name}" for name in read.tensors} == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor if name in stored else np.zeros_like(tensor)
        np.testing.assert_array_equal(read.tensors[name.removeprefix("model.")], expected)


def test_a_bias_missing_in_one_layer_is_named(tmp_path: Path) -> None:
    """Of a damaged file: others of its kind are there."""
    config, tensors = tiny(attention_bias=True)
    tensors = with_biases(config, tensors)
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    file = write_tiny_gguf(tmp_path / "tiny.gguf", config, tensors)
    assert "a tensor is missing, layers.1.self_attn.q_proj.bias" in refusal(file)


@pytest.mark.parametrize(
    ("change", "is_used"),
    [
        pytest.param(lambda embedding: -embedding, True, id="another head"),
        pytest.param(lambda embedding: embedding + np.float32(1e-3), True, id="nearly the embedding"),
        pytest.param(lambda embedding: embedding.copy(), True, id="the embedding again: stored, so used"),
    ],
)
def test_a_head_of_a_gguf_is_used(tmp_path: Path, change: Callable[[Array], Array], is_used: bool) -> None:
    """`output.weight` is the head wherever it is there."""
    config, tensors = tiny()
    head = change(tensors["model.embed_tokens.weight"])
    read = read_checkpoint(write_tiny_gguf(tmp_path / "t.gguf", config, {**tensors, "lm_head.weight": head}))
    assert read.config.tie_word_embeddings != is_used
    np.testing.assert_array_equal(read.tensors["lm_head.weight"], head)


def retype(content: bytes, name: bytes, number: int) -> bytes:
    """Let a two-dimensional tensor's entry in the table name another type."""
    place = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    return content[:place] + struct.pack("<I", number) + content[place + 4 :]


@pytest.mark.parametrize(
    ("number", "named"),
    [
        pytest.param(4, "Q4_2", id="a type that ggml has given up"),
        pytest.param(31, "Q4_0_4_4", id="a packing for one processor"),
        pytest.param(37, "IQ4_NL_4_8", id="another one"),
        pytest.param(99, "type 99", id="a type of tomorrow"),
        pytest.param(24, "I8", id="whole numbers"),
        pytest.param(9, "Q8_1", id="a type of intermediate results"),
    ],
)
def test_an_unsupported_type_is_named_with_its_tensor(tmp_path: Path, number: int, named: str) -> None:
    """And what to fetch instead."""
    file = write_tiny_gguf(tmp_path / "t.gguf", *tiny())
    file.write_bytes(retype(file.read_bytes(), b"blk.0.attn_v.weight", number))
    line = refusal(file)
    assert f"'blk.0.attn_v.weight' is stored as {named}, which is not supported" in line
    assert "Q8_0" in line
