"""Strange tensors are understood or named: heads, biases, what is too much, too little, misshapen or packed."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.checkpoint import CheckpointError, read_checkpoint
from model.config import UnsupportedModelError
from tests.support.errors import one_line
from tests.support.tiny_biases import add_biases
from tests.support.tiny_checkpoint import edit_json, edit_tensors, notes_of, write_tiny_checkpoint

Array = np.ndarray[Any, Any]
EMBEDDING: Array = np.random.default_rng(7).standard_normal((257, 64)).astype(np.float32)
NUDGED = EMBEDDING.copy()
NUDGED[200, 3] += 1e-6
VECTOR, SQUARE = np.ones(64, np.float32), np.ones((64, 64), np.float32)
LAYER = "model__layers__0__"


def refusal(folder: Path) -> str:
    """The one line that a checkpoint is refused with."""
    with pytest.raises((UnsupportedModelError, CheckpointError)) as caught:
        read_checkpoint(folder)
    return one_line(caught.value)


@pytest.mark.parametrize(
    ("tied", "head", "is_tied"),
    [
        pytest.param(True, ..., True, id="tied and not stored"),
        pytest.param(True, EMBEDDING.copy(), True, id="tied and stored twice"),
        pytest.param(True, EMBEDDING.astype(np.float64), True, id="the same numbers in another type"),
        pytest.param(True, NUDGED, False, id="one number of the head differs: it was trained"),
        pytest.param(True, -EMBEDDING, False, id="another head altogether"),
        pytest.param(False, EMBEDDING.copy(), False, id="untied, though equal"),
        pytest.param(False, -EMBEDDING, False, id="untied"),
        pytest.param(None, -EMBEDDING, False, id="config.json says nothing: Llama's are untied"),
    ],
)
def test_a_head_that_differs_is_used_whatever_the_config_says(
    tmp_path: Path, tied: bool | None, head: Any, is_tied: bool
) -> None:
    """Never dropped silently: the export says that the two differ."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "config.json", tie_word_embeddings=... if tied is None else tied)
    edit_tensors(folder, model__embed_tokens__weight=EMBEDDING, lm_head__weight=head)
    read = read_checkpoint(folder)
    assert read.config.tie_word_embeddings == is_tied
    assert ("lm_head.weight" in read.tensors) == (not is_tied)
    if not is_tied:
        np.testing.assert_array_equal(read.tensors["lm_head.weight"], head)
    assert [note for note in notes_of(read) if "differs from" in note] == notes_of(read)
    assert len(notes_of(read)) == (tied is True and not is_tied)


