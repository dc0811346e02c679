"""Ports: whether this process may listen where it is told to, and which ports are free.

Separate because both servers, with Ray and without, refuse a port in use before they spend seconds on loading.
"""

import errno
import socket

from model.errors import UserError


class ServeError(UserError):
    """Serving cannot start or cannot go on. The message is one line for the operator.

    `is_unexpected`: the message is Ray's, not ours, so its logs are kept and named.
    """

    def __init__(self, message: str, *, is_unexpected: bool = False) -> None:
        super().__init__(message)
        self.is_unexpected = is_unexpected


def base_url(host: str, port: int) -> str:
    """The address at which clients reach a service that listens on `host:port`."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def check_port(host: str, port: int) -> None:
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
