"""Ray Serve deployment: replicas behind HAProxy, started, drained and stopped as one.

The only module that imports ray. Ray Serve reads its switches from the environment at its first import, so ray is
imported inside functions, after `service/ray_environment.py` is in place; importing this module changes nothing.

A request's way: HAProxy on `settings.host:settings.port` -> a replica's own HTTP server -> the FastAPI app of that
replica. The driver (the process that calls `serve_cluster`) is on no request's way: it starts, watches, drains, stops.
"""

import importlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from model.processors import usable_cores
from service.ports import ServeError, base_url, check_port
from service.processes import StopSignals, adopt_orphans, descendants, end_leftovers, in_background, output_to
from service.ray_environment import HAPROXY_PATH_VARIABLE, local_environment, serve_environment
from service.replica import AppBuilder, Replica
from service.reservation import cores_each, replica_threads
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

APP_NAME = "attend"
ADMIN_REQUESTS = 256  # room above rows and queue for /health, /metrics and the requests about to be answered 429
STOP_GRACE_S = 5.0  # what processes and last events get to end by themselves before they are cut
HEALTH_CHECK_PERIOD_S = 5.0  # Ray Serve replaces a replica after three failures in a row
START_POLL_S = 0.05
OBJECT_STORE_BYTES = 80 << 20  # nothing goes through it; Ray's minimum is 75 MiB
START_ERROR = re.compile(r"attend-start-error: (\{.*\})")
AGENT_PORT_NAMES = (
    "METRICS_AGENT_PORT_NAME",
    "METRICS_EXPORT_PORT_NAME",
    "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)
AGENT_COMMAND = re.compile(r"^(--(?:dashboard|runtime_env)_agent_command)=.*", re.DOTALL)
WILDCARD_HOSTS = ("0.0.0.0", "::")


def build_default_app(settings: Settings) -> "FastAPI":
    """Build the service's own app, its metrics labelled with the replica's rank, which a replacement inherits."""
    from ray import serve

    from service.app import build_app  # here, because only a replica needs the engine and its dependencies

    replica = str(serve.get_replica_context().rank.rank)
    threads = replica_threads(settings.threads, _reserved_cores(), usable_cores())
    settings = settings.model_copy(update={"threads": threads})
    return build_app(settings, replica, returns_request_id=False)  # Ray Serve wraps the app in its own


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


def application(settings: Settings) -> "Application":
    """Build the application that a Serve configuration names, as `import_path: service.deployment:application`.

    For clusters that others start (KubeRay's RayService): `args` are the settings, `deployments` may override them.
    Nobody knows the nodes yet, so that a replica reserves one core unless `threads` or `num_cpus` says more.
    """
    return _application(settings, build_default_app, {"num_cpus": settings.threads or 1})


def _reserved_cores() -> float:
    """Cores that this replica has reserved; 0 on a cluster of our own."""
    import ray

    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def _cores_to_reserve(settings: Settings) -> int:
    """Cores of a shared cluster that each replica reserves: its threads, or its share."""
    import ray

    node_cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    num_free = ray.available_resources().get("CPU", 0.0)
    return settings.threads or cores_each(node_cores, num_free, settings.replicas)


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
    return deployment.bind(settings, build, replica_metrics_targets)


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
        return base_url(self._settings.host, self._settings.port)

    @property
    def size(self) -> str:
        """Number of replicas, in words."""
        return f"{self._settings.replicas} replica{'s' if self._settings.replicas > 1 else ''}"

    def start(self, build: AppBuilder, signals: StopSignals) -> None:
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
            serve_started = self._start_serve()
        except SystemExit as error:  # from the handler of SIGTERM that ray.init installs
            signals.last = signal.SIGTERM
            raise KeyboardInterrupt from error
        except (OSError, RuntimeError, RayError) as error:
            raise ServeError(f"Ray cannot start: {_last_line(str(error))}", is_unexpected=True) from error
        self._deploy(build, serve_started)

    def _environment(self) -> dict[str, str]:
        """Put the switches in place, but for those that the operator has set; return them as they now are."""
        if self._address:
            switches = serve_environment(num_threads=4)
        else:
            switches = local_environment(self.directory, self._settings.host)
        for name, value in switches.items():
            if name not in os.environ or name == HAPROXY_PATH_VARIABLE:  # the launcher runs the HAProxy set there
                os.environ[name] = value
        return {name: os.environ[name] for name in switches}

    def _connect(self, environment: dict[str, str]) -> None:
        import ray

        # takes as long as Ray's own processes do, most of which is waiting for them
        in_background(lambda: importlib.import_module("ray.serve"))
        options: dict[str, Any] = {
            "address": "local",
            # Reserved by nobody, so as many replicas start as are asked for; this many workers start before they are
            # asked for: controller, fallback proxy, HAProxy's manager, replicas.
            "num_cpus": 3 + self._settings.replicas,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(self.directory),
        }
        if self._address:
            _check_address(self._address)
            options = {"address": self._address, "runtime_env": {"env_vars": environment}}
        else:
            _leave_out_unused_processes()
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

    def _start_serve(self) -> "Future[None]":
        """Begin to start Serve; return once its controller takes applications.

        Its proxies go on starting meanwhile: on few cores they take as long as a replica does.
        """
        from ray import serve

        host = self._settings.host
        if not self._address and host not in WILDCARD_HOSTS:
            host = "127.0.0.1"  # the replicas' host; HAProxy's listeners are bound to settings.host by the launcher
        http = {"host": host, "port": self._settings.port}
        options = {"proxy_location": "EveryNode", "http_options": http, "logging_config": {"enable_access_log": False}}
        started = in_background(lambda: serve.start(**options))
        while not started.done() and not _is_serve_running():
            time.sleep(START_POLL_S)
        if started.done():
            started.result()
        return started

    def _deploy(self, build: AppBuilder, serve_started: "Future[None]") -> None:
        from ray import serve

        try:
            num_cpus = _cores_to_reserve(self._settings) if self._address else 0
            app = _application(self._settings, build, {"num_cpus": num_cpus, "num_gpus": self._num_gpus})
            self._handle = serve.run(app, name=APP_NAME, route_prefix="/")
            serve_started.result()
        except (OSError, RuntimeError) as error:
            application = serve.status().applications.get(APP_NAME)
            reports = [each.message for each in application.deployments.values()] if application else []
            raise deploy_failure("\n".join([str(error), *reports])) from error

    def wait(self) -> None:
        """Block until a signal (KeyboardInterrupt).

        Raises:
            ServeError: a process of Ray's that does not come back has ended.
        """
        while True:
            time.sleep(1.0)
            if not self._address and not {"gcs_server", "raylet"} <= set(descendants().values()):
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


def _leave_out_unused_processes() -> None:
    """Keep `ray.init` from starting what nothing here uses: dashboard, autoscaler, log collector, both agents.

    They take a third of the start's processor time, and Ray waits for the agents. There is no public switch; where a
    release of Ray has other names for these, it starts them all.
    """
    from ray._private import parameter, services, utils
    from ray._private.node import Node

    names: Any = importlib.import_module("ray._raylet")  # compiled, without types

    class LeanParams(parameter.RayParams):  # type: ignore[misc]  # Ray ships no types for it
        def __init__(self, **values: Any) -> None:
            super().__init__(**values)
            self.no_monitor, self.include_log_monitor = True, False

    def start_no_dashboard(node: Any, **_options: Any) -> None:
        node._webui_url = None  # noqa: SLF001 - as Ray's own method does

    start_process = services.start_ray_process

    def start_without_agents(command: list[str], process_type: str, *args: Any, **options: Any) -> Any:
        if process_type == "raylet":
            told = dict(argument.split("=", 1) for argument in command if "=" in argument)
            for name in AGENT_PORT_NAMES:  # as Ray's minimal agent does for "not in use"
                names.persist_port(told["--session_dir"], told["--node_id"], getattr(names, name), -1)
            command = [AGENT_COMMAND.sub(r"\1=sleep infinity", argument) for argument in command]
        return start_process(command, process_type, *args, **options)

    if hasattr(Node, "start_api_server"):
        parameter.RayParams = LeanParams
        Node.start_api_server = start_no_dashboard
    # imports what only the agent needs, to find out whether it may start whole
    if hasattr(utils, "get_dashboard_dependency_error"):
        utils.get_dashboard_dependency_error = lambda: None
    if hasattr(names, "persist_port") and all(hasattr(names, name) for name in AGENT_PORT_NAMES):
        services.start_ray_process = start_without_agents


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


def deploy_failure(report: str) -> ServeError:
    """Make one line of Ray Serve's report: the builder's own message, else the report's last line."""
    if found := START_ERROR.search(report):
        return ServeError(f"a replica cannot start: {json.loads(found.group(1))['message']}")
    return ServeError(f"a replica cannot start: {_last_line(report)}", is_unexpected=True)


def _last_line(text: str) -> str:
    """Last line that is not blank: in a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def serve_cluster(
    settings: Settings,
    *,
    build: AppBuilder = build_default_app,
    num_gpus: float = 0.0,
    started_s: float | None = None,
) -> int:
    """Serve `settings.replicas` copies of the app behind HAProxy until SIGTERM or Ctrl-C; return the exit status.

    The first signal drains: new requests get 503, running ones finish. A second one stops at once. Everything started
    here has ended when this returns. Works once per process: Ray Serve keeps the environment of its first import.

    Args:
        settings: what to serve, where, and how many copies.
        build: makes the app, in the replica; must be picklable (a function of an importable module is).
        num_gpus: GPUs that each replica reserves; a fraction shares one.
        started_s: monotonic seconds when the start began, for the ready line; by default now.

    Returns:
        0 after a drain, 1 when serving could not start or go on (one line on stderr says why), 128 + the signal's
        number when stopped at once.
    """
    try:
        if sys.platform != "linux":
            raise ServeError(f"HAProxy mode needs Linux, this is {sys.platform}; use --standalone")
        check_port(settings.host, settings.port)
    except ServeError as error:
        print(f"attend: {error}", file=sys.stderr)
        return 1
    # Ray's and HAProxy's Unix sockets lie 80 bytes deeper, and their paths end at 107.
    parent = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 10 else "/tmp"  # noqa: S108 - a private folder in it
    directory = Path(tempfile.mkdtemp(prefix="attend-", dir=parent))
    started_s = time.monotonic() if started_s is None else started_s
    status, has_news = _run(_Cluster(settings, directory, num_gpus=num_gpus), build, started_s)
    if not has_news:
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _run(cluster: "_Cluster", build: AppBuilder, started_s: float) -> tuple[int, bool]:
    """Run a cluster from start to end; return the exit status and whether its logs are worth keeping."""
    foreign = set(descendants())
    adopt_orphans()
    signals = StopSignals()
    with output_to(cluster.directory / "driver.log") as (out, err):
        try:
            signals.install()
            _serve(cluster, build, signals, out, started_s)
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
            end_leftovers(foreign, STOP_GRACE_S if status == 0 else 0.0)
            signals.restore()
    return status, has_news


def _serve(cluster: "_Cluster", build: AppBuilder, signals: "StopSignals", out: TextIO, started_s: float) -> None:
    """Start, announce, wait for the first signal, drain, stop; a signal in any other phase interrupts it."""
    cluster.start(build, signals)
    try:
        duration_s = time.monotonic() - started_s
        print(f"attend: ready at {cluster.url} ({cluster.size}) in {duration_s:.1f} s", file=out, flush=True)
        cluster.wait()
    except KeyboardInterrupt:
        print("attend: stopping when running requests have finished; Ctrl-C again stops at once", file=out, flush=True)
    cluster.drain()
    cluster.stop_serve()
