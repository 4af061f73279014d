"""That the stack drains, and which uploads still store: files of run/, because both must hold across processes.

The mark outlives the process that asks for it: a listener that dies while the stack drains comes back with its port
closed. An upload stores under a shared lock, taken before it looks at the mark. So once the mark is there and the lock
is free, no upload can make an instance any more. The kernel frees the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from heimdallr_ray.errors import Draining
from heimdallr_ray.folders import make_private
from heimdallr_ray.listener.spool import storage_error


class DrainMark:
    """The mark of one data folder. Makes nothing before it is used."""

    def __init__(self, run_dir: Path) -> None:
        """`run_dir` of the settings."""
        self._run_dir = run_dir
        self._mark = run_dir / "draining"
        self._lock = run_dir / "storing.lock"

    def is_set(self) -> bool:
        """True while the stack takes nothing new in."""
        return self._mark.exists()

    def set(self) -> None:
        """Nothing new is taken in from now on.

        Raises:
            StorageFull, StorageFailed: the mark could not be made.
        """
        try:
            make_private(self._run_dir)
            self._mark.touch()
        except OSError as error:
            raise storage_error(error) from error

    def clear(self) -> None:
        """The stack takes in again."""
        self._mark.unlink(missing_ok=True)

    def quiet(self) -> bool:
        """True where no upload stores now; with the mark set, none will.

        Raises:
            StorageFull, StorageFailed: the lock cannot be asked.
        """
        with self._opened() as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextmanager
    def storing(self) -> Generator[None]:
        """The upload inside is waited for by a drain that begins meanwhile.

        Raises:
            Draining: the drain has begun; nothing may be stored.
            StorageFull, StorageFailed: the lock cannot be had.
        """
        with self._opened() as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                # Only `quiet` takes the lock for itself, and only a drain asks it.
                raise Draining from error
            if self.is_set():
                raise Draining
            yield

    @contextmanager
    def _opened(self) -> Generator[int]:
        try:
            make_private(self._run_dir)
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error) from error
        try:
            yield fd
        finally:
            os.close(fd)
