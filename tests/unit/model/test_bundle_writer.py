"""Exports are atomic: a valid bundle or none at the target, whatever was there and whatever goes wrong."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

from model import bundle_writer
from model.bundle import MANIFEST_NAME, Bundle, open_bundle
from model.bundle_writer import ExportError, ExportRequest, default_bundle_path, export_bundle
from model.chat import ChatTemplateError
from model.checkpoint import CheckpointError
from model.config import UnsupportedModelError
from model.precision import DEFAULT_PRECISION, PRECISION_NAMES
from tests.support.errors import one_line
from tests.support.tiny_checkpoint import END_TOKEN, write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture
def exported(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A valid fp32 bundle of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def export(source: Path, out: Path, precision: str = "fp32", **options: Any) -> tuple[Bundle, list[str]]:
    """Export into `out`; the bundle and the stages that were told."""
    said: list[str] = []
    return export_bundle(ExportRequest(str(source), out, precision, **options), out.parent, said.append), said


def times(folder: Path) -> dict[str, int]:
    """When each file of a folder was last written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def neighbours(out: Path) -> set[str]:
    """What lies where the target lies, but for locks."""
    return {file.name for file in out.parent.iterdir() if file.suffix != ".lock"}


def test_valid_bundle_is_reused(tiny_folder: Path, exported: Path) -> None:
    """Not one file is written again, and the stages say so."""
    before = times(exported)
    bundle, said = export(tiny_folder, exported)
    assert times(exported) == before
    assert bundle == open_bundle(exported)
    assert said[-1].startswith("reusing the valid bundle")


