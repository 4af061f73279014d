"""Ports for servers of tests that stop and start again."""

from __future__ import annotations

import contextlib
import random
import socket

RANGE = range(12_000, 20_000)
"""Below the ephemeral ports (proc(5), ip_local_port_range) and those of Ray's workers: no outgoing connection takes
one while its server is down, nor another server that asked for any port."""


def free_port() -> int:
    """A port of RANGE that was free a moment ago."""
    for port in random.SystemRandom().sample(RANGE, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
