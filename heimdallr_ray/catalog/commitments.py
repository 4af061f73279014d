"""Requests for storage commitment: asked, counted, and what they ask for looked up. Source: PS3.4 annex J.

A request is a row before its sender hears Success. Who tells its peer is decided in `commitment_leases`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, cast

from sqlalchemy import func, text
from sqlalchemy import select as sa_select
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.tables import CommitmentRow, InstanceRow

MAX_WAITING = 2000
"""Requests of one peer that may wait for their report: a day of the largest hospitals, if one examination asks once."""
_CHUNK = 500
"""Values per IN list: below SQLite's 999 of old builds."""
_OUTBOX_LOCK = 0x4865_696D_6407
_ACTOR = "commitment"


class CommitmentState(StrEnum):
    """What has become of a request."""

    WAITING = "waiting"
    """Its report has not been received by the peer yet."""
    TOLD = "told"
    """The peer has answered the report with Success or a warning."""
    GIVEN_UP = "given_up"
    """No report will be sent unless the peer asks again; the reason stands in the row."""


class Asked(StrEnum):
    """What asking has changed."""

    NEW = "new"
    AGAIN = "again"
    """The same references under the same Transaction UID: one row, and one more report where the last one was told."""
    OTHER = "other"
    """The Transaction UID belongs to other references; nothing changed."""
    TOO_MANY = "too_many"
    """As many requests of this peer wait as may; nothing changed."""


class Recorded(NamedTuple):
    """What asking has changed, and the id of the request's row."""

    asked: Asked
    id: str


class Reference(NamedTuple):
    """One SOP instance of a request."""

    sop_class_uid: str
    sop_instance_uid: str


class Failure(NamedTuple):
    """A reference that cannot be committed: its position in the request, and Failure Reason (0008,1197)."""

    position: int
    reason: int


class StoredCopy(NamedTuple):
    """One row of the catalog that has a SOP Instance UID."""

    id: str
    sop_class_uid: str
    blob_sha256: str
    durable: bool
    """False: a power cut may still take its bytes."""


@dataclass(frozen=True)
class CommitmentRequest:
    """What a peer has asked for. `references` are without repetition, in the order of the request."""

    transaction_uid: str
    references: tuple[Reference, ...]
    calling_ae: str
    address: str | None = None
    association_id: str | None = None


@dataclass(frozen=True)
class PendingCommitment:
    """One request that waits, for an operator."""

    id: str
    calling_ae: str
    n_items: int
    n_failed: int | None
    asked_at: datetime
    run_at: datetime
    attempt: int
    error_code: str | None
    error: str | None


@dataclass(frozen=True)
class CommitmentOutbox:
    """How many requests wait for their report, and since when the oldest."""

    depth: int
    oldest_asked_at: datetime | None
    failing: int
    """Of these, how many have failed at least once."""
    given_up: int
    """Requests in all that were given up."""


def references_sha256(references: Iterable[Reference]) -> str:
    """A digest of the references in their order."""
    digest = hashlib.sha256()
    for reference in references:
        digest.update(f"{reference.sop_class_uid} {reference.sop_instance_uid}\n".encode())
    return digest.hexdigest()


def record_request(session: Session, request: CommitmentRequest, now: datetime, run_at: datetime) -> Recorded:
    """The request is a row, in the caller's transaction; its report is due at `run_at`.

    Asked again with the same references, a request that waits is due at `run_at` too, and one that has ended waits
    again: who asks again has not had the report.
    """
    lock_outbox(session)
    digest = references_sha256(request.references)
    wanted = select(CommitmentRow).where(
        CommitmentRow.calling_ae == request.calling_ae, CommitmentRow.transaction_uid == request.transaction_uid
    )
    row = session.exec(wanted, execution_options={"populate_existing": True}).one_or_none()
    if (row is None or row.state != CommitmentState.WAITING.value) and _waiting(session, request) >= MAX_WAITING:
        return Recorded(Asked.TOO_MANY, "" if row is None else row.id)
    if row is None:
        row = CommitmentRow(
            transaction_uid=request.transaction_uid,
            calling_ae=request.calling_ae,
            address=_bounded(request.address),
            association_id=_bounded(request.association_id),
            state=CommitmentState.WAITING.value,
            items=[list(reference) for reference in request.references],
            items_sha256=digest,
            n_items=len(request.references),
            first_asked_at=now,
            asked_at=now,
            run_at=run_at,
            set_at=now,
        )
        session.add(row)
        asked = Asked.NEW
    elif row.items_sha256 != digest:
        return Recorded(Asked.OTHER, row.id)
    else:
        row.times_asked += 1
        row.asked_at = now
        row.run_at, row.set_at = run_at, now
        row.attempt = row.refusals = 0
        row.address, row.association_id = _bounded(request.address), _bounded(request.association_id)
        # What was missing may have been sent since.
        row.checked_at, row.n_failed, row.failures = None, None, []
        if row.state != CommitmentState.WAITING.value:
            row.state, row.ended_at = CommitmentState.WAITING.value, None
            row.error_code = row.error = None
        session.add(row)
        asked = Asked.AGAIN
    session.flush()
    record_commitment_event(
        session, "commitment.asked", row.id, now, request.calling_ae, n_items=row.n_items, asked=asked.value
    )
    return Recorded(asked, row.id)