def test_a_tied_embedding_stored_under_the_heads_name_is_found(tmp_path: Path) -> None:
    """The library keeps one name of two that share memory, and not always the same one."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, model__embed_tokens__weight=..., lm_head__weight=EMBEDDING)
    read = read_checkpoint(folder)
    np.testing.assert_array_equal(read.tensors["embed_tokens.weight"], EMBEDDING)
    assert read.config.tie_word_embeddings
    assert "stored as lm_head.weight alone" in notes_of(read)[0]


@pytest.mark.parametrize("tied", [False, ...])
def test_a_model_with_a_head_of_its_own_that_is_missing_is_refused(tmp_path: Path, tied: Any) -> None:
    """It may have been lost; the line says how to tie it if it is the embedding."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    assert "set tie_word_embeddings to true if the head is the embedding" in refusal(folder)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        pytest.param({"lm_head__bias": VECTOR}, "lm_head.bias", id="a head's bias"),
        pytest.param({"model__extra__weight": VECTOR}, "extra.weight", id="nobody knows what"),
        pytest.param({"score__weight": VECTOR}, "score.weight", id="a classifier's head"),
        pytest.param({f"{LAYER}self_attn__q_norm__weight": VECTOR}, "norm of queries or keys", id="query norms"),
        pytest.param({f"{LAYER}mlp__experts__0__w1__weight": SQUARE}, "experts.0.w1.weight", id="experts"),
        pytest.param(
            {"model__layers__2__input_layernorm__weight": VECTOR}, "layers.2.input_layernorm", id="a layer more"
        ),
        pytest.param({f"{LAYER}self_attn__q_proj__bias": VECTOR}, "attention_bias: true", id="a bias nobody announced"),
        pytest.param({f"{LAYER}mlp__up_proj__bias": np.ones(96, np.float32)}, "mlp_bias: true", id="an mlp's bias"),
        pytest.param({f"{LAYER}self_attn__q_proj__lora_A__weight": SQUARE}, "LoRA adapter", id="an adapter's"),
        pytest.param({"base_model__model__x__weight": SQUARE}, "LoRA adapter", id="an adapter's wrapper"),
        pytest.param({f"{LAYER}self_attn__q_proj__qweight": SQUARE.astype(np.int32)}, "GPTQ's or AWQ's", id="GPTQ"),
        pytest.param({f"{LAYER}mlp__up_proj__weight_scale_inv": VECTOR}, "FP8's", id="FP8 without a config"),
        pytest.param({f"{LAYER}mlp__up_proj__weight__absmax": VECTOR}, "bitsandbytes", id="bitsandbytes"),
        pytest.param({f"{LAYER}mlp__up_proj__scales": VECTOR}, "packed weights' scales", id="MLX"),
        pytest.param({f"{LAYER}mlp__down_proj_blocks": VECTOR}, "MXFP4", id="MXFP4"),
        pytest.param({"layers__0__attention__wq__weight": SQUARE}, "Meta's own layout", id="Meta's names"),
        pytest.param({"rope_freqs__weight": VECTOR}, "rope_freqs.weight", id="GGUF's factors in a folder"),
    ],
)
def test_a_tensor_too_many_is_named(tmp_path: Path, tensors: dict[str, Array], named: str) -> None:
    """Leaving it out would change the answers; where its kind is known, so is what to do."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, **tensors)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        pytest.param(lambda name: f"_orig_mod.{name}", "torch.compile's wrapper", id="saved while compiled"),
        pytest.param(lambda name: f"module.{name}", "a wrapper of training", id="saved from data-parallel training"),
        pytest.param(lambda name: f"_orig_mod.module.{name}", "torch.compile's wrapper", id="saved from both"),
        pytest.param(lambda name: f"base_model.model.{name}", "a LoRA adapter's", id="an adapter's wrapper"),
        pytest.param(lambda name: f"language_model.{name}", "language_model.model", id="part of one that also sees"),
        pytest.param(
            lambda name: name.replace("model.layers", "transformer.h"), "transformer.h.0", id="GPT-2's names of layers"
        ),
        pytest.param(
            lambda name: (
                name.replace("model.layers", "layers")
                .replace("self_attn.q_proj", "attention.wq")
                .replace("input_layernorm", "attention_norm")
            ),
            "Meta's own layout",
            id="Meta's names of layers",
        ),
    ],
)
def test_strange_names_of_all_tensors_are_named(tmp_path: Path, rename: Callable[[str], str], named: str) -> None:
    """The count of layers is right; what is wrong is their names."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    file = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    message = refusal(folder)
    assert named in message
    assert "num_hidden_layers" not in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
    ],
)
def test_rotary_tables_are_known_to_be_harmless(tmp_path: Path, name: str) -> None:
    """Old checkpoints hold what is computed anyway."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, **{name.replace(".", "__"): np.ones(8, np.float32)})
    read = read_checkpoint(folder)
    assert not any("rotary" in tensor for tensor in read.tensors)
    assert notes_of(read) == []


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        pytest.param(["norm.weight"], "a tensor is missing, norm.weight", id="one"),
        pytest.param(["embed_tokens.weight"], "a tensor is missing, embed_tokens.weight", id="the embedding"),
        pytest.param(["layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"], "2 tensors are missing", id="two"),
        pytest.param(["layers.1.input_layernorm.weight"], "no layer 1", id="the last layer's first"),
        pytest.param(
            [
                f"layers.0.{part}.weight"
                for part in ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "input_layernorm")
            ],
            "4 tensors are missing, layers.0.input_layernorm.weight, layers.0.mlp.gate_proj.weight, "
            "layers.0.mlp.up_proj.weight and 1 more",
            id="many: three are named",
        ),
    ],
)
def test_missing_tensors_are_counted_and_named(tmp_path: Path, missing: list[str], named: str) -> None:
    """A download that stopped half way, or a file forgotten."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, **{f"model.{name}".replace(".", "__"): ... for name in missing})
    assert named in refusal(folder)


