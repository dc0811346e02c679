"""What a figure was measured on."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

NOTABLE_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Hardware:
    """One machine. `notable_flags`: the instruction sets that decide which kernels run."""

    cpu: str
    notable_flags: tuple[str, ...]
    missing_flags: tuple[str, ...]
    num_cores: int
    memory_bytes: int
    system: str
    python: str
    load_average: float  # of the minute before the run; a busy machine makes a bad benchmark


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags as Linux names them; empty elsewhere."""
    return frozenset(_cpu_info("flags").split())


def read_hardware() -> Hardware:
    """This machine."""
    flags = cpu_flags()
    return Hardware(
        cpu=_cpu_info("model name") or platform.processor(),
        notable_flags=tuple(flag for flag in NOTABLE_FLAGS if flag in flags),
        missing_flags=tuple(flag for flag in NOTABLE_FLAGS if flag not in flags),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=os.getloadavg()[0],
    )


def _cpu_info(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
