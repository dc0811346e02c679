"""Ids of models: after the hub's repository, the folder or the file, and never after a hash."""

import os
from pathlib import Path

import pytest

from model.checkpoint import DEFAULT_GGUF_NAME, read_checkpoint, resolve_source, source_name
from model.model_name import model_id_fault, model_name
from tests.support.tiny_checkpoint import edit_json, tiny_config_json, tiny_tensors, write_tiny_checkpoint
from tests.support.tiny_gguf import END_TOKEN, gguf_vocabulary, write_tiny_gguf

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
UUID = "9c4d1c1e-0f7a-4b52-a7c5-1f2e3d4c5b6a"
SNAPSHOT = f"hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/{COMMIT}"
STATED = "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize(
    ("place", "stated", "expected"),
    [
        pytest.param("SmolLM2-135M-Instruct", None, "smollm2-135m-instruct", id="a folder of one's own"),
        pytest.param(SNAPSHOT, None, "smollm2-135m-instruct", id="a snapshot in the hub's cache"),
        pytest.param(f"hub/models--gpt2/snapshots/{COMMIT}", None, "gpt2", id="a repository without an organisation"),
        pytest.param(f"hub/models--org--na--me/snapshots/{COMMIT}", None, "na--me", id="dashes in the name"),
        pytest.param("hub/models--org--name/snapshots/main", None, "name", id="a snapshot under a branch's name"),
        pytest.param("hub/models--org--name", None, "name", id="the repository's folder"),
        pytest.param(f"files/{COMMIT}", STATED, "smollm2-135m", id="a hash, and config.json says a name"),
        pytest.param(f"my-model/{SHA256}", None, "my-model", id="a hash, and only its folder says a name"),
        pytest.param(f"my-model/{COMMIT[:7]}", None, "my-model", id="a short commit"),
        pytest.param(f"my-model/{UUID}", None, "my-model", id="an artifact's UUID"),
        pytest.param("my-model/1", None, "my-model", id="a version's number: Kaggle's cache"),
        pytest.param(f"{SHA256}/{COMMIT}", None, "model", id="nothing but hashes"),
        pytest.param(f"files/{COMMIT}", "/home/me/runs/Tiny Llama/", "tiny-llama", id="the stated name is a path"),
        pytest.param(f"files/{COMMIT}", COMMIT, "files", id="the stated name is a hash too"),
        pytest.param("Tiny Llama", STATED, "tiny-llama", id="blanks; a folder's own name wins over the stated one"),
        pytest.param("deadbeef-7b", None, "deadbeef-7b", id="hexadecimal letters in a name are no hash"),
    ],
)
def test_a_folder_is_named_after_its_repository_or_itself(
    tmp_path: Path, place: str, stated: str | None, expected: str
) -> None:
    """In lower case; what names nothing is passed over."""
    (tmp_path / place).mkdir(parents=True)
    assert model_name(tmp_path / place, stated) == expected


@pytest.mark.parametrize(
    ("place", "stated", "expected"),
    [
        pytest.param("SmolLM2.Q4_1.gguf", "SmolLM2 135M", "smollm2.q4_1", id="a file's own name"),
        pytest.param("Big-00002-of-00003.gguf", None, "big", id="a part is named after the whole"),
        pytest.param("ggml-model-q4_0.gguf", "SmolLM2 135M", "smollm2-135m", id="a converter's name: general.name"),
        pytest.param("model.gguf", "org/Tiny Llama", "tiny-llama", id="no name at all: general.name"),
        pytest.param("model.gguf", None, "model", id="nothing better is known"),
        pytest.param(f"{SNAPSHOT}/SmolLM2-Q8_0.gguf", None, "smollm2-q8_0", id="in the hub's cache: its own name"),
        pytest.param(f"{SNAPSHOT}/model.gguf", None, "smollm2-135m-instruct", id="the repository's name is better"),
        pytest.param(f"tiny/{SHA256}.gguf", None, "tiny", id="a hash"),
        pytest.param(f"tiny/sha256-{SHA256}.gguf", "Llama", "llama", id="a blob of another server's store"),
        pytest.param("tiny/x.gguf", COMMIT, "x", id="general.name is a hash: converted out of the hub's cache"),
    ],
)
def test_a_file_is_named_after_itself_where_it_has_a_name(
    tmp_path: Path, place: str, stated: str | None, expected: str
) -> None:
    """Generic names and hashes give way to what the file says of itself, then to its place."""
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    assert model_name(file, stated) == expected


