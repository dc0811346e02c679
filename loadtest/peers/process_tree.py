"""ProcessTree: a server with all it has started; its CPU time, its memory, its end.

Children are remembered once seen, so that one whose parent died (as Ray's and vLLM's may) is still counted and still
stopped. CPU time of a process that ended counts as last seen.
"""

import contextlib

import psutil

TERMINATE_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 10.0


class ProcessTree:
    """Watches a process and its descendants. `refresh` looks for new ones; the rest reads."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._known: dict[psutil.Process, float] = {self._root: 0.0}  # CPU seconds when last seen

    def refresh(self) -> None:
        """Look for descendants and read everybody's CPU time."""
        for parent in list(self._known):
            with contextlib.suppress(psutil.Error):
                for child in parent.children(recursive=True):
                    self._known.setdefault(child, 0.0)
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._known[process] = times.user + times.system

    def cpu_s(self) -> float:
        """CPU seconds used so far by all, user and system."""
        self.refresh()
        return sum(self._known.values())

    @staticmethod
    def machine_cpu_s() -> float:
        """CPU seconds that the whole machine has spent on anything since it started."""
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)

    def memory_bytes(self) -> int:
        """Proportional set size of all: a page that several share counts once."""
        total = 0
        for process in self._alive():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    @property
    def num_alive(self) -> int:
        """How many of those once seen still run."""
        return len(self._alive())

    def stop(self) -> None:
        """Ask the root to end, then everybody that is left, then insist. Returns when all are gone."""
        self.refresh()
        with contextlib.suppress(psutil.Error):
            self._root.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            self._root.wait(TERMINATE_TIMEOUT_S)
        self.refresh()
        alive = self._alive()
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, stubborn = psutil.wait_procs(alive, KILL_TIMEOUT_S)
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, KILL_TIMEOUT_S)

    def _alive(self) -> list[psutil.Process]:
        return [process for process in self._known if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    """A zombie has ended; only its parent has not asked yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
