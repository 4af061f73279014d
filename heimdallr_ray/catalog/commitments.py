"""Requests for storage commitment: asked, leased to one worker, told, or given up. Source: PS3.4 annex J.

A request is a row before its sender hears Success. One worker at a time holds it, and one report at a time goes to one
application entity: some devices accept a single association for reports. `fence` grows with each claim; who holds an
older one changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, CursorResult, and_, func, or_, text, update
from sqlalchemy import select as sa_select
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.tables import CommitmentRow, InstanceRow
from heimdallr_ray.errors import StaleLease

BACKOFF_FIRST_S = 5.0
BACKOFF_LAST_S = 3600.0
"""Between two attempts to reach a peer; the wait doubles from the first to the last."""
CLOCK_SLACK_S = 5.0
"""A time that was written later than this from now was written before somebody set the clock back."""
_CHUNK = 500
"""Values per IN list: below SQLite's 999 of old builds."""
_DETAIL_LIMIT = 500
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
class CommitmentLease:
    """A request that one worker holds."""

    id: str
    fence: int
    owner: str
    transaction_uid: str
    calling_ae: str
    references: tuple[Reference, ...]
    failures: tuple[Failure, ...]
    asked_at: datetime
    checked_at: datetime | None
    attempt: int
    refusals: int


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


