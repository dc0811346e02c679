"""A real `attend serve` in its own process: started, waited for, stopped, its output kept."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READY = re.compile(r"^attend: ready at (http://\S+)", re.MULTILINE)
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


def attend_command(*arguments: str | Path) -> list[str]:
    """The `attend` command of this environment."""
    return [str(Path(sys.executable).with_name("attend")), *map(str, arguments)]


def free_port() -> int:
    """A TCP port on the loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What it has printed so far, both streams."""
        return "".join(self.lines)

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the server's own process."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(timeout=STOP_TIMEOUT_S)


@contextmanager
def running_server(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Server]:
    """Start `attend serve …` on a free port; yield once it says that it is ready; stop it at the end."""
    command = attend_command("serve", "--port", str(free_port()), *arguments)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd)
    server = Server(process)
    reader = threading.Thread(target=_read_lines, args=(server,), daemon=True)
    reader.start()
    try:
        server.url = _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=5)
        if process.stdout is not None:
            process.stdout.close()


def run_attend(*arguments: str | Path, stdin: str = "", timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run an `attend` command to its end."""
    command: Sequence[str] = attend_command(*arguments)
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)


def _read_lines(server: Server) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.lines.append(line)


def _wait_until_ready(server: Server) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if match := READY.search(server.output):
            return match.group(1)
        if server.process.poll() is not None:
            raise AssertionError(f"attend serve ended with {server.process.returncode}:\n{server.output}")
        time.sleep(0.05)
    raise AssertionError(f"attend serve was not ready after {START_TIMEOUT_S:.0f} s:\n{server.output}")
