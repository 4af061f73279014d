"""What each reference of a commitment request is found to be: rows of the catalog, and bytes read from the disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

from heimdallr_ray.catalog.commitment_leases import CommitmentLease
from heimdallr_ray.catalog.commitments import Failure, Reference, StoredCopy, stored_copies
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.durability import mark_durable
from heimdallr_ray.clock import Clock
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.commitment_report import FailureReason, failures_of
from heimdallr_ray.listener.vouching import flaw_of
from heimdallr_ray.storage.blobs import BlobStore

logger = logging.getLogger(__name__)

RENEW_EVERY_S: Final = 20.0
FLUSH_TIMEOUT_S: Final = 10.0
MISSING_GRACE_S: Final = 5.0
"""An instance may have been acknowledged by another listener process a moment ago and not be a row yet."""
FLUSH_PATIENCE_S: Final = 600.0
"""How long missing instances are waited for while the spool cannot be committed (no database, no room)."""


class Flush(Protocol):
    """Makes rows of what was acknowledged."""

    def __call__(self, timeout_s: float, /) -> bool:
        """True once all that this process acknowledged is a row."""
        ...


class NotYet(Exception):
    """Instances may still become rows; a signal between this module and the worker."""


class InstanceCheck:
    """Looks at the instances of one request after another; holds no state."""

    def __init__(
        self, database: Database, blobs: BlobStore, clock: Clock, flush: Flush, missing_grace_s: float = MISSING_GRACE_S
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._flush = flush
        self._missing_grace_s = missing_grace_s

    def __call__(self, lease: CommitmentLease, now: datetime, renew: Callable[[], None]) -> tuple[Failure, ...]:
        """What each reference is found to be.

        Raises:
            NotYet: an instance is missing that may become a row soon.
            StorageFull, StorageFailed: it cannot be made sure of that the disk has all bytes.
            StaleLease: the request was lost while the disk was read.
        """
        uids = sorted({reference.sop_instance_uid for reference in lease.references})
        copies = self._copies(uids)
        if len(copies) < len(uids):
            flushed = self._flush(FLUSH_TIMEOUT_S)
            copies = self._copies(uids)
            age_s = abs((now - lease.asked_at).total_seconds())
            if len(copies) < len(uids) and age_s < (self._missing_grace_s if flushed else FLUSH_PATIENCE_S):
                raise NotYet
        self._make_durable(copies)
        renew()
        renewed = self._clock.monotonic()
        verified: dict[str, bool] = {}
        reasons: list[FailureReason | None] = []
        for reference in lease.references:
            reasons.append(self._judge(reference, copies.get(reference.sop_instance_uid, ()), verified))
            if self._clock.monotonic() - renewed > RENEW_EVERY_S:
                renewed = self._clock.monotonic()
                renew()
        return failures_of(reasons)

    def _make_durable(self, copies: Mapping[str, Sequence[StoredCopy]]) -> None:
        """No power cut takes what is committed, also where images are acknowledged before the disk has them.

        What the last power cut took was looked for before (`CommitmentWorker.step`): fsync makes bytes last, not right.
        """
        loose = [copy for group in copies.values() for copy in group if not copy.durable]
        if not loose:
            return
        missing = set(self._blobs.harden(Sha256(copy.blob_sha256) for copy in loose))
        with self._database.write() as session:
            mark_durable(session, [copy.id for copy in loose if copy.blob_sha256 not in missing])

    def _copies(self, uids: Sequence[str]) -> Mapping[str, list[StoredCopy]]:
        with self._database.read() as session:
            return stored_copies(session, uids)

    def _judge(
        self, reference: Reference, copies: Sequence[StoredCopy], verified: dict[str, bool]
    ) -> FailureReason | None:
        """None where every copy of the reference is whole: which one was meant is not known."""
        if not copies:
            return FailureReason.NO_SUCH_INSTANCE
        meant = [copy for copy in copies if copy.sop_class_uid == reference.sop_class_uid]
        if not meant:
            return FailureReason.CLASS_INSTANCE_CONFLICT
        for copy in meant:
            if copy.blob_sha256 not in verified:
                flaw = flaw_of(self._blobs, copy.blob_sha256)
                verified[copy.blob_sha256] = not flaw
                if flaw:
                    logger.error("commitment.damaged", extra={"blob": copy.blob_sha256[:12], "code": flaw})
        return None if all(verified[copy.blob_sha256] for copy in meant) else FailureReason.PROCESSING_FAILURE
