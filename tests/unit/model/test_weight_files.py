"""Folders in the field: quantised checkpoints, adapters, other formats, half downloads. Read rightly, or named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.checkpoint import CheckpointError, read_checkpoint, resolve_source
from model.config import UnsupportedModelError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import edit_json, notes_of, write_tiny_checkpoint

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def refusal(folder: Path) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises((UnsupportedModelError, CheckpointError)) as caught:
        read_checkpoint(folder)
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        pytest.param("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", id="FP8"),
        pytest.param("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq (4 bits)", id="GPTQ"),
        pytest.param("quantization_config", {"quant_method": "awq", "bits": 4}, "awq (4 bits)", id="AWQ"),
        pytest.param("quantization_config", {"quant_method": "compressed-tensors"}, "compressed-tensors", id="vLLM's"),
        pytest.param(
            "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", id="bnb"
        ),
        pytest.param("quantization_config", {"quant_method": "mxfp4"}, "mxfp4", id="MXFP4"),
        pytest.param(
            "quantization_config", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt", id="NVFP4"
        ),
        pytest.param("quantization_config", {"quant_method": "a new one"}, "a new one", id="one that nobody knows yet"),
        pytest.param("quantization_config", {"load_in_8bit": True}, "not named", id="an old one without a name"),
        pytest.param("quantization_config", "fp8", "fp8", id="a text"),
        pytest.param("compression_config", {"format": "pack-quantized"}, "pack-quantized", id="the older key"),
        pytest.param("quantization", {"group_size": 64, "bits": 4}, "(4 bits)", id="MLX's key"),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(tmp_path: Path, key: str, value: Any, named: str) -> None:
    """Before any weight is read, with what to give instead."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "config.json", **{key: value})
    (folder / WEIGHTS).unlink()
    line = refusal(folder)
    assert named in line
    assert "give the unquantised checkpoint" in line


@pytest.mark.parametrize("value", [None, {}, False])
def test_no_quantisation_is_none(tmp_path: Path, value: Any) -> None:
    """Null and empty are absence."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "config.json", quantization_config=value)
    assert notes_of(read_checkpoint(folder)) == []


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"]
)
@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "beside a model"])
def test_adapters_are_refused_with_how_to_merge_them(tmp_path: Path, name: str, is_alone: bool) -> None:
    """Alone it is no model; beside one it would be left out, and the answers would be the base model's."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    for file in list(folder.iterdir()) if is_alone else []:
        file.unlink()
    (folder / name).write_bytes(b"{}")
    line = refusal(folder)
    assert f"holds a LoRA adapter ({name})" in line
    assert "merge_and_unload" in line


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("pytorch_model.bin", "pickled weights"),
        ("pytorch_model-00001-of-00002.bin", "pickled weights"),
        ("model.pt", "pickled weights"),
        ("weights.ckpt", "pickled weights"),
        ("consolidated.00.pth", "Meta's or Mistral's own layout"),
        ("consolidated.safetensors", "Meta's or Mistral's own layout"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model-q4_0.gguf", "give the .gguf file itself"),
        ("model.onnx", "ONNX"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False], ids=["beside config.json", "without config.json"])
def test_weights_in_another_format_are_named_with_what_to_do(
    tmp_path: Path, name: str, named: str, with_config: bool
) -> None:
    """None of them is opened."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / WEIGHTS).unlink()
    if not with_config:
        (folder / "config.json").unlink()
    (folder / name).write_bytes(b"\x80\x04not opened")
    line = refusal(folder)
    assert named in line
    assert name in line


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "consolidated.00.safetensors", "model.fp16.safetensors", "extra.safetensors"]
)
def test_weights_beside_the_model_are_left_out_and_said(tmp_path: Path, name: str) -> None:
    """The same weights in another layout, or a stray copy: model.safetensors is the model."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    save_file({"layers.0.attention.wq.weight": np.ones((2, 2), np.float32)}, folder / name)
    read = read_checkpoint(folder)
    assert read.tensors.keys() == read_checkpoint(write_tiny_checkpoint(tmp_path / "other")).tensors.keys()
    assert notes_of(read) == [f"{name} is left out: it is none of the model's weight files"]


