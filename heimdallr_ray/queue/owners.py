"""Names of lease holders: host, process, and whether that process is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from heimdallr_ray.ids import new_id

_HOST_LIMIT = 32
"""An owner has 64 characters in the catalog; its process number must not be cut off."""


def _host() -> str:
    return socket.gethostname()[:_HOST_LIMIT].replace("/", "-")


def owner_name() -> str:
    """`host/process/nonce` of this process; a worker thread adds its number."""
    return f"{_host()}/{os.getpid()}/{new_id()[:8]}"


def is_dead_here(owner: str) -> bool:
    """True only where `owner` is a process of this host that does not exist any more.

    False for other hosts, for names of another form, and where the number belongs to another process by now: those
    leases run out by themselves. Hosts that share a name must not share a queue through this function.
    """
    host, _, rest = owner.partition("/")
    number = rest.partition("/")[0]
    if host != _host() or not (number.isascii() and number.isdigit()) or int(number) < 1:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return _is_zombie(int(number))


def _is_zombie(pid: int) -> bool:
    """True where the process has ended and its parent has not asked (proc(5), field 3 of stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] in (["Z"], ["X"])
