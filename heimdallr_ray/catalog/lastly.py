"""Work that a transaction does last, after everything else and before its commit.

What is numbered or chained in the order of commits (the audit chain) must be written under a lock that is held until
the commit. Taken last, the lock is held for a moment only, and nobody who holds it ever waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sqlmodel import Session

LAST = "heimdallr_last"
Work = Callable[[Session], None]


def before_commit(session: Session, work: Work) -> None:
    """`work` will be done in the session's transaction, just before its commit; not at all where it is rolled back.

    Raises:
        RuntimeError: the session is none of `Database.write()`.
    """
    pending = cast("list[Work] | None", session.info.get(LAST))
    if pending is None:
        raise RuntimeError("before_commit() outside of Database.write()")
    pending.append(work)


def run_last(session: Session) -> None:
    """All work that was left for the end is done; nothing but the commit may follow."""
    for work in cast("list[Work]", session.info.get(LAST, [])):
        work(session)
    session.info[LAST] = []
