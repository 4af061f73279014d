"""With durability = study an image is acknowledged before the disk has it: made sure of here, before its study closes.

A process that dies loses nothing, because the kernel still has the bytes. Only a power cut can take them; after one,
what it took is found by its digest, taken out of the catalog and told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.durability import Undurable, mark_durable, take_back, undurable
from heimdallr_ray.errors import BlobMissing, StorageFailed
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.boot import boot_id
from heimdallr_ray.listener.room import storage_error
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

MAX_PER_SCAN = 20_000
MAX_SCANS = 1000
_MARK = "boot_id"


def harden(
    database: Database, blobs: BlobStore, study_ids: Collection[str], now: datetime, actor: str
) -> frozenset[str]:
    """All bytes of these studies are on the disk, and their rows say so; returns the studies of which that is true.

    Of an image that the disk refuses its study is not one of them, which is logged.

    Raises:
        Retryable: the database does not answer now.
    """
    with database.read() as session:
        rows = undurable(session, study_ids, MAX_PER_SCAN + 1)
    left = set[str]()
    if len(rows) > MAX_PER_SCAN:
        # They come study by study: the last one may have more, and of those not seen nothing is known.
        left = set(study_ids) - {row.study_id for row in rows} | {rows[-1].study_id}
    if rows:
        missing, refused = _hardened(blobs, rows)
        lost = [row for row in rows if row.blob_sha256 in missing]
        soft = missing | refused
        with database.write() as session:
            mark_durable(session, [row.id for row in rows if row.blob_sha256 not in soft])
            take_back(session, lost, blobs.exists, now=now, actor=actor)
        left |= {row.study_id for row in rows if row.blob_sha256 in soft}
    return frozenset(study_ids) - left


def _hardened(blobs: BlobStore, rows: Sequence[Undurable]) -> tuple[set[str], set[str]]:
    """The bytes of `rows` are on the disk but for two sets of digests: those that are not there, and those refused."""
    digests = [Sha256(row.blob_sha256) for row in rows]
    try:
        return set(blobs.harden(digests)), set()
    except StorageFailed:
        missing, refused = set[str](), set[str]()
        for row in rows:
            try:
                missing.update(blobs.harden([Sha256(row.blob_sha256)]))
            except StorageFailed as error:
                refused.add(row.blob_sha256)
                logger.warning(
                    "image.not_made_durable",
                    extra={"study_id": row.study_id, "sha256": row.blob_sha256[:12], "reason": error.detail},
                )
        return missing, refused


def is_new_boot(folder: Path) -> bool:
    """True where the machine was started anew since `remember_boot` was called for `folder`, or it never was.

    Raises:
        StorageFailed: that cannot be read.
    """
    try:
        mark = folder / _MARK
        return not mark.exists() or mark.read_text(encoding="ascii").strip() != boot_id()
    except OSError as error:
        raise storage_error(error) from error


def remember_boot(folder: Path) -> None:
    """What the last power cut may have taken has been looked for.

    Raises:
        StorageFull, StorageFailed: that cannot be written.
    """
    try:
        (folder / _MARK).write_text(boot_id(), encoding="ascii")
    except OSError as error:
        raise storage_error(error) from error


def take_back_lost(database: Database, blobs: BlobStore, quarantine: Path, now: datetime, actor: str) -> int:
    """After a power cut: of all rows that it may have harmed, those whose bytes it took are gone, the others are hard.

    Returns:
        How many are gone.

    Raises:
        Retryable: the database or the disk does not answer now; what was looked at need not be looked at again.
    """
    n_lost = 0
    unknown = set[str]()
    for _ in range(MAX_SCANS):
        with database.read() as session:
            rows = undurable(session, None, MAX_PER_SCAN)
        if len(unknown) >= MAX_PER_SCAN:
            raise StorageFailed("the disk gives back next to nothing")
        rows = [row for row in rows if row.id not in unknown]
        if not rows:
            return n_lost
        seen = {row.id: _whole(blobs, row, quarantine) for row in rows}
        lost = [row for row in rows if seen[row.id] is False]
        whole = [row for row in rows if seen[row.id]]
        # One that cannot be read may be whole: nothing is said of it, and it keeps the others from nothing.
        unknown.update(row.id for row in rows if seen[row.id] is None)
        missing, refused = _hardened(blobs, whole)
        unknown.update(row.id for row in whole if row.blob_sha256 in missing | refused)
        whole = [row for row in whole if row.id not in unknown]
        # Of every row one or the other becomes true, so that the next turn finds others, and what came again meanwhile.
        with database.write() as session:
            mark_durable(session, [row.id for row in whole])
            n_gone = take_back(session, lost, blobs.exists, now=now, actor=actor)
        n_lost += n_gone
        logger.log(
            logging.ERROR if n_gone else logging.INFO,
            "intake.looked_for_losses",
            extra={"images": len(rows), "lost": n_gone},
        )
    raise StorageFailed("more images came while those of before the power cut were looked at")


def _whole(blobs: BlobStore, row: Undurable, quarantine: Path) -> bool | None:
    """True where the bytes give their digest, None where they cannot be read."""
    try:
        blobs.verify(row.blob_sha256)
    except StorageFailed as error:
        logger.warning(
            "image.unreadable",
            extra={"study_id": row.study_id, "sha256": row.blob_sha256[:12], "reason": error.detail},
        )
        return None
    except BlobMissing:
        # The damaged bytes make place for the image when it is sent again.
        damaged = blobs.locate(row.blob_sha256)
        try:
            if damaged.exists():
                damaged.rename(quarantine / f"{row.blob_sha256}.lost")
                os.sync()
        except OSError as error:
            raise storage_error(error) from error
        return False
    return True
