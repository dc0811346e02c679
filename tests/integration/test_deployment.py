"""The deployment on a real local Ray cluster, real HAProxy and real sockets, around a stub app without a model.

A server is this file run as a program (see the end), so that signals, exit statuses and left-over processes are real.
"""

import asyncio
import json
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

from service.deployment import _check_address, deploy_failure, serve_cluster
from service.ports import ServeError, check_port, free_ports
from service.ray_environment import write_haproxy_launcher
from service.replica import Replica, ReplicaStartError
from service.settings import Settings
from tests.support.processes import descendants, is_alive, listening_addresses, replicas, title

if TYPE_CHECKING:
    from fastapi import FastAPI

DEADLINE_S = 90.0
NEVER = {"gate": "/nonexistent", "left": "/dev/null"}  # a stream that nobody ends


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
        (self.port,) = free_ports(1)
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
        self.started = descendants(self.process)
        return self

    def wait_end(self) -> int:
        """Block until the server has ended; return its exit status."""
        out, self.stderr = self._popen.communicate(timeout=DEADLINE_S)
        self.stdout += out
        return self._popen.returncode

    def leftovers(self) -> list[psutil.Process]:
        """Processes the server started that still run."""
        return [process for process in self.started if is_alive(process)]

    def replica_pids(self) -> set[int]:
        """Process ids of its replicas."""
        return {each.pid for each in replicas(self.process)}

    def kill(self) -> None:
        """End whatever is left, however the test went."""
        self.started += descendants(self.process)
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
        shared.process.terminate()
        assert shared.wait_end() == 0


def wait_until(condition: Callable[[], object]) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        time.sleep(0.05)


# --- serving --------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_normal_start_prints_one_line(server: Server) -> None:
    """The operator sees where to connect, and nothing of Ray."""
    assert re.fullmatch(rf"attend: ready at {server.url} \(2 replicas\) in \d+\.\d s\n", server.stdout)


@pytest.mark.ray
def test_ray_starts_nothing_that_serving_does_not_use(server: Server) -> None:
    """No dashboard, no autoscaler, no log collector, no agents: a start waits for none of them."""
    commands = [" ".join(process.cmdline()) for process in descendants(server.process)]
    assert any("raylet" in command for command in commands)
    unused = ["dashboard/", "DashboardAgent", "autoscaler/_private/monitor.py", "log_monitor.py"]
    unused += ["runtime_env/agent", "RuntimeEnvAgent"]
    assert [command for command in commands if any(name in command for name in unused)] == []


@pytest.mark.ray
def test_requests_reach_every_replica(server: Server) -> None:
    """HAProxy spreads requests over the copies."""
    seen: set[int] = set()
    deadline = time.monotonic() + DEADLINE_S
    while seen != server.replica_pids() and time.monotonic() < deadline:
        seen.add(int(httpx.get(f"{server.url}/pid").text))
    assert seen == server.replica_pids()


@pytest.mark.ray
def test_stream_arrives_chunk_by_chunk(server: Server, tmp_path: Path) -> None:
    """HAProxy passes the first event on before the second exists."""
    gate = tmp_path / "gate"
    with httpx.stream("GET", f"{server.url}/stream", params={"gate": str(gate), "left": "/dev/null"}) as response:
        lines = response.iter_lines()
        assert next(lines) == "data: first"
        gate.touch()
        assert [line for line in lines if line] == ["data: last"]


@pytest.mark.ray
def test_leaving_client_ends_its_request_in_the_replica(server: Server, tmp_path: Path) -> None:
    """A connection closed at HAProxy cancels the stream behind it."""
    left = tmp_path / "left"
    params = {"gate": str(tmp_path / "gate"), "left": str(left)}
    with httpx.stream("GET", f"{server.url}/stream", params=params) as response:
        assert next(response.iter_lines()) == "data: first"
    wait_until(left.exists)


@pytest.mark.ray
def test_every_replica_is_a_metrics_target(server: Server) -> None:
    """Prometheus finds each copy under its own port."""
    targets = httpx.get(f"{server.url}/metrics/targets").json()
    pids = {int(httpx.get(f"http://{target}/pid").text) for target in targets}
    assert pids == server.replica_pids()


@pytest.mark.ray
def test_listens_on_its_host_only(server: Server) -> None:
    """No port is open to the network, except the actors' gRPC, which asks for the cluster's token."""
    open_processes = {
        title(process)
        for process in descendants(server.process)
        if any(not address.endswith("127.0.0.1") for address in listening_addresses(process))
    }
    assert {name for name in open_processes if "ServeReplica" not in name} == set()


@pytest.mark.ray
def test_killed_replica_is_replaced(server: Server) -> None:
    """Requests go on at the other copy, and a new one takes the dead one's place."""
    before = server.replica_pids()
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(server.replica_pids()) == 2 and min(before) not in server.replica_pids())
    assert httpx.get(f"{server.url}/pid", timeout=DEADLINE_S).status_code == 200
    wait_until(lambda: len(httpx.get(f"{server.url}/metrics/targets").json()) == 2)


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_drain_finishes_streams_and_refuses_requests(tmp_path: Path) -> None:
    """SIGTERM lets a running stream end, answers new requests 503, and leaves no process and no file."""
    gate = tmp_path / "gate"
    with running_server() as server:
        directory = Path(f"/proc/{server.wait_ready().process.pid}/fd/1").readlink().parent  # of its own log
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


