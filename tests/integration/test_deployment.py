"""The deployment on a real local Ray cluster, real HAProxy and real sockets, around a stub app without a model.

Each server is this file run as a program (see the end), so that signals, exit statuses and left-over processes are real.
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from service.deployment import (
    Replica,
    ReplicaStartError,
    ServeError,
    _check_port,
    _deploy_failure,
    _free_ports,
    _write_haproxy_launcher,
    serve_cluster,
)
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

DEADLINE_S = 60.0
pytestmark = pytest.mark.timeout(120)


# --- the stub app ---------------------------------------------------------------------------------------------------


def build_stub_app(settings: Settings) -> "FastAPI":
    """An app with the runtime's interface, and streams whose end the test decides."""
    import os

    from fastapi import FastAPI, Response
    from fastapi.responses import StreamingResponse

    class StubRuntime:
        """Counts streams; refuses when draining; is as healthy as told."""

        def __init__(self) -> None:
            self.num_streams = self.num_left = 0
            self.is_draining = self.is_dead = self.is_stopped = False

        def begin_drain(self) -> None:
            self.is_draining = True

        def num_in_flight(self) -> int:
            return self.num_streams

        def check_health(self) -> None:
            if self.is_dead:
                raise RuntimeError("the engine is dead")

    runtime = StubRuntime()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if settings.bundle == Path("broken-engine"):
            raise OSError("the engine finds no memory")
        yield
        runtime.is_stopped = True

    if settings.bundle == Path("broken"):
        raise ValueError("no bundle at broken;\nmake one with `attend export`")
    app = FastAPI(lifespan=lifespan)
    app.state.runtime = runtime

    @app.get("/pid")
    async def pid() -> Response:
        if runtime.is_draining:
            return Response("draining", 503, {"Retry-After": "7"})
        return Response(str(os.getpid()))

    @app.get("/stream")
    async def stream(gate: Path, left: Path) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            runtime.num_streams += 1
            try:
                yield b"data: first\n\n"
                while not gate.exists() and not runtime.is_stopped:
                    await asyncio.sleep(0.02)
                yield b"data: last\n\n" if gate.exists() else b"data: error\n\n"
            except asyncio.CancelledError:
                left.touch()
                raise
            finally:
                runtime.num_streams -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/kill-engine")
    async def kill_engine() -> None:
        runtime.is_dead = True

    @app.get("/metrics/targets")
    def metrics_targets() -> list[str]:
        targets: list[str] = app.state.metrics_targets()
        return targets

    return app


# --- running servers ------------------------------------------------------------------------------------------------


class Server:
    """`serve_cluster` in a process of its own, and what it left behind."""

    def __init__(self, *, bundle: str = "", replicas: int = 1, drain_timeout_s: float = 30.0) -> None:
        (self.port,) = _free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ATTEND_"))}
        environment |= {"ATTEND_PORT": str(self.port), "ATTEND_REPLICAS": str(replicas), "ATTEND_BUNDLE": bundle}
        environment |= {"ATTEND_DRAIN_TIMEOUT_S": str(drain_timeout_s), "PYTHONPATH": os.pathsep.join(sys.path)}
        self._popen = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.process = psutil.Process(self._popen.pid)
        self.started: list[psutil.Process] = []
        self.stdout = self.stderr = ""

    def wait_ready(self) -> "Server":
        """Block until the ready line; then note every process the server has started."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, self._popen.communicate(timeout=DEADLINE_S)
        self.stdout += line
        self.started = self.process.children(recursive=True)
        return self

    def wait_end(self) -> int:
        """Block until the server has ended; return its exit status."""
        out, self.stderr = self._popen.communicate(timeout=DEADLINE_S)
        self.stdout += out
        return self._popen.returncode

    def leftovers(self) -> list[psutil.Process]:
        """Processes the server started that still run."""
        return [process for process in self.started if process.is_running() and process.status() != "zombie"]

    def replica_pids(self) -> set[int]:
        """Process ids of its replicas."""
        return {each.pid for each in self.process.children(recursive=True) if "ServeReplica" in each.name()}

    def kill(self) -> None:
        """End whatever is left, however the test went."""
        self.started += self.process.children(recursive=True) if self.process.is_running() else []
        self._popen.kill()
        for process in self.leftovers():
            process.kill()
        self._popen.communicate(timeout=DEADLINE_S)


@contextmanager
def running_server(**options: Any) -> Iterator[Server]:
    """A server that is gone afterwards."""
    server = Server(**options)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two replicas, shared by the tests that leave them as they were."""
    with running_server(replicas=2) as shared:
        yield shared.wait_ready()


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)


def answers(url: str) -> httpx.Response | None:
    """A response, whichever; None while nobody accepts the connection."""
    try:
        return httpx.get(url, timeout=DEADLINE_S)
    except httpx.TransportError:
        return None


# --- serving --------------------------------------------------------------------------------------------------------


def test_normal_start_prints_one_line(server: Server) -> None:
    """The operator sees where to connect, and nothing of Ray."""
    assert server.stdout == f"attend: ready at {server.url} (2 replicas)\n"


