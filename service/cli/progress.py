"""Showing how far a long command is: a list of stages on a terminal, a line for each elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

NOTE = "note: "  # how a line begins that is no stage, as the exporter says it
SHORT_S = 1.0  # a stage that took no longer leaves no line behind


@contextmanager
def stages(
    console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Yield what is called with a line before each stage."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield say
        return
    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, get_time=clock) as progress:
        shown = _Stages(progress)
        try:
            yield shown.begin
        finally:
            shown.end()


def say(line: str) -> None:
    """One line on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


class _Stages:
    """The stages in the order in which they began, the last of them running."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._running: TaskID | None = None

    def begin(self, line: str) -> None:
        """End the stage before and begin another; a note only stays on the screen above them."""
        if line.startswith(NOTE):
            self._progress.console.print(line, markup=False, highlight=False)
            return
        self.end()
        self._running = self._progress.add_task(line, total=1)

    def end(self) -> None:
        """Tick off the running stage; a short one disappears."""
        if self._running is None:
            return
        (task,) = [task for task in self._progress.tasks if task.id == self._running]
        if (task.elapsed or 0.0) < SHORT_S:
            self._progress.remove_task(self._running)
        else:
            self._progress.update(self._running, completed=1)
        self._running = None
