"""Ports for servers of tests that stop and start again."""

from __future__ import annotations

import contextlib
import random
import socket

RANGE = range(23_000, 30_000)
"""Below the ephemeral ports (proc(5), ip_local_port_range) and above those of Ray's workers (10002 to 19999,
22000 to 22999): no outgoing connection takes one while its server is down, nor a server that asked for any port."""


def free_ports(count: int) -> list[int]:
    """Different ports of RANGE that were free a moment ago."""
    found: list[int] = []
    for port in random.SystemRandom().sample(RANGE, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no port is free")


def free_port() -> int:
    """A port of RANGE that was free a moment ago."""
    return free_ports(1)[0]
