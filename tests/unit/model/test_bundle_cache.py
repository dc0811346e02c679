"""Each state of a source has a folder of its own in the cache, and one writer at a time."""

import shutil
import threading
from pathlib import Path

import pytest

from model.bundle import locked
from model.bundle_cache import cached_bundle_path, folder_name
from model.bundle_writer import default_bundle_path
from model.checkpoint import CheckpointError, SourceFile
from tests.support.tiny_checkpoint import write_tiny_checkpoint

FILES = (SourceFile("model.safetensors", "0" * 64),)


@pytest.mark.parametrize(
    ("source", "begins", "reason"),
    [
        ("hf:HuggingFaceTB/SmolLM2-135M", "smollm2-135m-w8a8-", "the repository's name without its owner"),
        ("models/My Model/", "my-model-w8a8-", "a folder's name, without what shells trip over"),
        ("/data/Llama-3.Q4_1.gguf", "llama-3.q4_1-w8a8-", "a file's name without its suffix"),
        ("/data/模型", "model-w8a8-", "letters that a file system may not have"),
        ("x" * 300, "x" * 60 + "-w8a8-", "a name longer than a file's name may be"),
    ],
    ids=["hub", "folder", "gguf", "no ascii", "long"],
)
def test_a_folder_of_the_cache_tells_what_is_in_it(source: str, begins: str, reason: str) -> None:
    """Whoever clears the cache by hand reads names, not hashes."""
    assert folder_name(source, "w8a8", FILES).startswith(begins), reason


def test_default_has_the_place_that_it_always_had(tmp_path: Path) -> None:
    """It is found without the source's digest."""
    assert cached_bundle_path("default", "int8", tmp_path) == default_bundle_path(tmp_path, "int8")


def test_another_name_for_a_model_is_another_bundle(tmp_path: Path) -> None:
    """Whoever serves the source without the name must not get it."""
    folder = str(write_tiny_checkpoint(tmp_path / "tiny"))
    named = cached_bundle_path(folder, "fp32", tmp_path, model_id="My-Model")
    assert named.name.startswith("my-model-fp32-")
    assert named != cached_bundle_path(folder, "fp32", tmp_path)


def test_the_same_files_have_the_same_place_and_others_another(tmp_path: Path) -> None:
    """A copy, even at another time, is the same; other weights, a changed configuration or a precision are not."""
    folder = write_tiny_checkpoint(tmp_path / "a" / "tiny")
    place = cached_bundle_path(str(folder), "fp32", tmp_path)
    copy = shutil.copytree(folder, tmp_path / "b" / "tiny")
    assert cached_bundle_path(str(copy), "fp32", tmp_path) == place
    assert cached_bundle_path(f"{folder}/", "fp32", tmp_path) == place
    others = {
        cached_bundle_path(str(folder), "int8", tmp_path),
        cached_bundle_path(str(write_tiny_checkpoint(tmp_path / "c" / "tiny", seed=1)), "fp32", tmp_path),
        cached_bundle_path(str(write_tiny_checkpoint(tmp_path / "d" / "tiny", rope_theta=5e5)), "fp32", tmp_path),
    }
    (copy / "generation_config.json").write_text("{}")
    others.add(cached_bundle_path(str(copy), "fp32", tmp_path))
    assert len({place, *others}) == 5


def test_a_source_that_is_nothing_is_refused(tmp_path: Path) -> None:
    """As the exporter says it."""
    with pytest.raises(CheckpointError, match="cannot read"):
        cached_bundle_path(str(tmp_path / "none"), "fp32", tmp_path)


def test_a_second_writer_says_that_it_waits_and_then_goes_on(tmp_path: Path) -> None:
    """Silence would look like a command that hangs."""
    said: list[str] = []
    has_waited, is_done = threading.Event(), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        has_waited.set()

    def write_too() -> None:
        with locked(tmp_path / "bundle", say):
            is_done.set()

    with locked(tmp_path / "bundle", said.append):
        second = threading.Thread(target=write_too)
        second.start()
        assert has_waited.wait(10)
        assert not is_done.is_set()
    second.join(10)
    assert is_done.is_set()
    assert said == [f"waiting for another process, which is writing {tmp_path / 'bundle'}"]
