"""With durability = study an image is acknowledged before the disk has it: made sure of here, before its study closes.

A process that dies loses nothing, because the kernel still has the bytes. Only a power cut can take them; after one,
what it took is found by its digest, taken out of the catalog and told.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.durability import Undurable, mark_durable, take_back, undurable
from heimdallr_ray.catalog.studies import study_by_uid
from heimdallr_ray.errors import BlobMissing
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.room import storage_error
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

MAX_PER_SCAN = 20_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def harden(
    database: Database, blobs: BlobStore, study_ids: Collection[str], now: datetime, actor: str
) -> frozenset[str]:
    """All bytes of these studies are on the disk, and their rows say so; returns the studies of which that is true.

    Raises:
        Retryable: the database or the disk does not answer now.
    """
    with database.read() as session:
        rows = undurable(session, study_ids, MAX_PER_SCAN + 1)
    # One that has too many is left to the next time, when the others are done.
    left = {rows[-1].study_id} if len(rows) > MAX_PER_SCAN else set[str]()
    if rows:
        missing = set(blobs.harden(Sha256(row.blob_sha256) for row in rows))
        lost = [row for row in rows if row.blob_sha256 in missing]
        with database.write() as session:
            mark_durable(session, [row.id for row in rows if row.blob_sha256 not in missing])
            if lost:
                take_back(session, lost, now=now, actor=actor)
        left |= {row.study_id for row in lost}
    return frozenset(study_ids) - left


def harden_study(database: Database, blobs: BlobStore, study_uid: str, now: datetime, actor: str) -> None:
    """As `harden`, for the one study that a person is about to close; nothing happens where there is no such study.

    Raises:
        Retryable: the database or the disk does not answer now.
    """
    with database.read() as session:
        study = study_by_uid(session, study_uid)
    if study is not None:
        harden(database, blobs, [study.id], now, actor)


def after_power_cut(
    database: Database, blobs: BlobStore, folder: Path, quarantine: Path, now: datetime, actor: str
) -> int:
    """Where the machine was started anew since the last time, rows whose bytes it lost are gone; returns how many.

    Raises:
        Retryable: the database or the disk does not answer now.
    """
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        mark = folder / "boot_id"
        known = mark.read_text(encoding="ascii").strip() if mark.exists() else ""
    except OSError as error:
        raise storage_error(error) from error
    if boot == known:
        return 0
    with database.read() as session:
        rows = undurable(session, None, MAX_PER_SCAN)
    lost = [row for row in rows if not _whole(blobs, row, quarantine)]
    if lost:
        logger.error("intake.lost_in_power_cut", extra={"images": len(lost)})
        with database.write() as session:
            take_back(session, lost, now=now, actor=actor)
    if len(rows) < MAX_PER_SCAN:
        try:
            mark.write_text(boot, encoding="ascii")
        except OSError as error:
            raise storage_error(error) from error
    return len(lost)


def _whole(blobs: BlobStore, row: Undurable, quarantine: Path) -> bool:
    try:
        blobs.verify(row.blob_sha256)
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