@pytest.mark.parametrize("kind", ["attention_bias", "mlp_bias"])
def test_announced_biases_are_read_and_missed(tmp_path: Path, kind: str) -> None:
    """With them the checkpoint is whole, without them they are missing."""
    folder = write_tiny_checkpoint(tmp_path / "m", **{kind: True})
    assert "tensors are missing" in refusal(folder)
    assert any(name.endswith(".bias") for name in read_checkpoint(add_biases(folder)).tensors)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param(
            {"intermediate_size": 128}, "gate_proj.weight has shape [96, 64], expected [128, 64]", id="the wide size"
        ),
        pytest.param(
            {"vocab_size": 300}, "embed_tokens.weight has shape [257, 64], expected [300, 64]", id="vocabulary"
        ),
        pytest.param({"num_key_value_heads": 4}, "k_proj.weight has shape [32, 64], expected [64, 64]", id="key heads"),
        pytest.param({"head_dim": 32}, "q_proj.weight has shape [64, 64], expected [128, 64]", id="head size"),
        pytest.param({"num_hidden_layers": 3}, "no layer 2", id="a layer too few"),
        pytest.param({"num_hidden_layers": 1}, "9 tensors a plain Llama does not have", id="a layer too many"),
        pytest.param({"num_hidden_layers": 10**9}, "no layer 999999999", id="a damaged count"),
    ],
)
def test_weights_of_another_geometry_are_named_with_both_shapes(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """A config.json of another model of the family."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_json(folder / "config.json", **changes)
    assert named in refusal(folder)


def test_a_head_of_another_vocabulary_is_named(tmp_path: Path) -> None:
    """Also where the config says that it is tied."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, lm_head__weight=np.ones((300, 64), np.float32))
    assert "lm_head.weight has shape [300, 64], expected [257, 64]" in refusal(folder)


def store_as(file: Path, name: str, dtype: str, bytes_each: int) -> None:
    """Rewrite a safetensors file with one tensor stored in another type."""
    tensors, header, content = load_file(file), {}, b""
    for key, tensor in tensors.items():
        data = b"\1" * (tensor.size * bytes_each) if key == name else tensor.tobytes()
        place = [len(content), len(content) + len(data)]
        kind = dtype if key == name else "F32"
        header[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": place}
        content += data
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.mark.parametrize(
    ("dtype", "bytes_each"),
    [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("U8", 1), ("I32", 4), ("BOOL", 1), ("F8_E8M0", 1)],
)
def test_a_packed_type_is_named_with_its_tensor(tmp_path: Path, dtype: str, bytes_each: int) -> None:
    """Quantised weights whose config.json says nothing: their numbers alone would be nonsense."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    store_as(folder / "model.safetensors", "model.layers.0.mlp.up_proj.weight", dtype, bytes_each)
    line = refusal(folder)
    assert f"layers.0.mlp.up_proj.weight in model.safetensors is stored as {dtype}" in line
    assert "F32, F16, BF16, F64" in line


def test_a_type_that_safetensors_does_not_know_is_named(tmp_path: Path) -> None:
    """Its reader says which."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    store_as(folder / "model.safetensors", "model.norm.weight", "NF4", 4)
    assert "NF4" in refusal(folder)


def test_doubles_become_float32(tmp_path: Path) -> None:
    """The numbers are the same."""
    folder = write_tiny_checkpoint(tmp_path / "m")
    edit_tensors(folder, model__norm__weight=VECTOR.astype(np.float64) * 2)
    norm = read_checkpoint(folder).tensors["norm.weight"]
    assert norm.dtype == np.float32
    assert norm[0] == 2
