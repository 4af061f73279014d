"""Who may tell a peer what became of its request: claimed, renewed, told, failed, given up.

One worker at a time holds a request, and one report at a time goes to one application entity: some devices accept a
single association for reports. `fence` grows with each claim; who holds an older one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, and_, or_, update
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.commitments import (
    CommitmentState,
    Failure,
    Reference,
    lock_outbox,
    record_commitment_event,
)
from heimdallr_ray.catalog.tables import CommitmentRow
from heimdallr_ray.errors import StaleLease

BACKOFF_FIRST_S = 5.0
BACKOFF_LAST_S = 3600.0
"""Between two attempts to reach a peer; the wait doubles from the first to the last."""
CLOCK_SLACK_S = 5.0
"""A time that was written later than this from now was written before somebody set the clock back."""
_DETAIL_LIMIT = 500


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


def backoff_s(attempt: int) -> float:
    """How long to wait after `attempt` failures in a row, at least one."""
    return min(BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 30), BACKOFF_LAST_S)


def anything_due(session: Session, now: datetime) -> bool:
    """True where a claim may find something; a look that takes no lock."""
    waiting = select(CommitmentRow.id).where(_due(now))
    return session.exec(waiting.limit(1)).first() is not None


def claim(session: Session, owner: str, now: datetime, lease_s: float) -> CommitmentLease | None:
    """The request that has been due longest and whose peer no other worker talks to, now `owner`'s; None: nothing due.

    Waits and leases that were written before somebody set the clock back have ended.
    """
    lock_outbox(session)
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
    _fenced(session, lease, {"n_failed": n_failed})
    _end(session, lease, CommitmentState.TOLD, now, None, detail)
    waiting = update(CommitmentRow).where(
        col(CommitmentRow.calling_ae) == lease.calling_ae,
        col(CommitmentRow.state) == CommitmentState.WAITING.value,
        col(CommitmentRow.refusals) == 0,
        col(CommitmentRow.run_at) > now + timedelta(seconds=BACKOFF_FIRST_S),
    )
    session.connection().execute(waiting.values(run_at=now, set_at=now))
    counts = {"n_items": len(lease.references), "n_failed": n_failed}
    record_commitment_event(session, "commitment.told", lease.id, now, lease.calling_ae, **counts)


def give_up(session: Session, lease: CommitmentLease, now: datetime, code: str, detail: str) -> None:
    """No report will be sent for this request unless the peer asks again.

    Raises:
        StaleLease: another worker holds the request.
    """
    _end(session, lease, CommitmentState.GIVEN_UP, now, code, detail)
    record_commitment_event(session, "commitment.given_up", lease.id, now, lease.calling_ae, code=code)


def free_dead_owners(session: Session, is_dead: Callable[[str], bool]) -> int:
    """Requests of workers that are certainly gone need not wait for their lease to run out; returns how many."""
    lock_outbox(session)
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
