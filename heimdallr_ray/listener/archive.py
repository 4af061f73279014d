"""A ZIP at the HTTP door: judged whole by its directory, then inflated with a count, member by member, into the spool.

Nothing is extracted under a name from the archive; names are only looked at to refuse archives that mean harm. An
archive that fails leaves nothing behind: its objects become instances after the last one was read and found good.
"""

from __future__ import annotations

import logging
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import IO

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import BadArchive, EmptyInput, NotDicom, Rejected, TooLarge
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.receive import Accepted, Receiver
from heimdallr_ray.listener.spool import Staging, storage_error

logger = logging.getLogger(__name__)

MAX_RATIO = 200
"""Unpacked to packed. Real CT reaches about 5; a bomb of zeros 1032, the most that DEFLATE can (zlib notes)."""
RATIO_FREE_BYTES = 64 << 20
"""Up to this size the ratio does not matter: small phantoms of constant value are legitimate."""
MAX_DIRECTORY_BYTES_PER_ENTRY = 1024
"""Of the central directory: 46 bytes, name, extra field and comment."""
MAX_NAME_CHARS = 1024
_CHUNK_BYTES = 1 << 20
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_MAX_COMMENT_BYTES = 65_535
_ENCRYPTED = 0x1
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True)
class ArchiveLimits:
    """How much one archive may hold."""

    max_entries: int
    max_unpacked_bytes: int
    max_ratio: int = MAX_RATIO


@dataclass(frozen=True)
class UploadOutcome:
    """What became of an archive. Objects that the catalog already had count as accepted."""

    accepted: int
    rejected: int
    study_uids: tuple[str, ...]
    skipped: int = 0
    """DICOMDIR files; their references are never followed."""
    rejections: tuple[tuple[int, str], ...] = ()
    """Position in the archive's directory and error code of each entry that is not DICOM."""


def receive_zip(
    path: Path, receiver: Receiver, limits: ArchiveLimits, upload_id: str, address: str | None = None
) -> UploadOutcome:
    """Every DICOM object of the ZIP at `path` is an instance in the catalog, or none is.

    A sender may delete its files once this is answered. So one DICOM object that cannot be taken refuses them all.
    Entries that are not DICOM are counted; archives inside the archive are such entries.

    Raises:
        Rejected: some objects are DICOM and cannot be accepted; the class, and so the code, is that of the first one.
        BadArchive: damaged, encrypted, overlapping entries, or a name or file type that is not allowed.
        TooLarge: too many entries, or more unpacked bytes than the limits allow.
        EmptyInput: no entry is a DICOM object.
        Retryable: disk or database could not take it now.
    """
    try:
        _check_end_record(path, limits)
        with zipfile.ZipFile(path) as archive:
            members = check_directory(archive.infolist(), archive.start_dir, path.stat().st_size, limits)
            with receiver.spool.staging() as staging:
                return _receive_members(archive, members, receiver, staging, limits, upload_id, address)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        logger.warning("upload.refused", extra={"upload": upload_id, "code": BadArchive.code})
        raise BadArchive("the ZIP archive is damaged") from error
    except OSError as error:
        raise storage_error(error) from error


