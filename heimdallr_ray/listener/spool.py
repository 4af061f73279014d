"""The durable spool: an object is a fsynced, self-describing file in `ready/` before its sender hears Success.

Layout under the spool folder, all names made here (uuid hex), none received:

    incoming/<name>.part   being written; locked by its writer, swept at start when no writer holds it
    incoming/<name>.staging/   an upload that becomes instances as a whole; locked, swept likewise
    ready/<name>.dcm       durable; may be acknowledged; becomes rows and a blob, then is unlinked
    quarantine/<name>.dcm  durable but not readable any more; <name>.json says why

What a file tells of itself: arrival.py.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from heimdallr_ray.errors import HeimdallrError, NotDicom, StorageFailed, StorageFull, TooLarge
from heimdallr_ray.ids import NewId, Sha256, new_id
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival, encode_arrival, parse_arrival

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_BYTES = 1 << 20
_OPEN_ATTEMPTS = 8


@dataclass(frozen=True)
class SpoolEntry:
    """One durable file of the spool.

    `size` and `dataset_sha256` are those of the data set bytes alone; `dataset_offset` is where they begin in `path`.
    """

    name: str
    path: Path
    arrival: Arrival
    dataset_offset: int
    dataset_sha256: Sha256
    size: int


def storage_error(error: OSError) -> StorageFull | StorageFailed:
    """The typed error for a failure of the file system."""
    detail = os.strerror(error.errno) if error.errno else type(error).__name__
    return StorageFull(detail) if error.errno in _FULL else StorageFailed(detail)


def require_room(folder: Path, min_free_bytes: int, size: int = 0) -> None:
    """Nothing happens while `size` more bytes under `folder` leave `min_free_bytes` free on its device.

    Raises:
        StorageFull: they would not.
        StorageFailed: the file system does not answer.
    """
    try:
        usage = os.statvfs(folder)
    except OSError as error:
        raise storage_error(error) from error
    if usage.f_bavail * usage.f_frsize < min_free_bytes + size:
        raise StorageFull("less than min_free_mib is free")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SpoolWriter:
    """One object on its way to the disk. Made by `Spool.writer`, which removes the file unless `commit` succeeded."""

    def __init__(
        self, arrival: Arrival, fd: int, path: Path, final: Path, final_fd: int | None, max_bytes: int
    ) -> None:
        self._arrival = arrival
        self._fd = fd
        self._final = final
        self._final_fd = final_fd
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._offset = 0
        self._size = 0
        self.name = path.stem
        self.path = path

    @property
    def dataset_sha256(self) -> Sha256:
        """Digest of the data set bytes written until now."""
        return Sha256(self._digest.hexdigest())

    def start(self) -> None:
        """Group 0002 is written."""
        header = encode_arrival(self.name, self._arrival)
        self._write(header)
        self._offset = len(header)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append data set bytes exactly as given.

        Raises:
            TooLarge: the object exceeds the spool's limit.
            StorageFull: no room left on the device.
            StorageFailed: any other refusal of the operating system.
        """
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise TooLarge("object exceeds max_instance_mib")
        self._digest.update(chunk)
        self._write(chunk)

    def _write(self, chunk: bytes | bytearray | memoryview) -> None:
        view = memoryview(chunk)
        try:
            while len(view):
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise storage_error(error) from error

    def commit(self) -> SpoolEntry:
        """The file is durable under its final name; only now may its sender hear Success.

        Raises:
            StorageFull: no room left on the device.
            StorageFailed: the operating system could not make it durable; the file is gone.
        """
        try:
            os.fsync(self._fd)
            self.path.rename(self._final)
        except OSError as error:
            raise storage_error(error) from error
        if self._final_fd is not None:
            try:
                os.fsync(self._final_fd)
            except OSError as error:
                with suppress(OSError):
                    self._final.unlink()
                raise storage_error(error) from error
        return SpoolEntry(self.name, self._final, self._arrival, self._offset, self.dataset_sha256, self._size)


@dataclass(frozen=True)
class Staging:
    """A folder of the objects of one upload: none of them is an instance before all were found acceptable.

    Nothing in it was acknowledged, so what a dead process leaves is swept. Its folder is locked while it lives.
    """

    folder: Path


