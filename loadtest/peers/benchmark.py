"""The run: rounds over contestants over cells, one server at a time, so that a busy minute hurts nobody alone."""

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.peers.answer import Answer, Observation
from loadtest.peers.client import Job
from loadtest.peers.contestants import Contestant
from loadtest.peers.installation import PeerError
from loadtest.peers.measurement import load_of
from loadtest.peers.process_tree import ProcessTree
from loadtest.peers.prompts import SCENARIOS
from loadtest.peers.results import Cell, Results
from loadtest.peers.server import RunningServer, last_lines, running_server

SAMPLE_S = 5.0  # reading a process's pages holds it up, so seldom


@dataclass(frozen=True)
class Plan:
    """What a run does. Seconds are per cell."""

    scenarios: tuple[str, ...]
    num_streams: tuple[int, ...]
    num_rounds: int
    num_threads: int
    max_tokens: int
    window_s: float
    longest_window_s: float
    warm_up_s: float
    drain_s: float
    start_timeout_s: float
    seed: str

    def cells(self, contestant: Contestant) -> list[tuple[str, int]]:
        """(scenario, streams) of a contestant, those with equally many streams together."""
        scenarios = [name for name in self.scenarios if not contestant.scenarios or name in contestant.scenarios]
        pairs = [(name, n) for name in scenarios for n in SCENARIOS[name].num_streams or self.num_streams]
        return sorted(pairs, key=lambda pair: pair[1])


