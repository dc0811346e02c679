"""Start one server, wait until it answers, and stop it whatever happens in between."""

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.peers.contestants import Contestant, Launch, Place
from loadtest.peers.installation import PeerError
from loadtest.peers.process_tree import ProcessTree
from service.ports import free_ports

POLL_S = 0.5
REQUEST_TIMEOUT_S = 600.0
LOG_LINES = 4
WARM_UP_PROMPT = "A warm-up that no scenario repeats: the old mill stood where two brooks met, and"


@dataclass(frozen=True)
class RunningServer:
    """A server that answers."""

    port: int
    model: str
    launch: Launch
    tree: ProcessTree
    start_s: float  # from the command to the first healthy answer

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """One request that is not timed: status and body."""
        return _request(self.port, method, path, body)


@contextmanager
def running_server(
    contestant: Contestant, num_threads: int, num_streams: int, log: Path, timeout_s: float
) -> Iterator[RunningServer]:
    """Start, wait, warm up; on leaving, stop the server and everything it started.

    Raises:
        PeerError: it ended, or did not become healthy in time; the message holds its log's last lines.
    """
    (port,) = free_ports(1)
    launch = contestant.launch(Place(port, num_threads, num_streams))
    started_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            launch.command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(launch),
            start_new_session=True,
        )
    tree = ProcessTree(process.pid)
    try:
        _wait(process, tree, launch, port, started_s + timeout_s, log)
        server = RunningServer(port, launch.model or _first_model(port), launch, tree, time.monotonic() - started_s)
        _warm_up(server, log)
        yield server
    finally:
        tree.stop()
        process.wait()


def _environment(launch: Launch) -> dict[str, str]:
    """Ours without Attend's own settings, which would make the run another than the one its command line says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTEND_")}
    return {**inherited, **launch.environment}


def _wait(
    process: "subprocess.Popen[bytes]", tree: ProcessTree, launch: Launch, port: int, deadline_s: float, log: Path
) -> None:
    while time.monotonic() < deadline_s:
        tree.refresh()
        if process.poll() is not None:
            raise PeerError(f"ended with status {process.returncode} while starting: {last_lines(log)}")
        try:
            if _request(port, "GET", launch.health_path)[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(POLL_S)
    raise PeerError(f"not healthy in time: {last_lines(log)}")


def _warm_up(server: RunningServer, log: Path) -> None:
    """A short and a long request, unmeasured: caches filled, lazy set-up done. Also proves that it answers."""
    for prompt in (WARM_UP_PROMPT, " ".join([WARM_UP_PROMPT] * 20)):
        body = {"model": server.model, "prompt": prompt, "max_tokens": 32, "temperature": 0, "stream": True}
        try:
            status, reply = server.request("POST", "/v1/completions", {**body, **server.launch.extra})
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(f"no answer to a first request: {error}; {last_lines(log)}") from None
        if status != 200 or b"data:" not in reply:
            raise PeerError(f"a first request got HTTP {status}: {reply[:300].decode(errors='replace')}")


def _first_model(port: int) -> str:
    return str(json.loads(_request(port, "GET", "/v1/models")[1])["data"][0]["id"])


def _request(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def last_lines(log: Path) -> str:
    """The end of a server's log on one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(line[:200] for line in lines[-LOG_LINES:]) or "its log is empty"
