"""What a command was given becomes a bundle: named, found in the cache, or made by an export that happens once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.bundle import BundleError
from model.bundle_writer import default_bundle_path
from model.checkpoint import DEFAULT_SOURCE, HUB_PREFIX
from model.precision import DEFAULT_PRECISION
from service import source as source_module
from service.source import ModelChoice, SourceError, export_in_child, find_bundle
from tests.support.errors import one_line
from tests.support.tiny_bundle import write_hollow_bundle


class FakeExport:
    """Writes a hollow bundle where it is told to, and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, str]] = []

    def __call__(self, source: str, precision: str, cache_dir: Path) -> Path:
        self.calls.append((source, precision))
        assert cache_dir.is_absolute()
        return write_hollow_bundle(self.folder, precision).path


@pytest.fixture
def export(tmp_path: Path) -> FakeExport:
    """An export that takes no time."""
    return FakeExport(tmp_path / "exported")


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """An empty cache."""
    return tmp_path / "cache"


@pytest.fixture
def no_export_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is not installed."""
    monkeypatch.setattr(source_module, "missing_export_module", lambda: "torch")


def test_the_defaults_are_those_of_the_exporter(tmp_path: Path) -> None:
    """They stand twice, because serving must not load the exporter."""
    assert (source_module.DEFAULT_SOURCE, source_module.HUB_PREFIX) == (DEFAULT_SOURCE, HUB_PREFIX)
    bundle = write_hollow_bundle(default_bundle_path(tmp_path))
    assert find_bundle(ModelChoice(tmp_path)).path == bundle.path


def _folder(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(tmp_path / "model")


def _file(tmp_path: Path) -> str:
    (tmp_path / "model.gguf").touch()
    return str(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "nothing given means the default model"),
        (lambda _: "default", "the packaged model by its word"),
        (_folder, "a checkpoint folder, as transformers saves it"),
        (_file, "a GGUF file, as llama.cpp takes it"),
        (lambda _: "hf:org/name", "a hub repository, as vLLM takes it"),
    ],
    ids=["nothing", "default", "folder", "gguf", "hub"],
)
def test_whatever_export_takes_is_exported_when_it_is_not_there(
    make: Callable[[Path], str | None], reason: str, tmp_path: Path, cache_dir: Path, export: FakeExport
) -> None:
    """One command, as users of other servers expect."""
    source = make(tmp_path)
    bundle = find_bundle(ModelChoice(cache_dir, source, precision="int8"), export=export)
    assert export.calls == [(source or "default", "int8")], reason
    assert bundle.path == export.folder


def test_the_default_precision_is_the_exporters(cache_dir: Path, export: FakeExport) -> None:
    """No precision given."""
    find_bundle(ModelChoice(cache_dir), export=export)
    assert export.calls == [("default", DEFAULT_PRECISION)]


@pytest.mark.parametrize("option", ["source", "bundle"])
def test_a_bundle_is_used_as_it_is(option: str, tmp_path: Path, cache_dir: Path, export: FakeExport) -> None:
    """By either name, and with the precision that it has."""
    bundle = write_hollow_bundle(tmp_path / "bundle", "int4")
    given: dict[str, Any] = {option: str(bundle.path) if option == "source" else bundle.path}
    for precision in (None, "int4"):
        assert find_bundle(ModelChoice(cache_dir, precision=precision, **given), export=export) == bundle
    assert export.calls == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no bundle at"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "model.onnx").unlink(), "lacks model.onnx"),
        (lambda folder: (folder / "model.onnx").write_text("other"), "is damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text(""), "is damaged"),
    ],
    ids=["no manifest", "manifest is no JSON", "no graph", "another graph", "empty tokenizer"],
)
def test_a_damaged_bundle_that_was_named_is_an_error_and_not_a_checkpoint(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, cache_dir: Path, export: FakeExport
) -> None:
    """Exporting it would end in a message about a config.json that nobody expects there."""
    folder = write_hollow_bundle(tmp_path / "bundle").path
    spoil(folder)
    with pytest.raises(BundleError, match=message):
        find_bundle(ModelChoice(cache_dir, str(folder)), export=export)


def test_a_bundle_of_another_precision_is_not_taken_for_the_one_wanted(tmp_path: Path, cache_dir: Path) -> None:
    """A bundle has one; another takes the checkpoint."""
    bundle = write_hollow_bundle(tmp_path / "bundle", "int4")
    with pytest.raises(SourceError, match="precision int4, not fp32") as caught:
        find_bundle(ModelChoice(cache_dir, bundle=bundle.path, precision="fp32"))
    one_line(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "default", "bundle": Path("b")}, "both given; leave one out"),
        ({"source": "b", "bundle": Path("b")}, "both given; leave one out"),
        ({"source": ""}, "the source is empty"),
        ({"precision": "int3"}, "choose fp32 or int8 or w8a8 or int4"),
        ({"precision": "W8A8"}, "choose fp32 or int8 or w8a8 or int4"),
    ],
    ids=["default and bundle", "folder and bundle", "empty source", "unknown precision", "upper case"],
)
def test_a_choice_that_contradicts_itself_is_one_line(given: dict[str, Any], message: str) -> None:
    """Before anything is read."""
    with pytest.raises(SourceError, match=message) as caught:
        ModelChoice(Path("cache"), **given)
    one_line(caught.value)


@pytest.mark.parametrize(
    "source",
    ["nowhere", "no/such/folder", "missing.gguf", "org/name", "x" * 5000],
    ids=["name", "path", "gguf", "hub name without hf:", "longer than a path may be"],
)
def test_a_source_that_is_not_there_is_one_line_before_any_export(
    source: str, cache_dir: Path, export: FakeExport
) -> None:
    """With everything that could have been meant."""
    with pytest.raises(SourceError, match=r"no such file or folder; give `default`.*hf:.*bundle folder") as caught:
        find_bundle(ModelChoice(cache_dir, source), export=export)
    one_line(caught.value)
    assert export.calls == []


def test_the_default_bundle_of_the_cache_is_used_again(
    cache_dir: Path, export: FakeExport, no_export_extra: None
) -> None:
    """Without the exporter being installed: a container that serves has no torch."""
    bundle = write_hollow_bundle(default_bundle_path(cache_dir))
    for source in (None, "default"):
        assert find_bundle(ModelChoice(cache_dir, source), export=export) == bundle
    assert export.calls == []


@pytest.mark.parametrize(
    "age",
    [
        lambda path: write_hollow_bundle(path, exporter="0"),
        lambda path: (path / "model.onnx.data").write_text("x"),
        lambda path: (path / "manifest.json").write_text('{"format_version": 1}'),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "tokenizer.json").unlink(),
    ],
    ids=["older exporter", "flipped bytes", "older format", "no manifest", "missing file"],
)
def test_a_default_bundle_that_is_out_of_date_or_damaged_is_made_again(
    age: Callable[[Path], object], cache_dir: Path, export: FakeExport
) -> None:
    """Nobody put it there by hand, so nobody has to clear it away."""
    path = write_hollow_bundle(default_bundle_path(cache_dir)).path
    age(path)
    find_bundle(ModelChoice(cache_dir), export=export)
    assert export.calls == [("default", DEFAULT_PRECISION)]


def test_an_older_bundle_serves_where_none_can_be_made_and_says_so(cache_dir: Path, no_export_extra: None) -> None:
    """An upgrade of the service without the exporter still starts."""
    bundle = write_hollow_bundle(default_bundle_path(cache_dir), exporter="0")
    said: list[str] = []
    assert find_bundle(ModelChoice(cache_dir), said.append) == bundle
    assert "used as it is" in said[0]
    assert "attend[export]" in said[0]


def test_without_the_extra_one_line_names_it(cache_dir: Path, export: FakeExport, no_export_extra: None) -> None:
    """Before 93 MB are downloaded for nothing."""
    with pytest.raises(SourceError, match=r"exporting needs torch.*attend\[export\]") as caught:
        find_bundle(ModelChoice(cache_dir), export=export)
    one_line(caught.value)
    assert export.calls == []


class Child:
    """What a child process is started with, and how it ends."""

    def __init__(self, returncode: int, stdout: str = "") -> None:
        self.result = subprocess.CompletedProcess([], returncode, stdout)
        self.command: list[str] = []

    def run(self, command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        self.command = command
        return self.result


def test_the_export_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command that a user would run; a source that begins with a dash is no option."""
    child = Child(0, "/cache/bundles/my model\n")
    monkeypatch.setattr(subprocess, "run", child.run)
    assert export_in_child("-odd", "int8", tmp_path) == Path("/cache/bundles/my model")
    assert child.command[0] == sys.executable
    assert child.command[child.command.index("export") :][-2:] == ["--", "-odd"]


def test_an_export_that_fails_has_said_why_and_its_status_is_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No second message."""
    monkeypatch.setattr(subprocess, "run", Child(3).run)
    with pytest.raises(SystemExit) as caught:
        export_in_child("default", "int8", tmp_path)
    assert caught.value.code == 3


def test_an_export_that_is_killed_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It could not say so itself: the kernel ended it for lack of memory."""
    monkeypatch.setattr(subprocess, "run", Child(-9).run)
    with pytest.raises(SourceError, match="SIGKILL mostly means too little memory") as caught:
        export_in_child("default", "int8", tmp_path)
    one_line(caught.value)
