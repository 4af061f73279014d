"""TCP ports: which are free, who listens."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

import psutil


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """True where nobody listens on `host:port`.

    SO_REUSEADDR as the servers themselves set it: a connection in TIME_WAIT does not count as a listener.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def answers(port: int, host: str = "127.0.0.1", timeout_s: float = 1.0) -> bool:
    """True where somebody accepts a connection on `host:port`."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def pick_free(count: int) -> list[int]:
    """`count` different ports that were free a moment ago, held together until all are found."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _ in range(count):
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
    return ports


@dataclass(frozen=True)
class Listener:
    """One listening socket and the process behind it, where the system tells."""

    address: str
    port: int
    pid: int | None
    process: str


def listeners(ports: set[int] | None = None, pids: set[int] | None = None) -> list[Listener]:
    """Who listens on this machine, limited to `ports` or `pids` where given."""
    found: list[Listener] = []
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        address, port = connection.laddr[0], connection.laddr[1]
        if ports is not None and port not in ports:
            continue
        if pids is not None and connection.pid not in pids:
            continue
        name = ""
        if connection.pid:
            with contextlib.suppress(psutil.Error):
                name = psutil.Process(connection.pid).name()
        found.append(Listener(str(address), int(port), connection.pid, name))
    return sorted(found, key=lambda listener: listener.port)
