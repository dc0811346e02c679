"""How many cores this process may use: what it may run on, and what its control groups grant it. Linux.

Separate because ONNX Runtime counts the machine's cores: in a container with a quota it would start a thread on each,
and they would be stopped together whenever the quota is spent.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SystemFiles:
    """Files of Linux that say which processors there are; tests put their own in place."""

    control_groups: Path = Path("/sys/fs/cgroup")
    own_groups: Path = Path("/proc/self/cgroup")
    processors: Path = Path("/sys/devices/system/cpu")


SYSTEM_FILES = SystemFiles()


def session_threads(asked: int, files: SystemFiles = SYSTEM_FILES, allowed: Collection[int] | None = None) -> int:
    """Threads for an ONNX session: those asked for, or, for 0, one a core that may be used.

    0 where these are all: then ONNX Runtime's own choice is the same, and it also keeps each thread on its core.
    """
    if asked:
        return asked
    usable = usable_cores(files, allowed)
    return 0 if usable >= _num_cores(files.processors, _all_processors(files.processors)) else usable


def usable_cores(files: SystemFiles = SYSTEM_FILES, allowed: Collection[int] | None = None) -> int:
    """Physical cores that this process may use, at least 1; of a quota of 2.5 cores, 2.

    allowed: the processors it may run on; by default as the system says.
    """
    cores = _num_cores(files.processors, _own_processors() if allowed is None else allowed)
    return max(1, int(min([cores, *_quotas(files)])))


def _own_processors() -> Collection[int]:
    """Processors that this process may run on; where the system has no masks, all."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _num_cores(processors: Path, numbers: Collection[int]) -> int:
    """Physical cores of some processors: two hyperthreads of one core compute no more than one."""
    return len({_core(processors / f"cpu{number}" / "topology", number) for number in numbers})


def _core(topology: Path, number: int) -> tuple[str, str]:
    try:
        return (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
    except OSError:
        return "unknown", str(number)


def _all_processors(processors: Path) -> list[int]:
    names = [path.name.removeprefix("cpu") for path in processors.glob("cpu[0-9]*")]
    return [int(name) for name in names if name.isdigit()] or list(range(os.cpu_count() or 1))


def _quotas(files: SystemFiles) -> Iterator[float]:
    """Cores granted by each control group that this process is in, up to the root."""
    for folder in _groups(files):
        for read in (_quota_v2, _quota_v1):
            try:
                quota_us, period_us = read(folder)
            except (OSError, ValueError):  # no such file, or no limit
                continue
            if quota_us > 0 and period_us > 0:
                yield quota_us / period_us


def _quota_v2(folder: Path) -> tuple[int, int]:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)  # "max" is no number


def _quota_v1(folder: Path) -> tuple[int, int]:
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())


def _groups(files: SystemFiles) -> Iterator[Path]:
    """Folders of this process's groups and of those around them; within a container some of these cannot be seen."""
    try:
        lines = files.own_groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if not path or (controllers and "cpu" not in controllers.split(",")):
            continue
        for mount in _mounts(controllers):
            root = files.control_groups / mount
            group = root / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(root))


def _mounts(controllers: str) -> list[str]:
    """Folders that may stand for a list of version 1's controllers: systems order them differently, or link each."""
    names = controllers.split(",")
    return list(dict.fromkeys((controllers, ",".join(reversed(names)), *names)))