def _check_end_record(path: Path, limits: ArchiveLimits) -> None:
    """Nothing happens while the directory that the archive declares is of a size that may be read at all."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END_RECORD_BYTES - _MAX_COMMENT_BYTES))
        tail = stream.read(_END_RECORD_BYTES + _MAX_COMMENT_BYTES)
    position = tail.rfind(_END_RECORD)
    if position < 0 or position + _END_RECORD_BYTES > len(tail):
        raise BadArchive("not a ZIP archive")
    entries, directory_bytes = struct.unpack_from("<HI", tail, position + 10)
    # 0xFFFF and 0xFFFFFFFF say that a ZIP64 record holds the number; the directory's real bytes are bounded below.
    if entries != 0xFFFF and entries > limits.max_entries:
        raise TooLarge("the archive has more than max_zip_entries entries")
    locator = tail[max(0, position - 20) : position]
    if directory_bytes == 0xFFFFFFFF or locator.startswith(b"PK\x06\x07"):
        directory_bytes = _zip64_directory_bytes(path, locator)
    if directory_bytes > limits.max_entries * MAX_DIRECTORY_BYTES_PER_ENTRY:
        raise TooLarge("the archive's directory is too large")


def _zip64_directory_bytes(path: Path, locator: bytes) -> int:
    if len(locator) != 20 or not locator.startswith(b"PK\x06\x07"):
        raise BadArchive("the ZIP64 locator is missing")
    (offset,) = struct.unpack_from("<Q", locator, 8)
    with path.open("rb") as stream:
        if offset + 56 > stream.seek(0, 2):
            raise BadArchive("the ZIP64 record lies outside the archive")
        stream.seek(offset)
        record = stream.read(56)
    if not record.startswith(b"PK\x06\x06"):
        raise BadArchive("the ZIP64 record is missing")
    return int(struct.unpack_from("<Q", record, 40)[0])


def check_directory(
    members: list[zipfile.ZipInfo], directory_offset: int, archive_bytes: int, limits: ArchiveLimits
) -> list[tuple[int, zipfile.ZipInfo]]:
    """The files among `members` with their position, once the whole directory has been found harmless.

    Args:
        members: the central directory in its order.
        directory_offset: where the central directory begins in the file.
        archive_bytes: size of the archive.
        limits: how much it may hold.

    Raises:
        BadArchive, TooLarge: see `receive_zip`.
    """
    if len(members) > limits.max_entries:
        raise TooLarge("the archive has more than max_zip_entries entries")
    seen: set[str] = set()
    unpacked = 0
    for member in members:
        _check_member(member)
        if member.filename in seen:
            raise BadArchive("two entries have the same name")
        seen.add(member.filename)
        unpacked += member.file_size
    if unpacked > limits.max_unpacked_bytes:
        raise TooLarge("the archive unpacks to more than max_unpacked_mib")
    if unpacked > RATIO_FREE_BYTES and unpacked > limits.max_ratio * archive_bytes:
        raise TooLarge("the archive unpacks to an implausible multiple of its size")
    # A local header has at least 30 bytes and the name; entries that share bytes multiply what they unpack to.
    spans = sorted((member.header_offset, member.header_offset + 30 + member.compress_size) for member in members)
    for (_, end), (start, _) in pairwise([*spans, (directory_offset, directory_offset)]):
        if end > start:
            raise BadArchive("entries overlap")
    return [(index, member) for index, member in enumerate(members) if not member.is_dir()]


def _check_member(member: zipfile.ZipInfo) -> None:
    # ZipInfo cuts the name at a NUL; the original tells.
    name = member.orig_filename
    if len(name) > MAX_NAME_CHARS or "\0" in name:
        raise BadArchive("an entry's name is not allowed")
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0][1:2] == ":":
        raise BadArchive("an entry's name leaves the archive")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive("an entry is a link or a device")
    if member.flag_bits & _ENCRYPTED:
        raise BadArchive("an entry is encrypted")
    if member.compress_type not in _METHODS:
        raise BadArchive("an entry is compressed by a method that is not accepted")
    if member.header_offset < 0:
        raise BadArchive("an entry lies outside the archive")


class _Budget:
    """Bytes that may still be inflated. Counts what really comes out, whatever the directory declared."""

    def __init__(self, limits: ArchiveLimits, archive_bytes: int) -> None:
        self.left = min(limits.max_unpacked_bytes, max(RATIO_FREE_BYTES, limits.max_ratio * archive_bytes))

    def read(self, stream: IO[bytes], size: int) -> bytes:
        chunk = stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise TooLarge("the archive unpacks to more than allowed")
        return chunk

    def chunks(self, stream: IO[bytes]) -> Iterator[bytes]:
        while chunk := self.read(stream, _CHUNK_BYTES):
            yield chunk


def _receive_members(
    archive: zipfile.ZipFile,
    members: list[tuple[int, zipfile.ZipInfo]],
    receiver: Receiver,
    staging: Staging,
    limits: ArchiveLimits,
    upload_id: str,
    address: str | None,
) -> UploadOutcome:
    budget = _Budget(limits, Path(archive.filename or "").stat().st_size)
    accepted: list[Accepted] = []
    rejections: list[tuple[int, str]] = []
    refused: Counter[str] = Counter()
    first_refusal: type[Rejected] = Rejected
    skipped = 0
    for index, member in members:
        with archive.open(member) as stream:
            head = budget.read(stream, part10.HEAD_BYTES)
            is_dicom = part10.has_prefix(head)
            try:
                meta = part10.identify(head)
                is_dicom = True
                if meta.sop_class_uid == part10.DICOMDIR_CLASS:
                    skipped += 1
                    continue
                arrival = _arrival(meta, receiver, upload_id, address)
                if member.file_size - meta.dataset_offset > receiver.spool.max_object_bytes:
                    raise TooLarge("an object exceeds max_instance_mib")
                body = chain([head[meta.dataset_offset :]], budget.chunks(stream))
                accepted.append(receiver.accept(arrival, body, expected_size=member.file_size, staging=staging))
            except Rejected as error:
                if budget.left < 0:
                    raise
                if isinstance(error, NotDicom) and not is_dicom:
                    rejections.append((index, error.code))
                    continue
                # The error itself would keep its frames, and with them the entry's bytes.
                first_refusal = first_refusal if refused else type(error)
                refused[error.code] += 1
    if refused:
        logger.warning("upload.refused", extra={"upload": upload_id, "codes": dict(refused)})
        codes = ", ".join(f"{code} {count}" for code, count in sorted(refused.items()))
        of = f"{refused.total()} of {refused.total() + len(accepted)} DICOM files"
        raise first_refusal(f"{of} cannot be accepted ({codes}); nothing was stored")
    if not accepted:
        logger.warning("upload.refused", extra={"upload": upload_id, "code": EmptyInput.code})
        raise EmptyInput("no entry of the archive is a DICOM object")
    receiver.commit_upload(accepted)
    study_uids = tuple(sorted({str(item.identity.study_uid) for item in accepted}))
    logger.info(
        "upload.stored",
        extra={
            "upload": upload_id,
            "accepted": len(accepted),
            "rejected": len(rejections),
            "skipped": skipped,
            "studies": len(study_uids),
        },
    )
    return UploadOutcome(len(accepted), len(rejections), study_uids, skipped, tuple(rejections))


def _arrival(meta: part10.FileMeta, receiver: Receiver, upload_id: str, address: str | None) -> Arrival:
    return Arrival(
        intake_id=upload_id,
        door=Door.UPLOAD,
        received_at=receiver.clock.now(),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=meta.sop_instance_uid,
        address=address,
        source_implementation=meta.implementation_class_uid,
    )
