"""One supervisor per data folder: a kernel lock that dies with its holder, and a note of who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from heimdallr_ray.errors import AlreadyRunning
from heimdallr_ray.folders import make_private


@dataclass(frozen=True)
class Holder:
    """Who runs on a data folder."""

    pid: int
    started_at: str
    server_url: str
    dicom: str
    build: str
    state: str
    """starting, ready, degraded (a part has not worked for a while), draining, stopping."""
    step: str = ""
    """What it is doing while it is starting, in words."""
    detail: str = ""
    """Parts that do not work and why, in words; empty where all work."""


class DataFolderLock:
    """Held for the life of a supervisor. The kernel frees it when the process ends, however it ends."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock.

        Raises:
            AlreadyRunning: another process holds it; says which.
        """
        make_private(run_dir)
        self._path = run_dir / "supervisor.lock"
        self._note = run_dir / "supervisor.json"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            holder = read_holder(run_dir)
            who = f"pid {holder.pid} since {holder.started_at}" if holder else "another process"
            raise AlreadyRunning(f"{run_dir.parent} is held by {who}; `heimdallr down` stops it") from error

    def note(self, holder: Holder) -> None:
        """Say who we are and in which state."""
        _write(self._note, holder)

    def release(self) -> None:
        """The folder is free again."""
        self._note.unlink(missing_ok=True)
        # The lock file stays. A process that has just opened it would lock a file without a name, and the next one a
        # new file: two holders of one folder.
        os.close(self._descriptor)


def _write(note: Path, holder: Holder) -> None:
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    temporary.replace(note)


def note_step(run_dir: Path, step: str) -> None:
    """Where this process holds the folder and is starting, its note says which step it has come to."""
    holder = read_holder(run_dir)
    if holder is not None and holder.pid == os.getpid() and holder.state == "starting":
        _write(run_dir / "supervisor.json", replace(holder, step=step))


def is_held(run_dir: Path) -> bool:
    """True while a supervisor runs on the folder."""
    try:
        descriptor = os.open(run_dir / "supervisor.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_holder(run_dir: Path) -> Holder | None:
    """What the holder last noted; None where there is no readable note."""
    try:
        values: dict[str, Any] = json.loads((run_dir / "supervisor.json").read_text(encoding="utf-8"))
        return Holder(**values)
    except (OSError, ValueError, TypeError):
        return None
