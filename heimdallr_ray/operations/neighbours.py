"""Who holds a port that we want: another data folder's Heimdallr, or another program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from heimdallr_ray.config import Settings
from heimdallr_ray.operations import application, lock, ports

HTTP = "HTTP port"
DICOM = "DICOM port"
_TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
"""Every process of a stack carries it; its value is <data folder>/run/ray_token (operations/rayhead.py)."""
_TOKEN_TAIL = ("run", "ray_token")


@dataclass(frozen=True)
class PortHolder:
    """What is known about whoever listens on a port."""

    words: str
    mend: str
    """How to get it out of the way."""


def data_dir_of(pid: int) -> Path | None:
    """The data folder of the stack that process `pid` belongs to; None where it belongs to none, or cannot be seen."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        # A worker that has renamed itself may have overwritten its environment; those above it have not.
        for one in (process, *process.parents()):
            with contextlib.suppress(psutil.Error, OSError):
                token = Path(one.environ().get(_TOKEN_VARIABLE, ""))
                if token.is_absolute() and token.parts[-2:] == _TOKEN_TAIL:
                    return token.parent.parent
    return None


def _of_folder(settings: Settings, folder: Path, pid: int) -> PortHolder:
    if folder.resolve() == settings.data_dir.resolve():
        return PortHolder(
            f"a process that a killed stack of this data folder has left behind (pid {pid})", "heimdallr down"
        )
    holder = lock.read_holder(folder / "run")
    who = f"supervisor pid {holder.pid}" if holder is not None else f"pid {pid}"
    return PortHolder(
        f"another Heimdallr, on data folder {folder} ({who})", f"heimdallr down --data-dir {folder}, if it may stop"
    )


def _answers_as_heimdallr(settings: Settings) -> bool:
    try:
        answer = application.get(settings, "/api/v1/health")
        return answer.status_code == 200 and answer.json() == {"status": "alive"}
    except (httpx.HTTPError, ValueError):
        return False


def holder_of(settings: Settings, name: str, host: str, port: int) -> PortHolder | None:
    """Who listens on `host:port`; None where it is free.

    Told by its process where the system lets us look, otherwise by what the HTTP port answers.
    """
    if ports.is_free(port, host):
        return None
    at = ports.listeners({port})
    for one in at:
        folder = data_dir_of(one.pid) if one.pid else None
        if folder is not None and one.pid:
            return _of_folder(settings, folder, one.pid)
    if name == HTTP and _answers_as_heimdallr(settings):
        return PortHolder("another Heimdallr, whose data folder this user cannot see", "stop it where it was started")
    who = ", ".join(f"{one.process or 'unknown'} (pid {one.pid or '?'}) on {one.address}" for one in at)
    return PortHolder(who or "another process", "stop it")


def on_our_ports(settings: Settings) -> Iterator[tuple[str, PortHolder]]:
    """Name, with number, of each of our two doors that somebody else holds, and who that is."""
    for name, host, port in (
        (HTTP, settings.server_host, settings.server_port),
        (DICOM, settings.dicom_host, settings.dicom_port),
    ):
        holder = holder_of(settings, name, host, port) if port else None
        if holder is not None:
            yield f"{name} {port}", holder
