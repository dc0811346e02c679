"""The wheel: whole, and as good outside a checkout as the checkout's own command.

It is unpacked into a folder and run from there with this environment's packages, because installing it would replace
the checkout that the tests run.
"""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.tiny_checkpoint import write_tiny_checkpoint

ROOT = Path(__file__).parents[2]
RUN = "import sys; from service.cli import main; sys.argv[0] = 'attend'; main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the backend that pip uses."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation puts into site-packages."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code of the wheel in an empty folder, for a user with a home of their own."""
    (home / "work").mkdir(parents=True, exist_ok=True)
    hidden = ("ATTEND_", "XDG_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    environment |= {"PYTHONPATH": str(unpacked), "HOME": str(home)}
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(
        command,
        cwd=home / "work",
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    """Data too: the text that calibrates, and what is added later."""
    files = [file for package in ("model", "service") for file in (ROOT / package).rglob("*") if file.is_file()]
    names = {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}
    assert "model/calibration.txt" in names
    with zipfile.ZipFile(wheel) as archive:
        assert names <= set(archive.namelist())


@pytest.mark.parametrize(
    ("argument", "begins"), [("--version", f"attend {version('attend')} (onnxruntime"), ("--help", "Usage: attend ")]
)
def test_the_command_of_the_wheel_answers(unpacked: Path, tmp_path: Path, argument: str, begins: str) -> None:
    """From its own files and not from the checkout's."""
    result = run(unpacked, tmp_path, RUN, argument)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(begins)
    places = run(unpacked, tmp_path, "import model, service; print(model.__file__, service.__file__)")
    assert places.stdout.count(str(unpacked)) == 2


def test_the_wheel_exports_and_answers_outside_a_checkout(unpacked: Path, tmp_path: Path) -> None:
    """One command, the bundle in the user's own cache, nothing in the folder where it was called."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny-llama")
    arguments = ("generate", "hello", "--model", str(checkpoint), "--max-tokens", "3")
    result = run(unpacked, tmp_path / "home", RUN, *arguments)
    assert result.returncode == 0, result.stderr
    assert "tracing 2 layers" in result.stderr
    names = [path.name for path in (tmp_path / "home/.cache/attend/bundles").iterdir() if path.is_dir()]
    assert [name.rpartition("-")[0] for name in names] == ["tiny-llama-w8a8"]
    assert list((tmp_path / "home/work").iterdir()) == []
    again = run(unpacked, tmp_path / "home", RUN, *arguments)
    assert (again.returncode, again.stdout) == (0, result.stdout)
    assert "tracing" not in again.stderr
