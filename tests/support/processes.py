"""Looking at processes that may end while they are looked at."""

from contextlib import suppress

import psutil


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Every process below one; none if it has ended itself."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def title(process: psutil.Process) -> str:
    """The command line as the process shows it; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def replicas(process: psutil.Process) -> list[psutil.Process]:
    """The Ray Serve replicas below a server's process."""
    return [child for child in descendants(process) if "ServeReplica" in title(child)]


def listening_addresses(process: psutil.Process) -> list[str]:
    """The addresses on which a process accepts TCP connections; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return []


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and is not yet reaped does not."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
