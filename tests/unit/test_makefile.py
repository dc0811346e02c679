"""`make serve` says one line for each stage; what pip says is shown only when it fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
WARNING = "WARNING: Location 'file:///mirror/x/' is ignored: it is neither a file nor a directory."
PYTHON = f"""#!/bin/sh
echo "Collecting torch with $*"
echo "{WARNING}" >&2
echo "ERROR: No matching distribution found for torch" >&2
exit $PIP_STATUS
"""

pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose pip is loud and whose `attend` says what it was called with."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("python", PYTHON), ("attend", '#!/bin/sh\necho "attend $*"\n')):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


def make(target: str, venv: Path, pip_status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a target in that environment, never in the checkout's own."""
    environment = {**os.environ, "PIP_STATUS": str(pip_status), "MAKEFLAGS": ""}
    command = [str(MAKE), "--no-print-directory", target, f"VENV={venv}", f"CACHE={venv / 'cache'}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("target", "command"), [("serve", "attend serve"), ("export", "attend export default")])
def test_the_first_run_says_a_line_for_each_stage_and_nothing_of_pips(venv: Path, target: str, command: str) -> None:
    """A newcomer reads what happens, and where more is to be read."""
    result = make(target, venv)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    first, last = result.stdout.splitlines()
    assert first == f"attend: installing packages, which takes minutes the first time (log: {venv}/pip.log)"
    assert last == command
    log = (venv / "pip.log").read_text()
    assert WARNING in log
    assert "--constraint constraints.txt --editable .[cpu,export]\n" in log


def test_the_second_run_installs_nothing(venv: Path) -> None:
    """Only what has changed."""
    make("serve", venv)
    assert make("serve", venv).stdout == "attend serve\n"


@pytest.mark.parametrize("target", ["serve", "test", "lint"])
def test_when_pip_fails_what_it_said_is_shown(venv: Path, target: str) -> None:
    """All of it: the reason is rarely in the last line. Nothing goes on after it."""
    result = make(target, venv, pip_status=1)
    assert result.returncode != 0
    assert "No matching distribution found" in result.stderr
    assert WARNING in result.stderr
    assert "attend serve" not in result.stdout
    assert make(target, venv, pip_status=1).returncode != 0, "a failed installation is not taken for one"