def test_same_weights_give_byte_identical_files(
    tiny_bundle: Bundle,
    tiny_folder: Path,
    tmp_path: Path,
    traced_once: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of the time, the place or the run gets into the graph or the manifest."""
    monkeypatch.setattr("model.export.trace_graph", traced_once)  # what it replaces
    bundle, said = export(tiny_folder, tmp_path / "deep" / "in" / "folders")
    assert [line.split(" ")[0] for line in said] == [
        "checking",
        "reading",
        "note:",
        "note:",
        "tracing",
        "converting",
        "writing",
    ]
    assert said[3].startswith("note: the chat template has no form for tools")
    for file in tiny_bundle.path.iterdir():
        assert (bundle.path / file.name).read_bytes() == file.read_bytes(), file.name


def damage_weights(folder: Path) -> None:
    """Flip one bit in the middle of the weights."""
    file = folder / "model.onnx.data"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def age_exporter(folder: Path) -> None:
    """Let an older exporter have written the bundle."""
    file = folder / MANIFEST_NAME
    values = json.loads(file.read_text())
    values["exporter"]["attend_exporter"] = "0"
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        age_exporter,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / MANIFEST_NAME).write_text("{"),
    ],
    ids=["damaged weights", "older exporter", "missing file", "damaged manifest"],
)
def test_bundle_that_is_not_worth_keeping_is_written_again(
    tiny_bundle: Bundle, tiny_folder: Path, exported: Path, damage: Callable[[Path], object]
) -> None:
    """The result equals a fresh export, and nothing is left beside it."""
    damage(exported)
    bundle, _ = export(tiny_folder, exported)
    assert bundle.manifest == tiny_bundle.manifest
    assert neighbours(exported) == {"bundle"}


def test_bundle_of_another_precision_is_refused_and_untouched(tiny_folder: Path, exported: Path) -> None:
    """An export never replaces what the user may still want."""
    before = times(exported)
    with pytest.raises(ExportError, match=r"holds another bundle \(tiny-llama, fp32\).*--force") as caught:
        export(tiny_folder, exported, "int8")
    one_line(caught.value)
    assert times(exported) == before


def test_bundle_of_other_weights_is_refused_and_untouched(exported: Path, tmp_path: Path) -> None:
    """The same geometry and name, but other numbers."""
    before = times(exported)
    other = write_tiny_checkpoint(tmp_path / "other" / "tiny-llama", seed=1)
    with pytest.raises(ExportError, match="holds another bundle"):
        export(other, exported)
    assert times(exported) == before


def test_force_replaces_another_bundle(tiny_folder: Path, exported: Path) -> None:
    """The new precision stands at the target, with nothing of the old one."""
    bundle, _ = export(tiny_folder, exported, "int8", force=True)
    assert open_bundle(exported).manifest.precision == bundle.manifest.precision == "int8"
    assert neighbours(exported) == {"bundle"}


@pytest.mark.parametrize("force", [False, True])
def test_target_that_is_no_bundle_is_refused_and_untouched(tiny_folder: Path, tmp_path: Path, force: bool) -> None:
    """A mistyped --out never costs a user's files, not even with --force."""
    folder, file = tmp_path / "thesis", tmp_path / "notes.txt"
    folder.mkdir()
    (folder / "chapter").write_text("years of work")
    file.write_text("notes")
    for target in (folder, file):
        with pytest.raises(ExportError, match="exists and is not a bundle; choose another --out") as caught:
            export(tiny_folder, target, force=force)
        assert str(target) in one_line(caught.value)
    assert (folder / "chapter").read_text() == "years of work"
    assert file.read_text() == "notes"


@pytest.mark.parametrize("way", ["empty folder", "link", "."])
def test_bundle_can_be_written_where_a_folder_already_is(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """An empty folder, a link to one, and the current one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    out = folder
    if way == "link":
        out = tmp_path / "link"
        out.symlink_to(folder)
    elif way == ".":
        monkeypatch.chdir(folder)
        out = Path()
    bundle = export_bundle(ExportRequest(str(tiny_folder), out, "fp32"), tmp_path)
    assert bundle.path == folder
    assert open_bundle(folder).manifest == bundle.manifest
    assert out.is_symlink() == (way == "link")


def test_root_as_target_is_refused(tiny_folder: Path) -> None:
    """There is no place beside it to prepare a bundle."""
    with pytest.raises(ExportError, match="/ cannot be a bundle; name a folder with --out"):
        export(tiny_folder, Path("/"))


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
@pytest.mark.parametrize("existing", [False, True])
def test_failure_in_the_middle_leaves_what_was_there(
    tiny_folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, existing: bool
) -> None:
    """Neither a half-written bundle nor its partial folder; a bundle to be replaced stays whole."""

    def fail(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(bundle_writer, "_write_texts", fail)
    monkeypatch.setattr("model.export.trace_graph", lambda _: None)
    monkeypatch.setattr("model.quantize.PRECISIONS", {"int8": lambda graph, _: graph})
    monkeypatch.setattr("model.export.save_graph", lambda _, folder: (folder / "model.onnx").touch())
    out = exported if existing else exported.with_name("new")
    with pytest.raises(type(error)):
        export(tiny_folder, out, "int8", force=True)
    assert neighbours(exported) == {"bundle"}
    assert open_bundle(exported).manifest.precision == "fp32"


def test_source_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    """A bad source, and a good one of a model that cannot be exported."""
    out = tmp_path / "out" / "bundle"
    with pytest.raises(CheckpointError):
        export(tmp_path / "nowhere", out)
    with pytest.raises(UnsupportedModelError):
        export(write_tiny_checkpoint(tmp_path / "gpt", architectures=["GPT2LMHeadModel"]), out)
    misfit = write_tiny_checkpoint(tmp_path / "misfit")
    config = json.loads((misfit / "config.json").read_text())
    (misfit / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(UnsupportedModelError, match="don't fit its geometry"):
        export(misfit, out)
    assert neighbours(out) == set()


EXPORT_PROGRAM = """
import sys
from pathlib import Path
from model.bundle_writer import ExportRequest, export_bundle
source, out = sys.argv[1], Path(sys.argv[2])
export_bundle(ExportRequest(source, out, "fp32"), out.parent, lambda line: print(line, flush=True))
"""


def test_killed_export_leaves_no_bundle_and_the_next_one_succeeds(
    tiny_bundle: Bundle, tiny_folder: Path, tmp_path: Path
) -> None:
    """SIGKILL while a real process traces: no clean-up runs, the lock is free again, the leftovers go."""
    out = tmp_path / "bundle"
    command = [sys.executable, "-c", EXPORT_PROGRAM, str(tiny_folder), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("tracing") for line in process.stdout)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert neighbours(out) == {"bundle.partial"}
    bundle, _ = export(tiny_folder, out)
    assert bundle.manifest == tiny_bundle.manifest
    assert neighbours(out) == {"bundle"}


def test_leftovers_of_exports_killed_at_the_end_are_removed(
    tiny_bundle: Bundle, tiny_folder: Path, exported: Path
) -> None:
    """Killed between its two renames, an export leaves the old bundle aside and the new one unnamed: both go."""
    shutil.copytree(exported, exported.with_name("bundle.partial"))
    exported.rename(exported.with_name("bundle.old"))
    bundle, _ = export(tiny_folder, exported)
    assert bundle.manifest == tiny_bundle.manifest
    assert neighbours(exported) == {"bundle"}


def test_concurrent_exports_to_one_folder_both_end_with_the_bundle(tiny_folder: Path, tmp_path: Path) -> None:
    """The second waits for the first and reuses what it made."""
    out = tmp_path / "bundle"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: export(tiny_folder, out), range(2)))
    assert results[0][0] == results[1][0] == open_bundle(out)
    assert sorted("tracing" in " ".join(said) for _, said in results) == [False, True]
    assert neighbours(out) == {"bundle"}


def test_model_id_of_the_request_is_kept_and_decides_about_reuse(tiny_folder: Path, exported: Path) -> None:
    """Without one, the bundle's own name will do; another one makes the bundle again."""
    renamed, _ = export(tiny_folder, exported, model_id="my-model")
    assert renamed.config.model_id == "my-model"
    again, said = export(tiny_folder, exported)
    assert again.config.model_id == "my-model"
    assert said[-1].startswith("reusing")


def test_model_without_a_chat_template_gets_none(tmp_path: Path) -> None:
    """A base model's bundle lists no template."""
    folder = write_tiny_checkpoint(tmp_path / "base", num_hidden_layers=1)
    (folder / "tokenizer_config.json").unlink()
    bundle, _ = export(folder, tmp_path / "bundle")
    assert bundle.chat_template is None
    assert "chat_template.jinja" not in bundle.manifest.files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "precision 'int3' does not exist; choose fp32 or int8 or w8a8 or int4"),
        ({"device": "tpu"}, "device 'tpu' is not offered by this release; choose cpu"),
    ],
)
def test_unknown_choice_is_refused_with_the_possible_ones(options: dict[str, Any], message: str) -> None:
    """Before any file is touched."""
    with pytest.raises(ExportError, match=message):
        ExportRequest("default", Path("out"), **options)


def test_every_precision_offered_can_be_made() -> None:
    """The names stand apart from the code that needs onnx; they must not drift."""
    from model.quantize import PRECISIONS

    assert tuple(PRECISIONS) == PRECISION_NAMES
    assert DEFAULT_PRECISION in PRECISIONS


def test_default_bundles_of_different_precisions_lie_apart(tmp_path: Path) -> None:
    """Both can be kept in one cache."""
    paths = {default_bundle_path(tmp_path, precision) for precision in PRECISION_NAMES}
    assert len(paths) == len(PRECISION_NAMES)


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}"])
def test_a_chat_template_that_can_never_work_stops_the_export(tmp_path: Path, template: str) -> None:
    """Before the weights are traced, and in one line; nothing is left behind."""
    source = write_tiny_checkpoint(tmp_path / "source")
    settings = {"chat_template": template, "eos_token": END_TOKEN, "bos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ChatTemplateError, match="mend the template") as caught:
        export(source, tmp_path / "out")
    one_line(caught.value)
    assert not (tmp_path / "out").exists()