@pytest.mark.parametrize("way", ["./tiny/", "tiny/.", ".", "../tiny", "link", "deep/../tiny"])
def test_however_a_folder_is_spelled_it_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Relative, with a slash at the end, through `.` and `..`; a link is named as the user named it."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "link").symlink_to("tiny")
    monkeypatch.chdir(tmp_path / "tiny" if way in (".", "../tiny") else tmp_path)
    assert model_name(Path(way)) == ("link" if way == "link" else "tiny")


def test_a_file_linked_to_a_blob_keeps_its_name(tmp_path: Path) -> None:
    """As the hub's cache keeps them: the link has the name, the file behind it a hash."""
    blob, link = tmp_path / "blobs" / SHA256, tmp_path / "snapshots" / "Tiny-Q8_0.gguf"
    for file in (blob, link):
        file.parent.mkdir()
    blob.touch()
    link.symlink_to(os.path.relpath(blob, link.parent))
    assert model_name(link) == "tiny-q8_0"


def test_a_checkpoint_in_the_hubs_cache_is_read_under_its_name(tmp_path: Path) -> None:
    """The snapshot and the repository's folder alike; an explicit id wins."""
    folder = write_tiny_checkpoint(tmp_path / "hub" / "models--org--Tiny-Llama" / "snapshots" / COMMIT)
    repository = folder.parent.parent
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    write_tiny_checkpoint(folder.with_name(SHA256[:40]), num_hidden_layers=1)
    for source in (folder, repository):
        found = resolve_source(str(source), tmp_path)
        assert found == folder
        assert read_checkpoint(found).config.model_id == "tiny-llama"
    assert read_checkpoint(folder, "Mine").config.model_id == "Mine"


def test_names_inside_the_files_are_the_fallback(tmp_path: Path) -> None:
    """`_name_or_path` of config.json and `general.name` of a GGUF."""
    folder = write_tiny_checkpoint(tmp_path / COMMIT)
    edit_json(folder / "config.json", _name_or_path="org/From-Config")
    assert read_checkpoint(folder).config.model_id == "from-config"
    vocabulary = gguf_vocabulary()
    config = tiny_config_json(vocab_size=len(vocabulary), eos_token_id=vocabulary.index(END_TOKEN))
    file = write_tiny_gguf(tmp_path / "model.gguf", config, tiny_tensors(config), extra={"general.name": "Tiny Llama"})
    assert read_checkpoint(file).config.model_id == "tiny-llama"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("hf:org/name/", "name"),
        ("hf:gpt2", "hf:gpt2"),
        ("default", None),
        ("/some/folder", None),
        (DEFAULT_GGUF_NAME, None),
    ],
)
def test_a_hub_source_names_its_model(source: str, expected: str | None) -> None:
    """Wherever the hub's client keeps the files."""
    assert source_name(source) == (expected and expected.removeprefix("hf:"))


@pytest.mark.parametrize("model_id", ["my-model", "org/name", "Qwen2.5:0.5b", "modèle", "a" * 200])
def test_an_explicit_id_may_be_anything_clients_can_send(model_id: str) -> None:
    """Upper case and slashes included."""
    assert model_id_fault(model_id) is None


@pytest.mark.parametrize("model_id", ["", " ", "a b", " a", "a\n", "a,b", "a\x00b", "a" * 201])
def test_an_explicit_id_that_clients_could_not_send_is_refused(model_id: str) -> None:
    """Blanks, control characters, a list of names, and what is too long."""
    assert model_id_fault(model_id)