def test_requests_reach_every_replica(server: Server) -> None:
    """HAProxy spreads requests over the copies."""
    seen: set[int] = set()
    wait_until(lambda: seen.add(int(httpx.get(f"{server.url}/pid").text)) or len(seen) == 2)
    assert seen == server.replica_pids()


def test_stream_arrives_chunk_by_chunk(server: Server, tmp_path: Path) -> None:
    """HAProxy passes the first event on before the second exists."""
    gate = tmp_path / "gate"
    with httpx.stream("GET", f"{server.url}/stream", params={"gate": str(gate), "left": "/dev/null"}) as response:
        lines = response.iter_lines()
        assert next(lines) == "data: first"
        gate.touch()
        assert [line for line in lines if line] == ["data: last"]


def test_leaving_client_ends_its_request_in_the_replica(server: Server, tmp_path: Path) -> None:
    """A connection closed at HAProxy cancels the stream behind it."""
    left = tmp_path / "left"
    params = {"gate": str(tmp_path / "gate"), "left": str(left)}
    with httpx.stream("GET", f"{server.url}/stream", params=params) as response:
        assert next(response.iter_lines()) == "data: first"
    wait_until(left.exists)


def test_every_replica_is_a_metrics_target(server: Server) -> None:
    """Prometheus finds each copy under its own port."""
    targets = httpx.get(f"{server.url}/metrics/targets").json()
    pids = {int(httpx.get(f"http://{target}/pid").text) for target in targets}
    assert pids == server.replica_pids()


def test_listens_on_its_host_only(server: Server) -> None:
    """No port is open to the network, except the actors' gRPC, which asks for the cluster's token."""
    open_ports = {
        process.name(): connection.laddr
        for process in server.process.children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith("127.0.0.1")
    }
    assert {name for name in open_ports if "ServeReplica" not in name} == set()


def test_killed_replica_is_replaced(server: Server) -> None:
    """Requests go on at the other copy, and a new one takes the dead one's place."""
    before = server.replica_pids()
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(server.replica_pids()) == 2 and min(before) not in server.replica_pids())
    assert httpx.get(f"{server.url}/pid", timeout=DEADLINE_S).status_code == 200
    wait_until(lambda: len(httpx.get(f"{server.url}/metrics/targets").json()) == 2)


# --- stopping -------------------------------------------------------------------------------------------------------


def test_drain_finishes_streams_and_refuses_requests(tmp_path: Path) -> None:
    """SIGTERM lets a running stream end, answers new requests 503, and leaves no process and no file."""
    gate = tmp_path / "gate"
    with running_server() as server:
        directory = Path(open_files_directory(server.wait_ready()))
        with httpx.stream("GET", f"{server.url}/stream", params={"gate": str(gate), "left": "/dev/null"}) as response:
            lines = response.iter_lines()
            assert next(lines) == "data: first"
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{server.url}/pid").status_code == 503)
            assert httpx.get(f"{server.url}/pid").headers["retry-after"] == "7"
            gate.touch()
            assert [line for line in lines if line] == ["data: last"]
        assert server.wait_end() == 0
        assert server.leftovers() == []
        assert not directory.exists()
        assert server.stderr == ""


def open_files_directory(server: Server) -> str:
    """The server's own folder: where its output goes."""
    return str(Path(os.readlink(f"/proc/{server.process.pid}/fd/1")).parent)


def test_drain_timeout_ends_streams_with_their_last_event() -> None:
    """A stream longer than the drain gets the engine's error, not a cut connection."""
    with running_server(drain_timeout_s=0.5) as server:
        params = {"gate": "/nonexistent", "left": "/dev/null"}
        with httpx.stream("GET", f"{server.wait_ready().url}/stream", params=params) as response:
            lines = response.iter_lines()
            assert next(lines) == "data: first"
            server.process.send_signal(signal.SIGINT)
            assert [line for line in lines if line] == ["data: error"]
        assert server.wait_end() == 0
        assert server.leftovers() == []


def test_second_signal_stops_at_once() -> None:
    """An endless stream does not hold the server: it ends with the second signal's status, and no process stays."""
    with running_server() as server:
        params = {"gate": "/nonexistent", "left": "/dev/null"}
        with httpx.stream("GET", f"{server.wait_ready().url}/stream", params=params) as response:
            assert next(response.iter_lines()) == "data: first"
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: httpx.get(f"{server.url}/pid").status_code == 503)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_end() == 128 + signal.SIGTERM
        assert server.leftovers() == []
        assert server.stderr == ""


# --- failing to start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ("broken", "no bundle at broken; make one with `attend export`"),
        ("broken-engine", "the engine finds no memory"),
    ],
)
def test_replica_that_cannot_start_ends_the_server(bundle: str, message: str) -> None:
    """The builder's own message, in one line, status 1, and no process left."""
    with running_server(bundle=bundle) as server:
        assert server.wait_end() == 1
        assert server.stderr == f"attend: a replica cannot start: {message}\n"
        assert server.stdout == ""


def test_taken_port_is_reported_before_ray_starts() -> None:
    """One line says which port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            _check_port("127.0.0.1", port)


if __name__ == "__main__":
    sys.exit(serve_cluster(Settings(), build=build_stub_app))