@pytest.mark.ray
def test_drain_timeout_ends_streams_with_their_last_event() -> None:
    """A stream longer than the drain gets the engine's error, not a cut connection."""
    with running_server(drain_timeout_s=0.5) as server:
        with httpx.stream("GET", f"{server.wait_ready().url}/stream", params=NEVER) as response:
            lines = response.iter_lines()
            assert next(lines) == "data: first"
            server.process.send_signal(signal.SIGINT)
            assert [line for line in lines if line] == ["data: error"]
        assert server.wait_end() == 0
        assert server.leftovers() == []


@pytest.mark.ray
def test_second_signal_stops_at_once() -> None:
    """An endless stream does not hold the server: it ends with the second signal's status, and no process stays."""
    with running_server() as server:
        with httpx.stream("GET", f"{server.wait_ready().url}/stream", params=NEVER) as response:
            assert next(response.iter_lines()) == "data: first"
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: httpx.get(f"{server.url}/pid").status_code == 503)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_end() == 128 + signal.SIGTERM
        assert server.leftovers() == []
        assert server.stderr == ""


# --- failing to start -----------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_replica_that_cannot_start_ends_the_server() -> None:
    """The builder's own message, in one line, status 1, and no process left."""
    with running_server(bundle="broken") as server:
        assert server.wait_end() == 1
        assert server.stderr == "attend: a replica cannot start: no bundle at broken; make one with `attend export`\n"
        assert server.stdout == ""


def test_builders_message_survives_rays_report() -> None:
    """It is found in the middle of a traceback, without its line breaks."""
    error = ReplicaStartError(ValueError("no ä\n here"))
    report = f"Error:\nTraceback:\n  File x\nReplicaStartError: {error}\n\n"
    failure = deploy_failure(report)
    assert str(failure) == "a replica cannot start: no ä here"
    assert not failure.is_unexpected


def test_other_failures_keep_rays_last_line_and_its_logs() -> None:
    """What the builder did not say, Ray's report says last."""
    failure = deploy_failure("Traceback:\n  File x\nModuleNotFoundError: No module named 'x'\n\n")
    assert str(failure) == "a replica cannot start: ModuleNotFoundError: No module named 'x'"
    assert failure.is_unexpected


def test_engine_that_does_not_start_fails_the_health_check() -> None:
    """Ray only says that the lifespan failed; the check after it says why."""
    replica = Replica(Settings(bundle=Path("broken-engine")), build_stub_app, list)
    app = replica.__serve_build_asgi_app__()

    async def start() -> None:
        async with app.router.lifespan_context(app):
            await replica.check_health()

    with pytest.raises(ReplicaStartError, match="the engine finds no memory"):
        asyncio.run(start())


def test_drain_waits_for_responses_not_yet_sent() -> None:
    """The engine is done with a request before its client has the last bytes."""
    replica = Replica(Settings(), build_stub_app, list)
    app = replica.__serve_build_asgi_app__()
    num_open = []

    async def receive() -> dict[str, str]:
        return {"type": "http.request"}

    async def send(_message: Any) -> None:
        num_open.append(await replica.drain())

    scope = {"type": "http", "method": "GET", "path": "/pid", "headers": [], "query_string": b"", "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    assert num_open == [1, 1]
    assert asyncio.run(replica.drain()) == 0


def test_haproxy_listens_where_told_and_refuses_with_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher edits the lines of Ray Serve's template that have no setting, and runs HAProxy."""
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/echo")
    config = tmp_path / "haproxy.cfg"
    config.write_text("frontend a\n    bind :9101\nlisten b\n  bind *:8404\n    errorfile 503 /x/500.http\n")
    launcher = write_haproxy_launcher(tmp_path, "127.0.0.7")
    output = subprocess.run([launcher, "-db", "-f", config, "-dR"], capture_output=True, text=True, check=True).stdout
    assert output == f"-db -f {config} -dR\n"
    bound = "frontend a\n    bind 127.0.0.7:9101\nlisten b\n  bind 127.0.0.7:8404\n"
    assert config.read_text() == f"{bound}    errorfile 503 {tmp_path}/unavailable.http\n"
    head, body = (tmp_path / "unavailable.http").read_text().split("\n\n")
    assert head.splitlines()[0] == "HTTP/1.1 503 Service Unavailable"
    assert "Retry-After: 5" in head.splitlines()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "http://host:80"])
def test_address_of_another_kind_is_refused(address: str) -> None:
    """Ray's client protocol cannot deploy from here."""
    with pytest.raises(ServeError, match=f"RAY_ADDRESS={address} is not `host:port` or `auto`"):
        _check_address(address)


def test_address_without_a_cluster_is_refused() -> None:
    """Ray itself would wait without an end."""
    (port,) = free_ports(1)
    with pytest.raises(ServeError, match=f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}"):
        _check_address(f"127.0.0.1:{port}")


def test_taken_port_is_reported_before_ray_starts() -> None:
    """One line says which port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use; choose another with --port"):
            check_port("127.0.0.1", port)


def test_address_of_another_machine_is_refused() -> None:
    """One line says what was asked and what to change."""
    with pytest.raises(ServeError, match=r"cannot listen on 192.0.2.77:8000 \(.*\); choose others with --host, --port"):
        check_port("192.0.2.77", 8000)


if __name__ == "__main__":
    sys.exit(serve_cluster(Settings(), build=build_stub_app))