def backoff_s(attempt: int) -> float:
    """How long to wait after `attempt` failures in a row, at least one."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 30), BACKOFF_LAST_S)


def record_request(session: Session, request: CommitmentRequest, now: datetime, run_at: datetime) -> Recorded:
    """The request is a row, in the caller's transaction; its report is due at `run_at`.

    Asked again with the same references, a request that waits is due at `run_at` too, and one that has ended waits
    again: who asks again has not had the report.
    """
    _lock(session)
    digest = references_sha256(request.references)
    wanted = select(CommitmentRow).where(
        CommitmentRow.calling_ae == request.calling_ae, CommitmentRow.transaction_uid == request.transaction_uid
    )
    row = session.exec(wanted, execution_options={"populate_existing": True}).one_or_none()
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
        if row.state != CommitmentState.WAITING.value:
            row.state, row.ended_at = CommitmentState.WAITING.value, None
            row.checked_at, row.n_failed, row.failures = None, None, []
            row.error_code = row.error = None
        session.add(row)
        asked = Asked.AGAIN
    session.flush()
    _event(session, "commitment.asked", row.id, now, request.calling_ae, n_items=row.n_items, asked=asked.value)
    return Recorded(asked, row.id)


def claim(session: Session, owner: str, now: datetime, lease_s: float) -> CommitmentLease | None:
    """The request that has been due longest and whose peer no other worker talks to, now `owner`'s; None: nothing due.

    Waits and leases that were written before somebody set the clock back have ended.
    """
    _lock(session)
    longest = now + timedelta(seconds=lease_s + CLOCK_SLACK_S)
    live = and_(col(CommitmentRow.lease_until) > now, col(CommitmentRow.lease_until) <= longest)
    due = (
        select(CommitmentRow)
        .where(
            _due(now),
            col(CommitmentRow.calling_ae).not_in(select(CommitmentRow.calling_ae).where(live)),
        )
        .order_by(col(CommitmentRow.run_at), col(CommitmentRow.asked_at), col(CommitmentRow.id))
        .limit(1)
    )
    row = session.exec(due, execution_options={"populate_existing": True}).first()
    if row is None:
        return None
    row.fence += 1
    row.owner = owner[:64]
    row.lease_until = now + timedelta(seconds=lease_s)
    session.add(row)
    session.flush()
    return CommitmentLease(
        id=row.id,
        fence=row.fence,
        owner=row.owner,
        transaction_uid=row.transaction_uid,
        calling_ae=row.calling_ae,
        references=tuple(Reference(*item) for item in row.items),
        failures=tuple(Failure(*item) for item in row.failures),
        asked_at=row.asked_at,
        checked_at=row.checked_at,
        attempt=row.attempt,
        refusals=row.refusals,
    )


def anything_due(session: Session, now: datetime) -> bool:
    """True where a claim may find something; a look that takes no lock."""
    waiting = select(CommitmentRow.id).where(_due(now))
    return session.exec(waiting.limit(1)).first() is not None


def renew(session: Session, lease: CommitmentLease, now: datetime, lease_s: float) -> None:
    """The lease lasts `lease_s` from now on.

    Raises:
        StaleLease: another worker holds the request.
    """
    _fenced(session, lease, {"lease_until": now + timedelta(seconds=lease_s)})


def record_check(session: Session, lease: CommitmentLease, failures: Sequence[Failure], now: datetime) -> None:
    """What the instances were found to be is kept for the attempts to come.

    Raises:
        StaleLease: another worker holds the request.
    """
    found = [list(failure) for failure in failures]
    _fenced(session, lease, {"failures": found, "n_failed": len(failures), "checked_at": now})


def postpone(session: Session, lease: CommitmentLease, now: datetime, pause_s: float) -> None:
    """The request waits `pause_s` more, without having failed.

    Raises:
        StaleLease: another worker holds the request.
    """
    run_at = now + timedelta(seconds=pause_s)
    _fenced(session, lease, {"run_at": run_at, "set_at": now, "owner": None, "lease_until": None})


def record_failure(
    session: Session,
    lease: CommitmentLease,
    now: datetime,
    code: str,
    detail: str,
    *,
    refused: bool = False,
    of_peer: bool = True,
) -> datetime:
    """The report did not get through; returns when it is tried again.

    Args:
        session: The caller's transaction.
        lease: The attempt.
        now: Of the database.
        code: Why, as a word of ours.
        detail: For a person; no patient data.
        refused: The peer has answered the report with a failure.
        of_peer: The peer could not be reached, so its other requests wait as long: one attempt at a time tells
            whether it is back.

    Raises:
        StaleLease: another worker holds the request.
    """
    run_at = now + timedelta(seconds=backoff_s(lease.attempt + 1))
    values: dict[str, Any] = {
        "run_at": run_at,
        "set_at": now,
        "attempt": lease.attempt + 1,
        "refusals": lease.refusals + refused,
        "owner": None,
        "lease_until": None,
        "error_code": code[:64],
        "error": detail[:_DETAIL_LIMIT],
    }
    _fenced(session, lease, values)
    if of_peer:
        others = update(CommitmentRow).where(
            col(CommitmentRow.calling_ae) == lease.calling_ae,
            col(CommitmentRow.state) == CommitmentState.WAITING.value,
            col(CommitmentRow.run_at) < run_at,
        )
        session.connection().execute(others.values(run_at=run_at, set_at=now))
    return run_at


def record_told(session: Session, lease: CommitmentLease, now: datetime, n_failed: int, detail: str | None) -> None:
    """The peer has the report; its other requests, which may have waited for it to come back, are due.

    Raises:
        StaleLease: another worker holds the request.
    """
    _end(session, lease, CommitmentState.TOLD, now, None, detail)
    waiting = update(CommitmentRow).where(
        col(CommitmentRow.calling_ae) == lease.calling_ae,
        col(CommitmentRow.state) == CommitmentState.WAITING.value,
        col(CommitmentRow.refusals) == 0,
        col(CommitmentRow.run_at) > now + timedelta(seconds=BACKOFF_FIRST_S),
    )
    session.connection().execute(waiting.values(run_at=now, set_at=now))
    counts = {"n_items": len(lease.references), "n_failed": n_failed}
    _event(session, "commitment.told", lease.id, now, lease.calling_ae, **counts)


def give_up(session: Session, lease: CommitmentLease, now: datetime, code: str, detail: str) -> None:
    """No report will be sent for this request unless the peer asks again.

    Raises:
        StaleLease: another worker holds the request.
    """
    _end(session, lease, CommitmentState.GIVEN_UP, now, code, detail)
    _event(session, "commitment.given_up", lease.id, now, lease.calling_ae, code=code)


def free_dead_owners(session: Session, is_dead: Callable[[str], bool]) -> int:
    """Requests of workers that are certainly gone need not wait for their lease to run out; returns how many."""
    _lock(session)
    held = select(CommitmentRow.id, CommitmentRow.owner, CommitmentRow.fence).where(
        CommitmentRow.state == CommitmentState.WAITING.value, col(CommitmentRow.owner).is_not(None)
    )
    freed = 0
    for row_id, owner, fence in session.exec(held).all():
        if is_dead(owner or ""):
            statement = update(CommitmentRow).where(col(CommitmentRow.id) == row_id, col(CommitmentRow.fence) == fence)
            session.connection().execute(statement.values(owner=None, lease_until=None))
            freed += 1
    return freed


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


def _end(
    session: Session,
    lease: CommitmentLease,
    state: CommitmentState,
    now: datetime,
    code: str | None,
    detail: str | None,
) -> None:
    values: dict[str, Any] = {
        "state": state.value,
        "ended_at": now,
        "owner": None,
        "lease_until": None,
        "error_code": None if code is None else code[:64],
        "error": None if detail is None else detail[:_DETAIL_LIMIT],
    }
    _fenced(session, lease, values)


def _fenced(session: Session, lease: CommitmentLease, values: Mapping[str, Any]) -> None:
    statement = (
        update(CommitmentRow)
        .where(
            col(CommitmentRow.id) == lease.id,
            col(CommitmentRow.fence) == lease.fence,
            col(CommitmentRow.state) == CommitmentState.WAITING.value,
        )
        .values(**values)
    )
    changed = cast("CursorResult[Any]", session.connection().execute(statement))
    if changed.rowcount != 1:
        raise StaleLease("another worker answers this commitment request")


def _due(now: datetime) -> ColumnElement[bool]:
    return and_(
        col(CommitmentRow.state) == CommitmentState.WAITING.value,
        or_(col(CommitmentRow.run_at) <= now, col(CommitmentRow.set_at) > now + timedelta(seconds=CLOCK_SLACK_S)),
    )


def _lock(session: Session) -> None:
    """Asking and claiming are one at a time; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _OUTBOX_LOCK})


def _bounded(value: str | None) -> str | None:
    return value[:64] if value else None


def _event(session: Session, kind: str, commitment_id: str, now: datetime, peer: str, **facts: object) -> None:
    payload: dict[str, Any] = {"commitment": commitment_id, "peer": peer, **facts}
    record_event(session, kind, now=now, actor=_ACTOR, payload=payload)
