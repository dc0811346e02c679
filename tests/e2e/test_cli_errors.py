"""What goes wrong at the command line: one clear line, a non-zero exit, no traceback."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.support.server import attend_command, run_attend
from tests.support.tiny_checkpoint import write_tiny_checkpoint

STAGES = ("checking the source", "reading the weights", "note: ")


@pytest.fixture
def broken_bundle(tiny_bundle: Bundle, tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of a good bundle with one thing wrong."""

    def make(fault: str) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(tiny_bundle.path, folder)
        if fault == "version":
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
        elif fault == "flipped byte":
            data = bytearray((folder / "model.onnx.data").read_bytes())
            data[len(data) // 2] ^= 1
            (folder / "model.onnx.data").write_bytes(data)
        return folder

    return make


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A failed command ended with one error line, which says all of `parts`; before it only an export's stages."""
    assert result.returncode != 0
    *stages, error = result.stderr.strip().splitlines()
    assert all(line.startswith(STAGES) for line in stages), result.stderr
    assert error.startswith("attend: ")
    for part in parts:
        assert part in error


@pytest.mark.parametrize("mode", [["--standalone"], []])
def test_serving_without_a_bundle_says_how_to_make_one(tmp_path: Path, mode: list[str]) -> None:
    """A folder that is not there, with and without Ray."""
    result = run_attend("serve", *mode, "--bundle", tmp_path / "none", "--port", "8")
    assert_one_line(result, "no bundle at", "attend export")


@pytest.mark.parametrize("mode", [["--standalone"], []])
@pytest.mark.parametrize(("fault", "part"), [("version", "format version 99"), ("flipped byte", "is damaged")])
def test_a_bad_bundle_is_not_served(
    broken_bundle: Callable[[str], Path], fault: str, part: str, mode: list[str]
) -> None:
    """One flipped bit, or a format of the future."""
    assert_one_line(run_attend("serve", *mode, "--bundle", broken_bundle(fault)), part, "export the bundle again")


@pytest.mark.parametrize("mode", [["--standalone"], []])
def test_a_port_in_use_is_named(tiny_bundle: Bundle, mode: list[str]) -> None:
    """Before seconds are spent on loading."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_attend("serve", *mode, "--bundle", tiny_bundle.path, "--port", port)
    assert_one_line(result, f"port {port}", "--port")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--port", "99999"], "--port (ATTEND_PORT) is '99999'"),
        (["--replicas", "none"], "--replicas (ATTEND_REPLICAS) is 'none'"),
        (["--prefill-chunk-tokens", "3"], "--prefill-chunk-tokens (ATTEND_PREFILL_CHUNK_TOKENS) is '3'"),
        (["--max-num-rows", "0"], "--max-num-rows (ATTEND_MAX_NUM_ROWS) is '0'"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_variable(options: list[str], part: str) -> None:
    """What was given and where from."""
    assert_one_line(run_attend("serve", *options), part)


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the service would start with a default, without a word."""
    monkeypatch.setenv("ATTEND_MAX_ROWS", "3")
    assert_one_line(run_attend("serve"), "ATTEND_MAX_ROWS is not a setting")


def test_an_unreadable_checkpoint_is_one_line(tmp_path: Path) -> None:
    """Not a folder, not a GGUF, damaged, and a model that is not supported."""
    out = tmp_path / "out"
    assert_one_line(run_attend("export", tmp_path / "none", "--out", out), "cannot read")
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf file")
    assert_one_line(run_attend("export", tmp_path / "bad.gguf", "--out", out), "bad.gguf")
    folder = write_tiny_checkpoint(tmp_path / "mamba", architectures=["MambaForCausalLM"])
    assert_one_line(run_attend("export", folder, "--out", out), "MambaForCausalLM is not supported", "LlamaForCausalLM")
    assert not out.exists()


def test_an_export_with_an_unknown_choice_is_one_line(tmp_path: Path) -> None:
    """--precision and --device."""
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    assert_one_line(run_attend("export", folder, "--out", tmp_path / "x", "--precision", "int3"), "fp32 or int8")
    assert_one_line(run_attend("export", folder, "--out", tmp_path / "x", "--device", "tpu"), "'tpu'")


def test_generate_answers_and_refuses_in_one_line(tiny_bundle: Bundle) -> None:
    """The local command: an answer on stdout; a prompt too long is an error."""
    good = run_attend("generate", "hello", "--bundle", tiny_bundle.path, "--max-tokens", "3")
    assert good.returncode == 0, good.stderr
    assert_one_line(run_attend("generate", "x" * 300, "--bundle", tiny_bundle.path), "context holds 256 tokens")
    assert_one_line(run_attend("generate", "x", "--bundle", tiny_bundle.path, "--top-p", "0"), "top_p is 0")


def test_a_text_that_cannot_be_scored_is_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Too short, and not UTF-8."""
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "latin.txt").write_bytes(b"\xff" * 9000)
    result = run_attend("bench", "quality", tiny_bundle.path, "--text", tmp_path / "short.txt")
    assert "attend: the text has 5 tokens" in result.stderr.splitlines()[-1]
    result = run_attend("bench", "quality", tiny_bundle.path, "--text", tmp_path / "latin.txt")
    assert "is not UTF-8 text" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_the_command_lists_what_it_can_do() -> None:
    """`attend` alone is help, not an error trace."""
    result = run_attend("--help")
    assert result.returncode == 0
    for command in ("export", "serve", "generate", "bench"):
        assert command in result.stdout
    assert Path(attend_command()[0]).name == "attend"
