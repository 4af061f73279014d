"""The durable spool: an object is a fsynced, self-describing file in `ready/` before its sender hears Success.

Layout under the spool folder, all names made here, none received:

    incoming/<writer>.open/<intake>.<n>.part   being written; the folder is locked while its writer lives, else swept
    incoming/<writer>.<pid>.receiving/         the same of a receiving process, held from its start
    incoming/<n>.staging/                      an upload that becomes instances as a whole; locked, swept likewise
    intakes/<intake>.json            what an association knew of its sender; locked while it is open
    ready/<intake>.<n>.dcm           durable; may be acknowledged
    ready/<intake>.<n>.<sha256>.dcm  its digest is known; becomes rows and a blob, then is unlinked
    ready/<intake>.<n>.unsynced-<boot>.dcm  as the first with durability = study: of another boot, nobody trusts it
    quarantine/<intake>.<n>.dcm      durable but not readable any more; .json says why

With `durable=False` (the setting durability = study) nothing waits for the disk here; `Receiver.harden` does it later.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from heimdallr_ray.errors import BlobMissing, HeimdallrError, NotDicom, StorageFailed, StorageFull
from heimdallr_ray.folders import make_private, sync_folder
from heimdallr_ray.ids import NewId, Sha256, new_id
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival, with_file_start
from heimdallr_ray.listener.boot import boot_id
from heimdallr_ray.listener.folders import is_held, locked_folder, remove_unlocked
from heimdallr_ray.listener.records import IntakeRecords
from heimdallr_ray.listener.room import RoomLevel, Watermarks, measure, require_room, storage_error
from heimdallr_ray.listener.writer import UNSYNCED, SpoolEntry, SpoolWriter

__all__ = ["ReadyFile", "Spool", "SpoolEntry", "SpoolWriter", "Staging", "require_room", "storage_error"]

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_INTAKE_ID = re.compile(r"[0-9A-Za-z_-]{1,40}")
_READY_NAME = re.compile(
    r"((?:([0-9A-Za-z_-]{1,40})\.)?[0-9A-Za-z_-]{1,40})(?:\.([0-9a-f]{64}|unsynced-[0-9a-f]{8}))?\.dcm"
)
_RECEIVING_NAME = re.compile(r"[0-9A-Za-z_-]{1,40}\.(\d{1,10})\.receiving")
LOOK_EVERY_S = 0.02
ROOM_FRESH_S = 0.25
"""How long the knowledge that there is room stands, for objects whose size is not known beforehand."""


@dataclass(frozen=True)
class ReadyFile:
    """A file of `ready/` by its name alone."""

    name: str
    file_name: str
    written_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Staging:
    """A folder of the objects of one upload: none of them is an instance before all were found acceptable.

    Nothing in it was acknowledged, so what a dead process leaves is swept. Its folder is locked while it lives.
    """

    folder: Path


class Spool:
    """The folders. Safe for several threads and several processes at once."""

    def __init__(
        self,
        root: Path,
        *,
        marks: Watermarks | None = None,
        max_object_bytes: int = 1 << 40,
        durable: bool = True,
        receiving: bool = False,
        make_name: NewId = new_id,
    ) -> None:
        """Create the folders where they are missing; `receiving`: a successor waits until this process has ended.

        Raises:
            StorageFull: no room to create them.
            StorageFailed: they cannot be created.
        """
        self.root = root
        self.incoming = root / "incoming"
        self.intakes = root / "intakes"
        self.ready = root / "ready"
        self.quarantined = root / "quarantine"
        self.marks = marks or Watermarks()
        self.max_object_bytes = max_object_bytes
        self.durable = durable
        self.on_durable: Callable[[float], None] = lambda _seconds: None
        """Hears of every object how many seconds the disk took."""
        self._make_name = make_name
        self._lock = threading.Lock()
        self._records = IntakeRecords(self.intakes, durable=durable)
        self._own: tuple[Path, int] | None = None
        self._kind = f"{os.getpid()}.receiving" if receiving else "open"
        self._nonce = make_name()[:8]
        self._unsynced = f"{UNSYNCED}-{hashlib.sha256(boot_id().encode()).hexdigest()[:8]}"
        self._numbers = itertools.count(1)
        self._room_seen_s = -1.0
        self._headroom = 0
        try:
            for folder in (self.incoming, self.intakes, self.ready, self.quarantined):
                make_private(folder)
            for folder in (root, root.parent):
                sync_folder(folder)
            self._ready_fd = os.open(self.ready, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise storage_error(error) from error
        if receiving:
            try:
                self._own_folder()
            except (StorageFull, StorageFailed) as error:
                # Such a disk takes no object either; the first that it takes makes the folder.
                logger.warning("receiving_process.no_folder", extra={"code": error.code, "reason": error.detail})

    def close(self) -> None:
        """Release the handles; an association's record is no longer held."""
        fd, self._ready_fd = self._ready_fd, -1
        if fd >= 0:
            os.close(fd)
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            shutil.rmtree(own[0], ignore_errors=True)
            os.close(own[1])
        self._records.close()

    def require_room(self, size: int = 0) -> None:
        """Nothing happens while `size` more bytes keep to the watermarks.

        Raises:
            StorageFull: they would not.
            StorageFailed: the file system does not answer.
        """
        now = time.monotonic()
        if not size and self._headroom > 0 and now - self._room_seen_s < ROOM_FRESH_S:
            return
        self._headroom = require_room(self.root, self.marks, size).headroom(self.marks)
        self._room_seen_s = now

    def room_level(self) -> tuple[RoomLevel, float]:
        """What the free space means now, and how full the device is in per cent.

        Raises:
            StorageFailed: the file system does not answer.
        """
        room = measure(self.root)
        return room.level(self.marks), room.used_percent

    # Writing ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def writer(
        self, arrival: Arrival, expected_size: int = 0, staging: Staging | None = None
    ) -> Generator[SpoolWriter]:
        """A writer for one object; its temporary file is gone afterwards whatever happened.

        With `staging` the object stays in that folder, durable but not ready.

        Raises:
            StorageFull: no room left, or less than the watermarks ask for.
            StorageFailed: the operating system refused.
        """
        writer = self.begin(arrival, expected_size, staging)
        try:
            yield writer
        finally:
            self.end(writer)

    def begin(self, arrival: Arrival, expected_size: int = 0, staging: Staging | None = None) -> SpoolWriter:
        """As `writer`; who calls this must call `end`, whatever happened."""
        if not _INTAKE_ID.fullmatch(arrival.intake_id):
            raise ValueError("an intake id is made here and becomes part of a file name")
        self.require_room(expected_size)
        name = f"{arrival.intake_id}.{self._nonce}{next(self._numbers):x}"
        place = f"{staging.folder if staging else self._own_folder()}/{name}.part"
        try:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error) from error
        writer = SpoolWriter(
            arrival,
            fd,
            place,
            name,
            staging.folder if staging else self.ready,
            self.max_object_bytes,
            (lambda: None) if staging else (lambda: self._records.keep(arrival)),
            (lambda: None) if staging or not self.durable else (lambda: os.fsync(self._ready_fd)),
            self.require_room,
            mark="" if self.durable or staging else f".{self._unsynced}",
            durable=self.durable or staging is not None,
            told=self.on_durable,
        )
        try:
            writer.start()
        except BaseException:
            self.end(writer)
            raise
        return writer

    def end(self, writer: SpoolWriter) -> None:
        """The temporary file of `writer` is gone, and closed."""
        self._headroom -= writer.file_size
        writer.close()

    def _own_folder(self) -> Path:
        """The folder of this writer in `incoming/`, locked while the writer lives.

        Made with the first object, or with the spool where a successor waits for this process.

        Raises:
            StorageFull, StorageFailed: it cannot be made.
        """
        with self._lock:
            if self._own is None:
                self._own = locked_folder(self.incoming / f"{self._make_name()}.{self._kind}")
            return self._own[0]

    def end_intake(self, intake_id: str) -> None:
        """The association has ended; its record goes with its last file."""
        self._records.end(intake_id)

    def tidy(self, now_s: float) -> int:
        """Records that no ready file and no open association needs are gone; returns how many.

        Raises:
            StorageFull, StorageFailed: the folders cannot be read.
        """
        return self._records.tidy(now_s, lambda: {file.name.partition(".")[0] for file in self.ready_files()})

    # Reading back ----------------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Generator[Staging]:
        """A locked folder for one upload; it and all that is left in it are gone afterwards.

        Raises:
            StorageFull: no room to create it.
            StorageFailed: the operating system refused.
        """
        folder, fd = locked_folder(self.incoming / f"{self._make_name()}.staging")
        try:
            yield Staging(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(fd)

    def ready_files(self) -> list[ReadyFile]:
        """The files in `ready/`, oldest first."""
        found: list[ReadyFile] = []
        with os.scandir(self.ready) as entries:
            for entry in entries:
                match = _READY_NAME.fullmatch(entry.name)
                if match:
                    with suppress(FileNotFoundError):
                        found.append(ReadyFile(match[1], entry.name, entry.stat(follow_symlinks=False).st_mtime))
        return sorted(found, key=lambda file: (file.written_at, file.name))

    def entry(self, file: ReadyFile) -> SpoolEntry:
        """The ready file, read back from the disk and compared with its name.

        Raises:
            FileNotFoundError: another process has finished it.
            BlobMissing: its bytes differ from the digest in its name, or a power cut may have taken bytes of it.
            NotDicom: it is not a file of this spool.
            StorageFailed: it cannot be read.
        """
        path = self.ready / file.file_name
        match = _READY_NAME.fullmatch(file.file_name)
        if match is None:
            raise NotDicom("not a file of this spool")
        try:
            with path.open("rb") as stream:
                head = stream.read(part10.HEAD_BYTES)
                digest, size = hashlib.sha256(head), len(head)
                while chunk := stream.read(_READ_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
            known = self._records.find(match[2], datetime.fromtimestamp(file.written_at, UTC))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error) from error
        sha256 = Sha256(digest.hexdigest())
        if (match[3] or "").startswith(UNSYNCED):
            if match[3] != self._unsynced:
                raise BlobMissing("a power cut came before the image's digest was known")
        elif match[3] not in (None, sha256):
            raise BlobMissing("the spooled file's bytes differ from its name")
        arrival, offset = with_file_start(known, head)
        return SpoolEntry(file.name, self.ready, file.file_name, arrival, sha256, size - offset)

    def remove(self, entry: SpoolEntry) -> None:
        """The file of `entry` is gone. Not made durable: a file that comes back is recognised by its name."""
        with suppress(FileNotFoundError):
            os.unlink(entry.place)  # noqa: PTH108

    def outlived(self, timeout_s: float) -> list[int]:
        """Empty once no receiving process is at work; else the ids of those that still were after so long.

        Before a listener has started its own they are those of a killed predecessor, which end as soon as they see it.
        What they acknowledge until then is in `ready/` afterwards.

        Raises:
            StorageFull, StorageFailed: the folders cannot be looked at.
        """
        deadline = time.monotonic() + timeout_s
        while left := [pid for pid, folder in self._of_receiving() if is_held(folder)]:
            if time.monotonic() > deadline:
                return left
            time.sleep(LOOK_EVERY_S)
        return []

    def _of_receiving(self) -> list[tuple[int, Path]]:
        try:
            named = [(_RECEIVING_NAME.fullmatch(path.name), path) for path in self.incoming.iterdir()]
        except OSError as error:
            raise storage_error(error) from error
        return [(int(name[1]), path) for name, path in named if name is not None]

    def sweep(self) -> int:
        """Remove what writers left in `incoming/` when they died; returns how many. Live writers hold a lock.

        Raises:
            StorageFull, StorageFailed: the folder cannot be read, or what is in it not removed.
        """
        try:
            return sum(remove_unlocked(path) for path in sorted(self.incoming.iterdir()))
        except OSError as error:
            raise storage_error(error) from error

    def quarantine(self, file: ReadyFile, error: HeimdallrError, at: datetime) -> None:
        """Set the ready file aside, durably, with its reason beside it. Nothing acknowledged is ever deleted.

        Raises:
            OSError: the device refused; the file is still in `ready/`.
        """
        reason = {"code": error.code, "detail": error.detail, "at": at.isoformat()}
        target = self.quarantined / f"{file.name}.json"
        with target.open("w", encoding="utf-8") as stream:
            json.dump(reason, stream)
            stream.flush()
            os.fsync(stream.fileno())
        (self.ready / file.file_name).rename(self.quarantined / f"{file.name}.dcm")
        for folder in (self.quarantined, self.ready):
            sync_folder(folder)

    def depth(self) -> int:
        """Files in `ready/`."""
        return sum(1 for path in self.ready.iterdir() if path.suffix == ".dcm")

    def quarantine_depth(self) -> int:
        """Files in `quarantine/`."""
        return sum(1 for path in self.quarantined.iterdir() if path.suffix == ".dcm")
