"""What an association or upload knew of its sender: one small file, durable before the first object that needs it.

`<intake>.json` in `intakes/` of the spool. It is locked while its association is open, so that nobody tidies it away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import NotDicom
from heimdallr_ray.folders import sync_folder
from heimdallr_ray.listener.arrival import MAX_RECORD_BYTES, Arrival, encode_record, parse_record
from heimdallr_ray.listener.folders import remove_unlocked
from heimdallr_ray.listener.room import storage_error

_OPEN_ATTEMPTS = 8
RECORD_AGE_S = 60.0
"""A record that no file and no open association needs is removed once it is this old."""


class IntakeRecords:
    """The records of one spool. Safe for several threads and several processes at once."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        """The records in `folder`, which is there; `durable`: whether to wait for the disk."""
        self._folder = folder
        self._durable = durable
        self._lock = threading.Lock()
        self._records: dict[str, int] = {}

    def close(self) -> None:
        """No record is held any longer."""
        with self._lock:
            records, self._records = self._records, {}
        for record in records.values():
            os.close(record)

    def keep(self, arrival: Arrival) -> None:
        """The record of the association is as durable as its files are. Made with the first of them."""
        intake_id = arrival.intake_id
        with self._lock:
            if intake_id in self._records:
                return
        fd = _open_record(self._folder / f"{intake_id}.json")
        try:
            os.pwrite(fd, encode_record(arrival), 0)
            if self._durable:
                os.fsync(fd)
                sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            other = self._records.setdefault(intake_id, fd)
        if other != fd:
            os.close(fd)

    def end(self, intake_id: str) -> None:
        """The association has ended; its record goes with its last file."""
        with self._lock:
            fd = self._records.pop(intake_id, -1)
        if fd >= 0:
            os.close(fd)

    def tidy(self, now_s: float, needed: Callable[[], Collection[str]]) -> int:
        """Records that are not `needed` (intake ids, asked for once there are old ones) and not held are gone.

        Returns:
            How many.

        Raises:
            StorageFull, StorageFailed: the folders cannot be read.
        """
        try:
            old = [path for path in self._folder.iterdir() if path.stat().st_mtime < now_s - RECORD_AGE_S]
            still = needed() if old else ()
        except FileNotFoundError:
            # Another process tidies at the same time.
            return 0
        except OSError as error:
            raise storage_error(error) from error
        return sum(remove_unlocked(path) for path in old if path.stem not in still)

    def find(self, intake_id: str | None, received_at: datetime) -> Arrival:
        """What is known of the sender; nothing but the door where the record is lost, for the image is not."""
        unknown = Arrival(intake_id or "unknown", Door.DICOM, received_at, "")
        if intake_id is None:
            return unknown
        try:
            with (self._folder / f"{intake_id}.json").open("rb") as stream:
                return parse_record(stream.read(MAX_RECORD_BYTES), received_at)
        except (FileNotFoundError, NotDicom):
            return unknown


def _open_record(path: Path) -> int:
    """The record's file, held so that nobody tidies it away."""
    for _ in range(_OPEN_ATTEMPTS):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # As with a new file: it may have been removed before it was locked.
            if os.fstat(fd).st_nlink == 1:
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(errno.EAGAIN, "the record of the association cannot be locked")