class Benchmark:
    """Measures the contestants and keeps `results` saved after every cell."""

    def __init__(
        self, plan: Plan, contestants: Sequence[Contestant], results: Results, out: Path, logs: Path,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._plan = plan
        self._contestants = contestants
        self._results = results
        self._out = out
        self._logs = logs
        self._say = say

    def run(self) -> None:
        """All rounds. A contestant that fails gets a row that says why, and the run goes on."""
        for contestant in self._contestants:
            self._describe(contestant)
        for round_number in range(self._plan.num_rounds):
            for contestant in self._contestants:
                if contestant.missing is None:
                    for num_slots, cells in self._groups(contestant):
                        self._measure_group(contestant, round_number, num_slots, cells)

    def _describe(self, contestant: Contestant) -> None:
        self._results.precisions[contestant.name] = contestant.precision
        self._results.notes[contestant.name] = contestant.note
        if contestant.missing is not None:
            self._say(f"{contestant.name}: left out: {contestant.missing}")
            self._results.failures[contestant.name] = contestant.missing
        else:
            self._results.versions[contestant.name] = contestant.versions()

    def _groups(self, contestant: Contestant) -> Iterator[tuple[int, list[tuple[str, int]]]]:
        """Cells that one start of the server can serve, with the most streams among them."""
        cells = self._plan.cells(contestant)
        if not contestant.is_sized_by_streams:
            if cells:
                yield max(n for _, n in cells), cells
            return
        for num_streams in sorted({n for _, n in cells}):
            yield num_streams, [cell for cell in cells if cell[1] == num_streams]

    def _measure_group(
        self, contestant: Contestant, round_number: int, num_slots: int, cells: Sequence[tuple[str, int]]
    ) -> None:
        log = self._logs / f"{contestant.name.replace(' ', '-')}-{round_number}-{num_slots}.log"
        remaining = list(cells)
        plan = self._plan
        self._say(f"round {round_number + 1}: {contestant.name}: starting")
        try:
            with running_server(contestant, plan.num_threads, num_slots, log, plan.start_timeout_s) as server:
                self._note_start(contestant, server, num_slots)
                while remaining:
                    scenario, num_streams = remaining[0]
                    self._add(self._measure(contestant, server, scenario, num_streams, round_number, log))
                    remaining.pop(0)
        except PeerError as error:
            for scenario, num_streams in remaining:
                self._add(Cell(contestant.name, scenario, num_streams, round_number, None, failure=str(error)))

    def _note_start(self, contestant: Contestant, server: RunningServer, num_slots: int) -> None:
        command = shell_line(server.launch.environment, server.launch.command)
        name = f"{contestant.name} ({num_slots} streams)" if contestant.is_sized_by_streams else contestant.name
        self._results.commands[name] = command
        self._results.start_s[contestant.name] = round(server.start_s, 1)

    def _measure(
        self, contestant: Contestant, server: RunningServer, scenario: str, num_streams: int, round_number: int,
        log: Path,
    ) -> Cell:  # fmt: skip
        plan = self._plan
        job = Job(
            port=server.port,
            model=server.model,
            scenario=scenario,
            seed=f"{plan.seed}/{round_number}/{num_streams}",
            num_streams=num_streams,
            max_tokens=plan.max_tokens,
            warm_up_s=plan.warm_up_s,
            window_s=plan.window_s,
            longest_window_s=plan.longest_window_s,
            drain_s=plan.drain_s,
            extra=dict(server.launch.extra),
        )
        observation, usage = watch_load(job, server.tree)
        load = load_of(observation)
        failure = None
        if not load.num_answers and not load.tokens_per_s:
            failure = load.first_error or f"no token in {load.window_s:.0f} s: {last_lines(log)}"
        return Cell(
            contestant=contestant.name,
            scenario=scenario,
            num_streams=num_streams,
            round_number=round_number,
            load=None if failure else asdict(load),
            cpu_s=usage.cpu_s,
            peak_memory_bytes=usage.peak_memory_bytes,
            foreign_cores=round(usage.foreign_cpu_s / load.window_s, 2),
            failure=failure,
        )

    def _add(self, cell: Cell) -> None:
        self._results.cells.append(cell)
        self._results.save(self._out)
        if cell.load is None:
            self._say(f"  {cell.contestant}, {cell.scenario}, {cell.num_streams} streams: {cell.failure}")
            return
        ttft_s = cell.load["ttft_p50_s"]
        self._say(
            f"  {cell.contestant}, {cell.scenario}, {cell.num_streams} streams: {cell.load['tokens_per_s']:.1f} tok/s, "
            f"first text after {'?' if ttft_s is None else f'{ttft_s:.2f}'} s, {cell.load['num_errors']} errors"
        )


def shell_line(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """What to type in the repository's root to start the same server; this machine's folders stay out of it."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settings, shlex.join(command)]).replace(str(Path.cwd()), "$PWD")


@dataclass(frozen=True)
class Usage:
    """What a server, and what everybody else, used while a window was open."""

    cpu_s: float
    foreign_cpu_s: float  # of neither the server nor the client
    peak_memory_bytes: int


def watch_load(job: Job, tree: ProcessTree) -> tuple[Observation, Usage]:
    """Run the client beside the server: what it saw, and what was used meanwhile.

    Raises:
        PeerError: the client itself failed.
    """
    command = [sys.executable, "-m", "loadtest.peers.client"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    is_over = threading.Event()
    memory = MemoryWatch(tree, is_over)
    memory.start()
    client_tree = ProcessTree(client.pid)
    marks: dict[str, tuple[float, float]] = {}  # (server, all but server and client), CPU seconds so far
    try:
        client.stdin.write(json.dumps(asdict(job)).encode())
        client.stdin.close()
        for line in client.stdout:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "observation":
                answers = [Answer(**answer) for answer in event.pop("answers")]
                cpu_s, foreign_cpu_s = (b - a for a, b in zip(marks["opened"], marks["closed"], strict=True))
                usage = Usage(cpu_s, max(foreign_cpu_s, 0.0), memory.peak_bytes)
                return Observation(**event, answers=answers), usage
            server_cpu_s = tree.cpu_s()
            marks[kind] = (server_cpu_s, tree.machine_cpu_s() - server_cpu_s - client_tree.cpu_s())
    finally:
        is_over.set()
        memory.join()
        client.kill()
        client.wait()
        client.stdout.close()
    raise PeerError("the load client ended without a result")


class MemoryWatch(threading.Thread):
    """Samples the memory of a server until told to stop."""

    def __init__(self, tree: ProcessTree, is_over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._tree = tree
        self._is_over = is_over

    def run(self) -> None:
        """Look now and then, and at least once."""
        while True:
            self.peak_bytes = max(self.peak_bytes, self._tree.memory_bytes())
            if self._is_over.wait(SAMPLE_S):
                return
