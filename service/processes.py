"""The driver's own process: its descendants, its signals, its output. Knows nothing of Ray.

Separate because stopping everything that was started is the same work whatever was started.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
KILL_GRACE_S = 5.0  # what killed processes get to disappear


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it (prctl(2), PR_SET_CHILD_SUBREAPER).

    What Ray's processes start may outlive them; this way it stays among our descendants and `end_leftovers` finds it.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> dict[int, str]:
    """Command name by process id of every process below this one that has not ended (proc(5))."""
    children, names = defaultdict(list), {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            head, _, tail = stat.read_text(errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            children[int(parent)].append(pid := int(stat.parent.name))
            if state != "Z":
                names[pid] = head.partition("(")[2]
    found, pending = [], [os.getpid()]
    while pending:
        below = children[pending.pop()]
        found += below
        pending += below
    return {pid: names[pid] for pid in found if pid in names}


def end_leftovers(foreign: set[int], grace_s: float) -> None:
    """Wait `grace_s` seconds for our descendants to end, then kill those that have not; `foreign` ones are not ours."""
    deadline = time.monotonic() + grace_s
    while leftovers := descendants().keys() - foreign:
        if time.monotonic() > deadline:
            for pid in leftovers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline + KILL_GRACE_S:
                return  # in uninterruptible sleep: nobody can end those
        time.sleep(0.05)


def in_background(work: Callable[[], object]) -> "Future[None]":
    """Run `work` in a thread that ends with the process, however busy it is; the future tells how it went."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future


class StopSignals:
    """SIGTERM and SIGINT (Ctrl-C) as KeyboardInterrupt, remembering which it was.

    KeyboardInterrupt, because that is what Ray's blocking calls raise whatever the handler raises.
    """

    def __init__(self) -> None:
        self.last = signal.SIGINT
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def install(self) -> None:
        """Take the signals; again after `ray.init`, which replaces the handler of SIGTERM."""
        for number in self._previous:
            signal.signal(number, self._interrupt)

    def ignore(self) -> None:
        """Let nothing interrupt the clean-up."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.last = signal.Signals(number)
        raise KeyboardInterrupt


@contextmanager
def output_to(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send stdout and stderr of this process and its children to `log`; yield the terminal's own two.

    Python, Ray's C++ core and Ray's processes all write to both at will; none of it is for the operator.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    try:
        with open(saved[0], "w", closefd=False) as out, open(saved[1], "w", closefd=False) as err:
            yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)
