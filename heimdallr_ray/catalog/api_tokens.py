"""Rows of tokens: made, found by digest, revoked. Which token may do what is decided in security/."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, or_, select, update

from heimdallr_ray.catalog.tables import ApiTokenRow
from heimdallr_ray.errors import NotFound, TokenExists
from heimdallr_ray.ids import Sha256

USE_EVERY = timedelta(minutes=1)
"""How exactly the last use is known: not every request writes."""


def create_token(
    session: Session,
    name: str,
    sha256: Sha256,
    scopes: str,
    *,
    now: datetime,
    created_by: str,
    expires_at: datetime | None = None,
) -> ApiTokenRow:
    """The token is known from the commit on.

    Raises:
        TokenExists: the name was used before, be it of a revoked token.
    """
    row = ApiTokenRow(
        name=name, sha256=sha256, scopes=scopes, created_by=created_by[:64], created_at=now, expires_at=expires_at
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise TokenExists(f"there is or was a token {name}: take another name") from error
    return row


def find_token(session: Session, sha256: Sha256) -> ApiTokenRow | None:
    """The token of this digest, also an expired or revoked one; None where there is none."""
    return session.exec(select(ApiTokenRow).where(ApiTokenRow.sha256 == sha256)).one_or_none()


def list_tokens(session: Session, limit: int = 1000) -> Sequence[ApiTokenRow]:
    """The tokens by name, revoked ones too, at most `limit`."""
    return session.exec(select(ApiTokenRow).order_by(col(ApiTokenRow.name)).limit(limit)).all()


def revoke_token(session: Session, name: str, *, now: datetime) -> ApiTokenRow:
    """The token opens nothing from the commit on. A second time changes nothing.

    Raises:
        NotFound: there is no such token.
    """
    row = session.exec(select(ApiTokenRow).where(ApiTokenRow.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no token {name}")
    if row.revoked_at is None:
        row.revoked_at = now
        session.add(row)
        session.flush()
    return row


def note_use(session: Session, sha256: Sha256, *, now: datetime) -> bool:
    """The last use is known to a minute; True where that changed the row."""
    last = col(ApiTokenRow.last_used_at)
    done = session.connection().execute(
        update(ApiTokenRow)
        .where(col(ApiTokenRow.sha256) == sha256, or_(last.is_(None), last < now - USE_EVERY))
        .values(last_used_at=now)
    )
    return cast(Any, done).rowcount > 0
