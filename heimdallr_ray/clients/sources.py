"""What an upload may take its objects from: files of a folder, or entries of a ZIP; each read as often as needed."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.clients.files import INDEX_REASON, candidates
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.errors import BadArchive, Rejected
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival, encode_file_start
from heimdallr_ray.listener.facts import identify_instance
from heimdallr_ray.zips import (
    LOCAL_HEADER,
    NO_ZIP,
    UNREADABLE_WORDS,
    ArchiveLimits,
    Budget,
    check_directory,
    check_end_record,
)

CHUNK_BYTES = 1 << 20
_IN_MEMORY_BYTES = 64 << 20
"""Of one object while its header is read; a larger one goes through a temporary file."""
_LIMITS = ArchiveLimits(max_entries=1_000_000, max_unpacked_bytes=1 << 42)
"""For archives of our own; the server has its own, smaller ones for what it is sent."""
NOT_DICOM = "not DICOM"


class Source(Protocol):
    """One file."""

    @property
    def name(self) -> str:
        """Relative to what was asked for."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, CHUNK_BYTES at a time.

        Raises:
            BadArchive, TooLarge: the archive around it is damaged, or inflates to too much.
            OSError: it cannot be read.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """A file of the disk."""

    path: Path
    name: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        """As Source."""
        with self.path.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


@dataclass(frozen=True)
class EntrySource:
    """An entry of a ZIP."""

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo
    number: int
    """From 1 on, as the archive's directory has it: what is told of it where its name may be a patient's."""
    archive_bytes: int

    @property
    def name(self) -> str:
        """As in the archive."""
        return self.member.filename

    @property
    def size(self) -> int:
        """As its directory says."""
        return self.member.file_size

    def chunks(self) -> Iterator[bytes]:
        """As Source."""
        try:
            with self.archive.open(self.member) as stream:
                yield from Budget(_LIMITS, self.archive_bytes).chunks(stream)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError) as error:
            name = Path(self.archive.filename or "").name
            raise BadArchive(f"{name}: entry {self.number} is damaged: put the DICOM files into a ZIP anew") from error


@contextmanager
def sources_of(path: Path) -> Generator[list[Source]]:
    """The files of a folder, the entries of a ZIP, or the one DICOM file at `path`, in their order.

    Raises:
        BadArchive, TooLarge: a ZIP that is damaged or means harm; a file that is neither ZIP nor DICOM.
        OSError: not readable.
    """
    if path.is_dir() or not _is_archive(path):
        files = candidates(path)
        yield [
            FileSource(item, item.name if item == path else str(item.relative_to(path)), item.stat().st_size)
            for item in files
        ]
        return
    try:
        check_end_record(path, _LIMITS)
        archive = zipfile.ZipFile(path)
    except (BadArchive, zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeError) as error:
        raise BadArchive(f"{path.name}: {_unreadable(path)}") from error
    with archive:
        size = path.stat().st_size
        try:
            members = check_directory(archive.infolist(), archive.start_dir, size, _LIMITS)
        except BadArchive as error:
            raise BadArchive(f"{path.name}: {error.detail}") from error
        yield [EntrySource(archive, member, index + 1, size) for index, member in members]


def _unreadable(path: Path) -> str:
    with path.open("rb") as stream:
        return UNREADABLE_WORDS if stream.read(2) == b"PK" else NO_ZIP


def _is_archive(path: Path) -> bool:
    """True for a ZIP, False for a DICOM file.

    Raises:
        BadArchive: neither.
    """
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as stream:
        head = stream.read(part10.HEAD_BYTES)
    if part10.has_prefix(head):
        return False
    if head.startswith(LOCAL_HEADER):
        return True
    if reason_to_leave_out(head) != NOT_DICOM:
        return False
    if zipfile.is_zipfile(path):
        return True
    raise BadArchive(f"{path.name} is neither a ZIP archive nor a DICOM file")


def reason_to_leave_out(head: bytes) -> str:
    """Why the server takes no object from a file that begins with `head`; empty where it takes one."""
    try:
        meta = part10.identify(head)
    except Rejected:
        return "" if part10.has_prefix(head) else NOT_DICOM
    return INDEX_REASON if meta.sop_class_uid == part10.DICOMDIR_CLASS else ""


@dataclass(frozen=True)
class Item:
    """One DICOM object, by what tells it from every other."""

    source: Source
    sop_uid: str
    sha256: str
    study_uid: str
    """Empty where it names none; the server gives it one."""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for equal objects alone."""
        return self.sop_uid, self.sha256


@dataclass(frozen=True)
class LeftOut:
    """A file that holds no DICOM object."""

    reason: str


def look_at(source: Source) -> Item | LeftOut:
    """What the server would make of `source`: its digest and its SOP Instance UID are computed as there.

    Raises:
        Rejected: it is DICOM and cannot be taken.
        OSError: it cannot be read.
    """
    chunks = source.chunks()
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= part10.HEAD_BYTES:
            break
    reason = reason_to_leave_out(bytes(head))
    if reason:
        return LeftOut(reason)
    meta = part10.identify(bytes(head))
    arrival = Arrival(
        intake_id="",
        door=Door.UPLOAD,
        received_at=SystemClock().now(),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
    )
    start = encode_file_start(arrival)
    digest = hashlib.sha256(start)
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as kept:
        kept.write(start)
        for chunk in chain([bytes(head[meta.dataset_offset :])], chunks):
            digest.update(chunk)
            kept.write(chunk)
        sha256 = Sha256(digest.hexdigest())
        identity = identify_instance(read_header(cast("BinaryIO", kept)), arrival, sha256)
    return Item(source, identity.sop_uid, sha256, "" if identity.study_uid_generated else identity.study_uid)
