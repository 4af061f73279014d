"""A ZIP at the HTTP door: judged whole by its directory, then inflated with a count, member by member, into the spool.

Nothing is extracted under a name from the archive; names are only looked at to refuse archives that mean harm. An
archive that fails leaves nothing behind: its objects become instances after the last one was read and found good.
"""

from __future__ import annotations

import logging
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import BadArchive, EmptyInput, NotDicom, Rejected, TooLarge
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.receive import NotesOf, Receiver
from heimdallr_ray.listener.spool import Staging, storage_error
from heimdallr_ray.zips import UNREADABLE_WORDS, ArchiveLimits, Budget, check_directory, check_end_record

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class UploadOutcome:
    """What became of an archive. Objects that the catalog already had count as accepted, and in `already_there`."""

    accepted: int
    rejected: int
    study_uids: tuple[str, ...]
    skipped: int = 0
    """DICOMDIR files; their references are never followed."""
    rejections: tuple[tuple[int, str], ...] = ()
    """Position in the archive's directory and error code of each entry that is not DICOM."""
    already_there: int = 0
    size: int = 0
    """Data set bytes of the accepted ones."""


def receive_upload(
    path: Path,
    receiver: Receiver,
    limits: ArchiveLimits,
    upload_id: str,
    address: str | None = None,
    notes: NotesOf = lambda items: (),
) -> UploadOutcome:
    """As `receive_zip`, of a ZIP or of one DICOM file. What it is, its bytes say.

    Raises:
        As `receive_zip`.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(part10.HEAD_BYTES)
            if part10.has_prefix(head) or (not head.startswith(b"PK") and _identified(head)):
                return _receive_object(head, stream, receiver, upload_id, address, notes)
    except OSError as error:
        raise storage_error(error) from error
    return receive_zip(path, receiver, limits, upload_id, address, notes)


def _identified(head: bytes) -> bool:
    try:
        part10.identify(head)
    except Rejected:
        return False
    return True


def _receive_object(
    head: bytes,
    stream: BinaryIO,
    receiver: Receiver,
    upload_id: str,
    address: str | None,
    notes: NotesOf,
) -> UploadOutcome:
    meta = part10.identify(head)
    if meta.sop_class_uid == part10.DICOMDIR_CLASS:
        raise EmptyInput("a DICOMDIR is an index, no image")
    body = chain([head[meta.dataset_offset :]], iter(lambda: stream.read(_CHUNK_BYTES), b""))
    with receiver.spool.staging() as staging:
        one = receiver.accept(_arrival(meta, receiver, upload_id, address), body, staging=staging)
        already_there = receiver.commit_upload([one], notes([one]))
    logger.info("upload.stored", extra={"upload": upload_id, "accepted": 1, "rejected": 0, "skipped": 0, "studies": 1})
    return UploadOutcome(1, 0, (str(one.identity.study_uid),), already_there=already_there, size=one.entry.size)


def receive_zip(
    path: Path,
    receiver: Receiver,
    limits: ArchiveLimits,
    upload_id: str,
    address: str | None = None,
    notes: NotesOf = lambda items: (),
) -> UploadOutcome:
    """Every DICOM object of the ZIP at `path` is an instance in the catalog, or none is.

    A sender may delete its files once this is answered. So one DICOM object that cannot be taken refuses them all.
    Entries that are not DICOM are counted; archives inside the archive are such entries. `notes` of the objects are
    carried out with their rows.

    Raises:
        Rejected: some objects are DICOM and cannot be accepted; the class, and so the code, is that of the first one.
        BadArchive: damaged, encrypted, overlapping entries, or a name or file type that is not allowed.
        TooLarge: too many entries, or more unpacked bytes than the limits allow.
        EmptyInput: no entry is a DICOM object.
        Retryable: disk or database could not take it now.
    """
    try:
        _check_end(path, limits)
        with zipfile.ZipFile(path) as archive:
            members = check_directory(archive.infolist(), archive.start_dir, path.stat().st_size, limits)
            with receiver.spool.staging() as staging:
                return _receive_members(archive, members, receiver, staging, limits, upload_id, address, notes)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        logger.warning("upload.refused", extra={"upload": upload_id, "code": BadArchive.code})
        raise BadArchive(_unreadable(path)) from error
    except OSError as error:
        raise storage_error(error) from error


def _check_end(path: Path, limits: ArchiveLimits) -> None:
    try:
        check_end_record(path, limits)
    except BadArchive as error:
        logger.warning("upload.refused", extra={"code": error.code, "reason": error.detail})
        raise BadArchive(_unreadable(path)) from error


def _unreadable(path: Path) -> str:
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    if is_zip:
        return UNREADABLE_WORDS
    return "the file is neither a ZIP nor a DICOM file by its content: put the DICOM files of the study into a ZIP"


def _receive_members(
    archive: zipfile.ZipFile,
    members: list[tuple[int, zipfile.ZipInfo]],
    receiver: Receiver,
    staging: Staging,
    limits: ArchiveLimits,
    upload_id: str,
    address: str | None,
    notes: NotesOf,
) -> UploadOutcome:
    budget = Budget(limits, Path(archive.filename or "").stat().st_size)
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
        raise EmptyInput(
            f"the ZIP can be read, but none of its {len(members)} files is a DICOM image; nothing was stored"
            if len(members) > 1
            else "the ZIP can be read, but it holds no DICOM image; nothing was stored"
        )
    already_there = receiver.commit_upload(accepted, notes(accepted))
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
    size = sum(item.entry.size for item in accepted)
    return UploadOutcome(len(accepted), len(rejections), study_uids, skipped, tuple(rejections), already_there, size)


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
