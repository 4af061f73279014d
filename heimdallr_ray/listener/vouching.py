"""What a client may rely on that keeps no copy: rows that no power cut takes, and bytes read anew from the disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from heimdallr_ray.catalog.commitments import stored_copies
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
"""After so long no other object of a question is looked at: a thread is free again, and the client asks on."""


@dataclass(frozen=True)
class Vouched:
    """The answer to which objects are here: positions in the question."""

    known: tuple[int, ...]
    looked_at: int
    """The first so many were looked at; of the others nothing is said."""


def vouched_for(
    database: Database, blobs: BlobStore, clock: Clock, pairs: Sequence[tuple[str, str]], look_s: float = LOOK_S
) -> Vouched:
    """Which of `pairs` have a durable row, and a blob whose bytes on the disk give its digest.

    Args:
        database: the catalog.
        blobs: where the bytes of instances lie.
        clock: the monotonic one tells how long it has taken.
        pairs: SOP Instance UID and sha256 of the object.
        look_s: seconds after which no other object is looked at; the first one is in any case.

    Raises:
        BadIdentifier: a sha256 is no digest.
        Retryable: the database does not answer now.
    """
    with database.read() as session:
        copies = stored_copies(session, sorted({sop_uid for sop_uid, _ in pairs}))
    until = clock.monotonic() + look_s
    whole: dict[str, bool] = {}
    known: list[int] = []
    for position, (sop_uid, sha256) in enumerate(pairs):
        if position and clock.monotonic() > until:
            return Vouched(tuple(known), position)
        if not any(copy.durable and copy.blob_sha256 == sha256 for copy in copies.get(sop_uid, ())):
            continue
        if sha256 not in whole:
            flaw = flaw_of(blobs, sha256)
            whole[sha256] = not flaw
            if flaw:
                logger.error("upload.damaged", extra={"blob": sha256[:12], "code": flaw})
        if whole[sha256]:
            known.append(position)
    return Vouched(tuple(known), len(pairs))


def flaw_of(blobs: BlobStore, sha256: str) -> str:
    """The code of what is wrong with the blob; empty where its bytes on the disk give its name."""
    try:
        _read_anew(blobs.path(sha256))
        blobs.verify(sha256)
    except HeimdallrError as error:
        return error.code
    return ""


def _read_anew(path: Path) -> None:
    """What is read of the file next comes from the disk and not from memory, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
