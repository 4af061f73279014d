"""One object on its way to the disk: written as it comes, durable before its sender hears Success, then digested."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heimdallr_ray.errors import TooLarge
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.arrival import Arrival, encode_file_start
from heimdallr_ray.listener.room import storage_error
from heimdallr_ray.listener.writeback import start_writeback

ROOM_BYTES = 8 << 20
"""Of an object are written before the disk is asked whether there is room for as much again."""
WRITEBACK_BYTES = 128 << 10
"""Received and not yet on the way to the disk; smaller objects are left to their fsync."""
UNSYNCED = "unsynced"
"""Before the boot's id in the name of a ready file of which the disk may have nothing and nobody knows the digest."""
MAX_CHUNKS = 512
"""Held at most, and written with one system call; IOV_MAX is 1024."""
HEAD_BYTES = 64 << 10
"""Of each file kept in memory while it is written: the header of nearly every object, so that nothing is read back."""


@dataclass(frozen=True)
class SpoolEntry:
    """One durable file of the spool: a Part 10 file of which `sha256` is the digest and `size` the data set's bytes."""

    name: str
    folder: Path
    file_name: str
    arrival: Arrival
    sha256: Sha256
    size: int

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.place)

    @property
    def place(self) -> str:
        """As `path`: made a hundred times a second, and a Path costs more than what is done with it."""
        return f"{self.folder}/{self.file_name}"


