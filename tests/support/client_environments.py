"""Environments for clients that are not ours: one for each requirements file or lock file, made once in the cache.

Separate from the tests because both tests/e2e/test_other_clients.py and tests/clients/run.py install clients.
"""

import shutil
import subprocess
import sys
from pathlib import Path

CLIENTS = Path(__file__).parents[1] / "clients"
MIN_NODE_MAJOR = 20
INSTALL_TIMEOUT_S = 900.0
COMMAND_TIMEOUT_S = 60.0


class NodeMissingError(Exception):
    """Node or npm is not on the PATH, or is too old."""


def run(*command: str | Path, timeout_s: float, cwd: Path | None = None) -> str:
    """Run a program to its end and return what it printed; its errors are the assertion's message."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python_environment(cache_dir: Path, name: str) -> Path:
    """The interpreter of an environment with the packages of tests/clients/requirements/NAME.txt."""
    requirements = CLIENTS / "requirements" / f"{name}.txt"
    folder = cache_dir / "clients" / name
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    wanted = f"{requirements.read_text(encoding='utf-8')}\nPython {sys.version}\n{sys.base_prefix}\n"
    if not _is_stamped(stamp, wanted):
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder, timeout_s=COMMAND_TIMEOUT_S)
        pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--no-input")
        run(*pip, "install", "--quiet", "--requirement", requirements, timeout_s=INSTALL_TIMEOUT_S)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def find_node() -> str:
    """The Node on the PATH, where it is there and new enough."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NodeMissingError(f"node or npm is not on the PATH; the JavaScript clients need Node {MIN_NODE_MAJOR}")
    version = run("node", "--version", timeout_s=COMMAND_TIMEOUT_S).strip()
    if int(version.removeprefix("v").split(".")[0]) < MIN_NODE_MAJOR:
        raise NodeMissingError(f"Node {version} is too old; the JavaScript clients need Node {MIN_NODE_MAJOR}")
    return "node"


def node_environment(cache_dir: Path) -> Path:
    """A copy of tests/clients/js with its packages; they are installed once per lock file."""
    folder = cache_dir / "clients" / "js"
    shutil.copytree(CLIENTS / "js", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    lock = (folder / "package-lock.json").read_text(encoding="utf-8")
    stamp = folder / "node_modules" / "installed.txt"  # `npm ci` begins by removing it
    if not _is_stamped(stamp, lock):
        npm_ci = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        run(*npm_ci, timeout_s=INSTALL_TIMEOUT_S, cwd=folder)
        stamp.write_text(lock, encoding="utf-8")
    return folder


def _is_stamped(stamp: Path, text: str) -> bool:
    """Whether an installation was finished for exactly this text."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == text
