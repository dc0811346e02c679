"""Threads from what a process may really use, over made-up control groups, masks and processors."""

from pathlib import Path

import pytest

from model.processors import SystemFiles, session_threads, usable_cores


def machine(folder: Path, num_processors: int = 8, *, per_core: int = 1) -> SystemFiles:
    """A machine without limits. per_core: processors of each core."""
    files = SystemFiles(folder / "cgroup", folder / "own", folder / "cpu")
    for number in range(num_processors):
        topology = files.processors / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{number // per_core}\n")
    (files.processors / "cpufreq").mkdir()
    files.control_groups.mkdir()
    files.own_groups.write_text("0::/\n")
    return files


def write(files: SystemFiles, texts: dict[str, str]) -> None:
    """Put files below the control groups."""
    for name, text in texts.items():
        path = files.control_groups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"
QUOTAS: list[tuple[str, dict[str, str], int, str]] = [
    ("0::/\n", {"cpu.max": "200000 100000\n"}, 2, "a container of Docker or Kubernetes"),
    ("0::/\n", {"cpu.max": "250000 100000\n"}, 2, "part of a core is no core"),
    ("0::/\n", {"cpu.max": "50000 100000\n"}, 1, "half a core, and one thread is the least"),
    ("0::/\n", {"cpu.max": "30000 10000\n"}, 3, "another period"),
    ("0::/\n", {"cpu.max": "max 100000\n"}, 8, "no limit"),
    ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8, "more than there is"),
    ("0::/\n", {}, 8, "the root has no such file"),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3, "a limit further up"),
    ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "600000 100000\n"}, 4, "the smaller of two"),
    ("0::/a/b\n", {"a/b/cpu.max": "600000 100000\n", "a/cpu.max": "500000 100000\n"}, 5, "the smaller further up"),
    ("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2, "a group that cannot be seen from within"),
    (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2, "version 1"),
    (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8, "1, no limit"),
    (
        V1,
        {
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        3,
        "1, seen from the machine",
    ),
    *(
        (
            own,
            {f"{mount}/cpu.cfs_quota_us": "200000\n", f"{mount}/cpu.cfs_period_us": "100000\n"},
            2,
            f"1, listed as {own.split(':')[1]}, mounted as {mount}",
        )
        for own, mount in (
            ("4:cpuacct,cpu:/a\n", "cpu,cpuacct"),
            ("4:cpuacct,cpu:/a\n", "cpuacct,cpu"),
            ("4:cpuacct,cpu:/a\n", "cpu"),
            ("4:cpu,cpuacct:/a\n", "cpuacct,cpu"),
            ("4:cpu:/a\n", "cpu"),
            ("4:cpuset,cpu,cpuacct:/a\n", "cpu"),
        )
    ),
    ("\n0::/\n\n", {"cpu.max": "200000 100000\n"}, 2, "blank lines"),
    ("garbage\n0::/\n", {"cpu.max": "200000 100000\n"}, 2, "a line that nobody understands"),
    (V1 + "0::/\n", {"cpu.max": "max 100000\n"}, 8, "both versions mounted"),
    ("0::/\n", {"cpu.max": "garbage\n"}, 8, "what nobody understands limits nothing"),
]


@pytest.mark.parametrize(("own", "texts", "cores", "reason"), QUOTAS, ids=[row[3] for row in QUOTAS])
def test_a_quota_limits_the_threads(tmp_path: Path, own: str, texts: dict[str, str], cores: int, reason: str) -> None:
    """Of eight cores, those that the control groups grant."""
    files = machine(tmp_path)
    files.own_groups.write_text(own)
    write(files, texts)
    assert usable_cores(files, range(8)) == cores, reason
    assert session_threads(0, files, range(8)) == (0 if cores == 8 else cores)


MASKS = [
    (1, [0, 1, 2], 3, "three of eight"),
    (1, [7], 1, "one"),
    (1, range(8), 8, "all"),
    (2, [0, 1], 1, "both threads of one core"),
    (2, [0, 2, 4], 3, "one thread of each of three cores"),
    (2, range(8), 4, "all threads of four cores"),
]


@pytest.mark.parametrize(("per_core", "allowed", "cores", "reason"), MASKS, ids=[row[3] for row in MASKS])
def test_the_mask_of_a_process_limits_its_threads(
    tmp_path: Path, per_core: int, allowed: list[int], cores: int, reason: str
) -> None:
    """taskset, Docker's --cpuset-cpus, Slurm; physical cores are what counts."""
    assert usable_cores(machine(tmp_path, per_core=per_core), allowed) == cores, reason


def test_without_a_limit_the_choice_is_left_to_onnx_runtime(tmp_path: Path) -> None:
    """It counts physical cores too, and binds a thread to each."""
    assert session_threads(0, machine(tmp_path, per_core=2), range(8)) == 0


@pytest.mark.parametrize("asked", [1, 5, 64])
def test_what_was_asked_for_is_what_is_used(tmp_path: Path, asked: int) -> None:
    """Whatever the limits are."""
    files = machine(tmp_path)
    write(files, {"cpu.max": "200000 100000\n"})
    assert session_threads(asked, files, [0]) == asked


def test_a_machine_that_tells_nothing_has_the_processors_of_the_mask(tmp_path: Path) -> None:
    """No control groups, no topology."""
    files = SystemFiles(tmp_path / "cgroup", tmp_path / "own", tmp_path / "cpu")
    assert usable_cores(files, [0, 1, 2, 3]) == 4


def test_this_machine_has_at_least_one_core() -> None:
    """The real files can be read."""
    assert usable_cores() >= 1