class Spool:
    """The three folders. Safe for several threads and several processes at once."""

    def __init__(
        self, root: Path, *, min_free_bytes: int = 0, max_object_bytes: int = 1 << 40, make_name: NewId = new_id
    ) -> None:
        """Create the folders where they are missing.

        Raises:
            StorageFull: no room to create them.
            StorageFailed: they cannot be created.
        """
        self.root = root
        self.incoming = root / "incoming"
        self.ready = root / "ready"
        self.quarantined = root / "quarantine"
        self.min_free_bytes = min_free_bytes
        self.max_object_bytes = max_object_bytes
        self._make_name = make_name
        try:
            for folder in (self.incoming, self.ready, self.quarantined):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (root, root.parent):
                _sync_folder(folder)
            self._ready_fd = os.open(self.ready, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise storage_error(error) from error

    def close(self) -> None:
        """Release the folder handle."""
        fd, self._ready_fd = self._ready_fd, -1
        if fd >= 0:
            os.close(fd)

    def require_room(self, size: int = 0) -> None:
        """Nothing happens while `size` more bytes leave the configured minimum free.

        Raises:
            StorageFull: they would not.
            StorageFailed: the file system does not answer.
        """
        require_room(self.root, self.min_free_bytes, size)

    @contextmanager
    def writer(
        self, arrival: Arrival, expected_size: int = 0, staging: Staging | None = None
    ) -> Generator[SpoolWriter]:
        """A writer for one object; its temporary file is gone afterwards whatever happened.

        With `staging` the object stays in that folder, durable but not ready.

        Raises:
            StorageFull: no room left, or less than the configured minimum.
            StorageFailed: the operating system refused.
        """
        self.require_room(expected_size)
        fd, path = self._create(staging.folder if staging else self.incoming)
        final = (staging.folder if staging else self.ready) / f"{path.stem}.dcm"
        final_fd = None if staging else self._ready_fd
        writer = SpoolWriter(arrival, fd, path, final, final_fd, self.max_object_bytes)
        try:
            writer.start()
            yield writer
        finally:
            with suppress(OSError):
                writer.path.unlink(missing_ok=True)
            with suppress(OSError):
                os.close(fd)

    def _create(self, folder: Path) -> tuple[int, Path]:
        for _ in range(_OPEN_ATTEMPTS):
            path = folder / f"{self._make_name()}.part"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise storage_error(error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A sweep of another process may have removed the file between its creation and the lock.
                if os.fstat(fd).st_nlink == 1:
                    return fd, path
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(fd)
                    raise storage_error(error) from error
            os.close(fd)
        raise StorageFailed("could not create a spool file")

    @contextmanager
    def staging(self) -> Generator[Staging]:
        """A locked folder for one upload; it and all that is left in it are gone afterwards.

        Raises:
            StorageFull: no room to create it.
            StorageFailed: the operating system refused.
        """
        folder = self.incoming / f"{self._make_name()}.staging"
        try:
            folder.mkdir(mode=0o700)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Staging(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(fd)

    def ready_files(self) -> list[tuple[str, float]]:
        """Name and time of writing (seconds since the epoch) of the files in `ready/`, oldest first."""
        found: list[tuple[float, str]] = []
        with os.scandir(self.ready) as entries:
            for entry in entries:
                if entry.name.endswith(".dcm"):
                    with suppress(FileNotFoundError):
                        found.append((entry.stat(follow_symlinks=False).st_mtime, entry.name.removesuffix(".dcm")))
        return [(name, written_at) for written_at, name in sorted(found)]

    def entry(self, name: str) -> SpoolEntry:
        """The ready file `name`, read back from the disk; its digest is computed again.

        Raises:
            FileNotFoundError: another process has finished it.
            NotDicom: the file is not one of this spool, or is damaged.
            StorageFailed: it cannot be read.
        """
        path = self.ready / f"{name}.dcm"
        try:
            with path.open("rb") as stream:
                head = stream.read(part10.HEAD_BYTES)
                recorded, arrival, offset = parse_arrival(head)
                if recorded != name:
                    raise NotDicom("spool name and file name differ")
                digest = hashlib.sha256(head[offset:])
                size = len(head) - offset
                while chunk := stream.read(_READ_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error) from error
        return SpoolEntry(name, path, arrival, offset, Sha256(digest.hexdigest()), size)

    def remove(self, entry: SpoolEntry) -> None:
        """The file of `entry` is gone. Not made durable: a file that comes back is recognised by its name."""
        entry.path.unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what writers left in `incoming/` when they died; returns how many. Live writers hold a lock."""
        removed = 0
        for path in sorted(self.incoming.iterdir()):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.suffix == ".staging":
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed += 1
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
        return removed

    def quarantine(self, name: str, error: HeimdallrError, at: datetime) -> None:
        """Set the ready file `name` aside, durably, with its reason beside it. Nothing acknowledged is ever deleted.

        Raises:
            OSError: the device refused; the file is still in `ready/`.
        """
        reason = {"code": error.code, "detail": error.detail, "at": at.isoformat()}
        target = self.quarantined / f"{name}.json"
        with target.open("w", encoding="utf-8") as stream:
            json.dump(reason, stream)
            stream.flush()
            os.fsync(stream.fileno())
        (self.ready / f"{name}.dcm").rename(self.quarantined / f"{name}.dcm")
        for folder in (self.quarantined, self.ready):
            _sync_folder(folder)

    def depth(self) -> int:
        """Files in `ready/`."""
        return sum(1 for path in self.ready.iterdir() if path.suffix == ".dcm")

    def quarantine_depth(self) -> int:
        """Files in `quarantine/`."""
        return sum(1 for path in self.quarantined.iterdir() if path.suffix == ".dcm")
