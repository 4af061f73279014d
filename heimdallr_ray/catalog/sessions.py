"""Uploads in several requests: one row of `association`, open from the first request to the last.

A client that goes away tells of no end: its studies are then closed like those of an aborted association, and the row
is lost (listener/completion.py). A client that comes back opens it again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from sqlmodel import Session, col, update

from heimdallr_ray.catalog.associations import AssociationOpened, record_opened
from heimdallr_ray.catalog.states import How
from heimdallr_ray.catalog.tables import AssociationRow


def touch_session(session: Session, opened: AssociationOpened) -> None:
    """The intake is open as of `opened.opened_at`, also where it had ended."""
    done = session.connection().execute(
        update(AssociationRow)
        .where(col(AssociationRow.id) == opened.id)
        .values(
            opened_at=opened.opened_at,
            actor_kind=opened.actor_kind,
            actor_name=opened.actor_name,
            address=opened.address,
            closed_at=None,
            how=None,
            reason=None,
        )
    )
    if not cast(Any, done).rowcount:
        record_opened(session, [opened])


def end_session(session: Session, intake_id: str, now: datetime) -> None:
    """The intake has ended as its client wanted."""
    session.connection().execute(
        update(AssociationRow)
        .where(col(AssociationRow.id) == intake_id, col(AssociationRow.closed_at).is_(None))
        .values(closed_at=now, how=How.RELEASED.value)
    )


def count_request(session: Session, intake_id: str, *, stored: int, duplicates: int, refused: int, size: int) -> None:
    """The intake's row counts one more request: `stored` objects answered as stored, `duplicates` of them known."""
    row = AssociationRow
    session.connection().execute(
        update(row)
        .where(col(row.id) == intake_id)
        .values(
            stored=col(row.stored) + stored,
            duplicates=col(row.duplicates) + duplicates,
            refused=col(row.refused) + refused,
            n_bytes=col(row.n_bytes) + size,
        )
    )