@pytest.mark.parametrize("name", ["consolidated.00.pth", "pytorch_model.bin", "model.onnx", "params.json"])
def test_other_formats_beside_the_model_do_no_harm(tmp_path: Path, name: str) -> None:
    """Repositories carry several; the safetensors files are read."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).write_bytes(b"{}")
    assert notes_of(read_checkpoint(folder)) == []


def test_an_index_decides_which_files_are_the_model(tmp_path: Path) -> None:
    """Another whole copy in the folder is left out and said."""
    folder = write_tiny_checkpoint(tmp_path / "m", num_shards=3)
    write_tiny_checkpoint(tmp_path / "other", seed=1)
    (tmp_path / "other" / WEIGHTS).rename(folder / WEIGHTS)
    read = read_checkpoint(folder)
    whole = load_file(folder / "model-00001-of-00003.safetensors")
    name = next(iter(whole))
    np.testing.assert_array_equal(read.tensors[name.removeprefix("model.")], whole[name])
    assert [note.split()[0] for note in notes_of(read)] == [WEIGHTS]


@pytest.mark.parametrize("missing", [["00001"], ["00002"], ["00003"], ["00001", "00003"], ["00002", "00003"]])
@pytest.mark.parametrize("with_index", [True, False], ids=["with an index", "without an index"])
def test_a_missing_shard_is_named(tmp_path: Path, missing: list[str], with_index: bool) -> None:
    """Without an index too: the names say how many there must be."""
    folder = write_tiny_checkpoint(tmp_path / "m", num_shards=3)
    for number in missing:
        (folder / f"model-{number}-of-00003.safetensors").unlink()
    if not with_index:
        (folder / INDEX).unlink()
    assert f"model-{missing[0]}-of-00003.safetensors" in refusal(folder)


def test_all_shards_without_an_index_are_the_model(tmp_path: Path) -> None:
    """The index adds nothing that the files do not say."""
    folder = write_tiny_checkpoint(tmp_path / "m", num_shards=3)
    (folder / INDEX).unlink()
    read = read_checkpoint(folder)
    assert read.tensors.keys() == read_checkpoint(write_tiny_checkpoint(tmp_path / "w")).tensors.keys()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("../other.safetensors", "outside the folder"),
        ("/etc/passwd", "outside the folder"),
        ("deep/model.safetensors", "outside the folder"),
        ("pytorch_model.bin", "no .safetensors file"),
        ("gone.safetensors", "lacks gone.safetensors"),
    ],
)
def test_an_index_that_names_what_it_must_not_is_refused(tmp_path: Path, name: str, named: str) -> None:
    """Nothing outside the folder is opened, and no pickle."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert named in refusal(folder)


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    """One of them would win by chance."""
    folder = write_tiny_checkpoint(tmp_path / "m", num_shards=3)
    (folder / INDEX).unlink()
    norm = {"model.norm.weight": np.ones(64, np.float32)}
    save_file(norm, folder / "more.safetensors")
    line = refusal(folder)
    assert "norm.weight twice, in " in line
    assert "more.safetensors" in line


def test_a_tensor_with_and_without_the_prefix_is_named(tmp_path: Path) -> None:
    """The two names are one tensor."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "norm.weight": np.ones(64, np.float32)}, folder / WEIGHTS)
    assert "norm.weight twice" in refusal(folder)


def cut(keep: int) -> Callable[[bytes], bytes]:
    """The first bytes; a negative number drops the last ones."""
    return lambda content: content[:keep]


@pytest.mark.parametrize("damage", [cut(0), cut(7), cut(100), cut(-1), cut(-5000)])
@pytest.mark.parametrize("shard", ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"])
def test_a_file_cut_short_is_named(tmp_path: Path, shard: str, damage: Callable[[bytes], bytes]) -> None:
    """With the advice to fetch it again."""
    folder = write_tiny_checkpoint(tmp_path / "m", num_shards=3)
    (folder / shard).write_bytes(damage((folder / shard).read_bytes()))
    line = refusal(folder)
    assert shard in line
    assert "fetch it again" in line


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "model.gguf", "generation_config.json"])
def test_a_git_lfs_pointer_is_told_to_be_one(tmp_path: Path, name: str) -> None:
    """Cloned without git-lfs: a few lines of text in the place of the file."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 269060552\n")
    with pytest.raises(CheckpointError, match="git lfs pull") as caught:
        read_checkpoint(folder / name if name.endswith(".gguf") else folder)
    assert name in one_line(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", None])
def test_a_folder_with_a_slow_tokenizer_only_is_told_how_to_convert_it(tmp_path: Path, name: str | None) -> None:
    """The library transformers writes a tokenizer.json from any of them."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    if name:
        (folder / name).write_bytes(b"x")
    line = refusal(folder)
    assert f"has no tokenizer.json{f', only {name}' if name else ''}; write one with" in line
    assert "save_pretrained" in line


@pytest.mark.parametrize("name", ["model.gguf.part1of2", "model.gguf-split-a", "model.gguf.00", "m.gguf.1", "m.gguf_0"])
def test_a_piece_of_a_file_is_told_how_to_join_it(tmp_path: Path, name: str) -> None:
    """Cut by bytes, a file can only be joined again."""
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="join the pieces with `cat`") as caught:
        resolve_source(str(tmp_path / name), tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "config.json"])
def test_one_file_of_a_folder_is_told_to_give_the_folder(tmp_path: Path, name: str) -> None:
    """The weights alone are no model."""
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="give the folder that holds them all"):
        resolve_source(str(tmp_path / name), tmp_path)


def test_a_partial_rotation_is_refused_by_name(tmp_path: Path) -> None:
    """It would change every answer, and no tensor shows it."""
    folder = write_tiny_checkpoint(tmp_path / "m", partial_rotary_factor=0.5)
    assert "partial_rotary_factor 0.5 is not supported" in refusal(folder)
