"""Study states and the one table of allowed transitions; job states; urgency and priority."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from heimdallr_ray.errors import IllegalTransition


class StudyState(StrEnum):
    """Where a study stands. The running step is a column of its own."""

    RECEIVING = "receiving"
    SETTLING = "settling"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


TERMINAL = frozenset(
    {StudyState.DONE, StudyState.FAILED, StudyState.NOT_APPLICABLE, StudyState.CANCELLED, StudyState.SUPERSEDED}
)

TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    # Failed without a run: it was open for longer than the site allows.
    StudyState.RECEIVING: frozenset({StudyState.SETTLING, StudyState.QUEUED, StudyState.FAILED, StudyState.CANCELLED}),
    StudyState.SETTLING: frozenset({StudyState.RECEIVING, StudyState.QUEUED, StudyState.FAILED, StudyState.CANCELLED}),
    # A late image opens the next epoch from any state after the study was closed.
    StudyState.QUEUED: frozenset({StudyState.RUNNING, StudyState.RECEIVING, StudyState.FAILED, StudyState.CANCELLED}),
    # Back to queued: the lease ran out or the attempt failed and another is left.
    StudyState.RUNNING: frozenset(
        {
            StudyState.DONE,
            StudyState.FAILED,
            StudyState.NOT_APPLICABLE,
            StudyState.CANCELLED,
            StudyState.QUEUED,
            StudyState.RECEIVING,
        }
    ),
    StudyState.DONE: frozenset({StudyState.RECEIVING, StudyState.QUEUED, StudyState.SUPERSEDED}),
    StudyState.FAILED: frozenset({StudyState.RECEIVING, StudyState.QUEUED, StudyState.CANCELLED}),
    StudyState.NOT_APPLICABLE: frozenset({StudyState.RECEIVING, StudyState.QUEUED, StudyState.SUPERSEDED}),
    StudyState.CANCELLED: frozenset({StudyState.RECEIVING, StudyState.QUEUED}),
    StudyState.SUPERSEDED: frozenset(),
}


def require_transition(old: StudyState, new: StudyState) -> None:
    """Nothing happens where the transition is allowed.

    Raises:
        IllegalTransition: `new` cannot follow `old`.
    """
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{old} -> {new}")


class JobState(StrEnum):
    """Where a queue row stands. An expired lease is still `running` until somebody claims it."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


class EngineCallState(StrEnum):
    """What became of a study inside an engine; a study that left it alive leaves no row."""

    INSIDE = "inside"
    DIED = "died"
    GUILTY = "guilty"
    """The engine died, and later died under this study alone: what else was inside it is cleared."""


class Urgency(StrEnum):
    """Our urgency of a study; P0 is the most urgent."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"
    P3 = "P3"

    @property
    def word(self) -> str:
        """The word shown beside the class."""
        return {"P0": "CRITICAL", "P1": "URGENT", "P2": "SOON", "P3": "ROUTINE"}[self.value]


class JobPriority:
    """Queue priority: smaller runs first. Live classes before batch."""

    LIVE: ClassVar[dict[Urgency, int]] = {Urgency.P0: 0, Urgency.P1: 1, Urgency.P2: 2, Urgency.P3: 3}
    BATCH = 9
    AHEAD = 20
    """Behind batch, however long it waits: no job rises by more than the levels between batch and live work."""


class Door(StrEnum):
    """The way an instance came in."""

    DICOM = "dicom"
    UPLOAD = "upload"
    STOW = "stow"


class How(StrEnum):
    """How an association ended."""

    RELEASED = "released"
    """As both sides wanted: A-RELEASE (PS3.8 section 7.2), or an answered request."""
    ABORTED = "aborted"
    """By either side, or the connection broke."""
    LOST = "lost"
    """Nobody saw it end. A guess, which gives way to a later word of the door."""
