"""The intake at a glance: who is connected, who sent last, what is on its way in, how much room there is.

Put together from the database, the spool's folders and what every process tells of itself, so that it can be had
whether the stack runs or not.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from sqlmodel import Session, col, func, select

from heimdallr_ray.catalog import ahead
from heimdallr_ray.catalog.associations import LastSeen, last_seen, last_sender
from heimdallr_ray.catalog.commitments import CommitmentOutbox, outbox
from heimdallr_ray.catalog.conflicts import Contested, contested
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.recording import OPEN
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.config import Settings
from heimdallr_ray.listener.figures import refusals_last_hour
from heimdallr_ray.listener.room import Room, RoomLevel, Watermarks, measure
from heimdallr_ray.listener.snapshots import FOLDER, Snapshot, read_snapshots
from heimdallr_ray.security import audit_entries

MAX_STUDIES: Final = 100
MAX_SENDERS: Final = 100
MAX_CONTESTED: Final = 20
SENDERS_DAYS: Final = 30
MAX_FILES: Final = 100_000
"""Files of a spool folder that are looked at; a spool that deep is told as at least this."""


@dataclass(frozen=True)
class SpoolState:
    """What has been acknowledged and is no row yet, and what could not become one."""

    depth: int
    oldest_s: float | None
    """Age of the oldest file; None where there is none."""
    quarantined: int


@dataclass(frozen=True)
class OpenStudy:
    """A study that images still may come to."""

    study_uid: str
    state: str
    calling_ae: str | None
    """Of whoever sends to its epoch, or was the last to."""
    door: str
    n_instances: int
    first_received_at: datetime
    last_received_at: datetime
    closes_at: datetime | None
    """If nothing more comes; None while that cannot be said."""
    close_reason: str | None


@dataclass(frozen=True)
class IntakeCounts:
    """What the database knows of the intake, in numbers."""

    studies: dict[str, int]
    """Receiving and settling ones."""
    audit_entries: int
    commitments: CommitmentOutbox
    speculations: dict[str, int] = field(default_factory=dict[str, int])
    """Labels made ahead of their studies, by what became of that."""


@dataclass(frozen=True)
class IntakeOverview:
    """The intake of one installation at one moment."""

    at: datetime
    processes: tuple[Snapshot, ...]
    """That tell of themselves on this host, listeners first."""
    studies: tuple[OpenStudy, ...]
    """Those that wait longest first; at most MAX_STUDIES."""
    senders: tuple[LastSeen, ...]
    """Of the last SENDERS_DAYS days, newest first; at most MAX_SENDERS."""
    counts: IntakeCounts
    spool: SpoolState
    room: Room
    level: RoomLevel
    marks: Watermarks
    contested: Contested

    @property
    def refusals(self) -> dict[str, int]:
        """Of the last hour, by what and why."""
        return refusals_last_hour(one.figures for one in self.processes)


def overview(settings: Settings, database: Database, now: datetime) -> IntakeOverview:
    """What is going on.

    Raises:
        Retryable: the database or the disk does not answer now.
        DatabaseUnusable: there is no database, or it has another schema.
    """
    with database.read() as session:
        studies = tuple(open_studies(session, MAX_STUDIES))
        senders = tuple(last_seen(session, MAX_SENDERS, since=now - timedelta(days=SENDERS_DAYS)))
        counts = count(session)
        shared = contested(session, MAX_CONTESTED)
    marks = watermarks(settings)
    room = measure(existing(settings.data_dir))
    return IntakeOverview(
        now,
        tuple(read_snapshots(settings.run_dir / FOLDER, now)),
        studies,
        senders,
        counts,
        spool_state(settings.spool_dir, now),
        room,
        room.level(marks),
        marks,
        shared,
    )


def watermarks(settings: Settings) -> Watermarks:
    """When the doors warn and close."""
    return Watermarks(settings.min_free_mib << 20, settings.disk_warn_percent, settings.disk_refuse_percent)


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def open_studies(session: Session, limit: int) -> list[OpenStudy]:
    """Studies that are received or settle, those whose last image is oldest first."""
    rows = session.exec(
        select(StudyRow)
        .where(col(StudyRow.state).in_([state.value for state in sorted(OPEN)]))
        .order_by(col(StudyRow.last_received_at), col(StudyRow.id))
        .limit(limit)
    ).all()
    senders = [last_sender(session, row.id, row.epoch) for row in rows]
    return [
        OpenStudy(
            row.study_uid,
            row.state,
            row.calling_ae if sender is None else sender.calling_ae,
            row.door if sender is None or sender.door is None else sender.door,
            row.n_instances,
            row.first_received_at,
            row.last_received_at,
            row.closes_at,
            row.close_reason,
        )
        for row, sender in zip(rows, senders, strict=True)
    ]


def count(session: Session) -> IntakeCounts:
    """A handful of numbers, each by an index."""
    states = {state.value: 0 for state in sorted(OPEN)}
    found = session.exec(
        select(StudyRow.state, func.count()).where(col(StudyRow.state).in_(list(states))).group_by(StudyRow.state)
    ).all()
    head = audit_entries.head(session)
    return IntakeCounts(
        states | {state: int(number) for state, number in found},
        head.entries if head else 0,
        outbox(session),
        ahead.counts(session),
    )


def spool_state(spool_dir: Path, now: datetime) -> SpoolState:
    """What lies in the spool. Looks at names and times only, and at no more than MAX_FILES of them."""
    depth, oldest = _files(spool_dir / "ready")
    quarantined, _ = _files(spool_dir / "quarantine")
    return SpoolState(depth, None if oldest is None else max(0.0, now.timestamp() - oldest), quarantined)


def _files(folder: Path) -> tuple[int, float | None]:
    number, oldest = 0, None
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(".dcm"):
                continue
            # Gone in between: it has become a row.
            with suppress(FileNotFoundError):
                written_at = entry.stat(follow_symlinks=False).st_mtime
                number, oldest = number + 1, written_at if oldest is None else min(oldest, written_at)
            if number >= MAX_FILES:
                break
    return number, oldest