def stored_copies(session: Session, sop_instance_uids: Sequence[str]) -> Mapping[str, list[StoredCopy]]:
    """Every row that has one of these SOP Instance UIDs; the same UID may have come with several contents."""
    found: dict[str, list[StoredCopy]] = {}
    for start in range(0, len(sop_instance_uids), _CHUNK):
        wanted = sa_select(
            col(InstanceRow.sop_uid),
            col(InstanceRow.id),
            col(InstanceRow.sop_class_uid),
            col(InstanceRow.blob_sha256),
            col(InstanceRow.durable),
        ).where(col(InstanceRow.sop_uid).in_(sop_instance_uids[start : start + _CHUNK]))
        for sop_uid, row_id, sop_class_uid, blob_sha256, durable in session.connection().execute(wanted):
            found.setdefault(sop_uid, []).append(StoredCopy(row_id, sop_class_uid, blob_sha256, durable))
    return found


def outbox(session: Session) -> CommitmentOutbox:
    """How many requests wait for their report, and since when the oldest."""
    waiting = CommitmentRow.state == CommitmentState.WAITING.value
    depth, oldest = session.exec(
        select(func.count(), func.min(CommitmentRow.first_asked_at)).select_from(CommitmentRow).where(waiting)
    ).one()
    failing = session.exec(
        select(func.count()).select_from(CommitmentRow).where(waiting, col(CommitmentRow.attempt) > 0)
    ).one()
    given_up = session.exec(
        select(func.count()).select_from(CommitmentRow).where(CommitmentRow.state == CommitmentState.GIVEN_UP.value)
    ).one()
    return CommitmentOutbox(int(depth), cast("datetime | None", oldest), int(failing), int(given_up))


def pending(session: Session, limit: int = 100) -> list[PendingCommitment]:
    """Requests that wait for their report, the oldest first."""
    wanted = (
        sa_select(
            col(CommitmentRow.id),
            col(CommitmentRow.calling_ae),
            col(CommitmentRow.n_items),
            col(CommitmentRow.n_failed),
            col(CommitmentRow.asked_at),
            col(CommitmentRow.run_at),
            col(CommitmentRow.attempt),
            col(CommitmentRow.error_code),
            col(CommitmentRow.error),
        )
        .where(col(CommitmentRow.state) == CommitmentState.WAITING.value)
        .order_by(col(CommitmentRow.asked_at), col(CommitmentRow.id))
        .limit(limit)
    )
    return [PendingCommitment(*row) for row in session.connection().execute(wanted)]


def _waiting(session: Session, request: CommitmentRequest) -> int:
    waiting = CommitmentRow.state == CommitmentState.WAITING.value
    wanted = select(func.count()).select_from(CommitmentRow)
    return session.exec(wanted.where(waiting, CommitmentRow.calling_ae == request.calling_ae)).one()


def lock_outbox(session: Session) -> None:
    """Asking and claiming are one at a time; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OUTBOX_LOCK})


def _bounded(value: str | None) -> str | None:
    return value[:64] if value else None


def record_commitment_event(
    session: Session, kind: str, commitment_id: str, now: datetime, peer: str, **facts: object
) -> None:
    """An event of this request will be committed with the caller's transaction; no UIDs."""
    payload: dict[str, Any] = {"commitment": commitment_id, "peer": peer, **facts}
    record_event(session, kind, now=now, actor=_ACTOR, payload=payload)