class SpoolWriter:
    """One object. Made by `Spool.writer`, which removes the file unless `commit` succeeded."""

    def __init__(
        self,
        arrival: Arrival,
        fd: int,
        place: str,
        name: str,
        folder: Path,
        max_bytes: int,
        make_findable: Callable[[], None],
        sync: Callable[[], None],
        require_room: Callable[[int], None],
        *,
        mark: str,
        durable: bool,
        told: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """A writer to the open temporary file `place`.

        Args:
            arrival: what is known of the object.
            fd: the open file.
            place: its path.
            name: of the object in the spool.
            folder: where the finished file goes.
            max_bytes: of the data set.
            make_findable: runs before the file gets its name; may raise OSError.
            sync: runs after it; may raise OSError.
            require_room: raises StorageFull where there is no room for so many bytes more.
            mark: in the finished file's name until its digest takes the place.
            durable: whether to wait for the disk.
            told: hears how many seconds the disk took for all of it, where the writer waits for the disk.
        """
        self._arrival = arrival
        self._fd = fd
        self._folder = folder
        self._max_bytes = max_bytes
        self._make_findable = make_findable
        self._sync = sync
        self._require_room = require_room
        self._room_for = ROOM_BYTES
        self._told = told
        self._mark = mark
        self.durable = durable
        self._digest = hashlib.sha256()
        self._unwritten: list[bytes | bytearray | memoryview] = []
        self._undigested: list[bytes | bytearray | memoryview] = []
        self._pending = 0
        self.holds = False
        """Whoever writes promises that no chunk changes before `let_go`: neither file nor digest need keep pace."""
        self._head: list[bytes | bytearray | memoryview] = []
        self._head_left = HEAD_BYTES
        self.dataset_offset = 0
        self._size = 0
        self._committed = False
        self._file_name = ""
        self._begun = 0
        self._place = place
        self.name = name

    @property
    def path(self) -> Path:
        """The temporary file."""
        return Path(self._place)

    @property
    def sha256(self) -> Sha256:
        """Digest of what was written."""
        self._catch_up()
        return Sha256(self._digest.hexdigest())

    def _catch_up(self) -> None:
        held, self._undigested = self._undigested, []
        for chunk in held:
            self._digest.update(chunk)

    def let_go(self) -> None:
        """Chunks that were written may change now.

        Raises:
            StorageFull, StorageFailed: as `write`.
        """
        self.flush()
        self._catch_up()
        self._head = [self.head]

    @property
    def head(self) -> bytes:
        """The first bytes of the file, at most about HEAD_BYTES."""
        return b"".join(self._head)

    @property
    def file_size(self) -> int:
        """Bytes of the file as far as it is written."""
        return self.dataset_offset + self._size

    def start(self) -> None:
        """Group 0002 will be written with the first bytes that follow it."""
        start = encode_file_start(self._arrival)
        self._head.append(start)
        self._head_left -= len(start)
        self._unwritten.append(start)
        self._undigested.append(start)
        self._pending = self.dataset_offset = len(start)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append data set bytes exactly as given.

        Raises:
            TooLarge: the object exceeds the spool's limit.
            StorageFull: no room left on the device, or less than the watermarks ask for.
            StorageFailed: any other refusal of the operating system.
        """
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise TooLarge("object exceeds max_instance_mib")
        if not len(chunk):
            # A peer may send as many empty fragments as it likes.
            return
        if self._head_left > 0:
            part = chunk[: self._head_left]
            self._head.append(part if self.holds else bytes(part))
            self._head_left -= len(part)
            if len(self._head) >= MAX_CHUNKS:
                self._head = [self.head]
        self._unwritten.append(chunk)
        self._undigested.append(chunk)
        self._pending += len(chunk)
        if not self.holds:
            self.flush()
            self._catch_up()

    @property
    def due(self) -> bool:
        """True where what is held should be flushed now.

        The disk begins early where it will be waited for; else one call for all of it is less work.
        """
        if self._size > self._room_for:
            return True
        return (self.durable and self._pending >= WRITEBACK_BYTES) or len(self._undigested) >= MAX_CHUNKS

    def flush(self) -> None:
        """All chunks are in the file, and those of many small ones may change now.

        Raises:
            StorageFull, StorageFailed: as `write`.
        """
        if len(self._undigested) >= MAX_CHUNKS:
            self._catch_up()
            self._head = [self.head]
        if self._size > self._room_for:
            self._require_room(ROOM_BYTES)
            self._room_for = self._size + ROOM_BYTES
        chunks, self._unwritten, self._pending = self._unwritten, [], 0
        try:
            _write_all(self._fd, chunks)
        except OSError as error:
            raise storage_error(error) from error
        if self.durable and self.file_size - self._begun >= WRITEBACK_BYTES:
            start_writeback(self._fd, self._begun, self.file_size - self._begun)
            self._begun = self.file_size

    def commit(self) -> None:
        """The file is ready, and durable where that was asked for; only now may its sender hear Success.

        Raises:
            StorageFull: no room left on the device.
            StorageFailed: the operating system could not make it durable; the file is gone.
        """
        self._file_name = f"{self.name}{self._mark}.dcm"
        final = os.path.join(self._folder, self._file_name)  # noqa: PTH118
        started = time.perf_counter()
        self.flush()
        try:
            if self.durable:
                os.fsync(self._fd)
            self._make_findable()
            os.rename(self._place, final)  # noqa: PTH104
        except OSError as error:
            raise storage_error(error) from error
        try:
            self._sync()
        except OSError as error:
            with suppress(OSError):
                os.unlink(final)  # noqa: PTH108
            raise storage_error(error) from error
        self._committed = True
        if self.durable:
            self._told(time.perf_counter() - started)

    def entry(self) -> SpoolEntry:
        """The committed file with its digest, which its name tells from now on.

        Where it has gone meanwhile, somebody has found and committed it.

        Raises:
            StorageFailed: it cannot be renamed.
        """
        sha256 = self.sha256
        committed, self._file_name = self._file_name, f"{self.name}.{sha256}.dcm"
        try:
            # Not made durable: a file that goes back to its first name is found by that.
            os.rename(f"{self._folder}/{committed}", f"{self._folder}/{self._file_name}")  # noqa: PTH104
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error) from error
        return SpoolEntry(self.name, self._folder, self._file_name, self._arrival, sha256, self._size)

    def close(self) -> None:
        """The file is closed, and gone where it was not committed."""
        if not self._committed:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(self._fd)


def _write_all(fd: int, chunks: list[bytes | bytearray | memoryview]) -> None:
    left = [chunk for chunk in chunks if len(chunk)]
    while left:
        written = os.writev(fd, left) if len(left) > 1 else os.write(fd, left[0])
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = memoryview(left[0])[written:]
