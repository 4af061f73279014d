"""Which study is inside which segmentation engine, and whose deaths of engines count.

An engine that dies (a crash in native code, the system's out-of-memory killer) leaves no word, so each study is written
down before the engine begins on it and struck out when it is through. What still stands when the process is gone was
inside. Two studies may have been; then both are suspects and each is alone in the engine from then on. The second death
convicts a study, and whoever shared its earlier ones is cleared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from sqlalchemy import CursorResult, bindparam, text
from sqlmodel import Session

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.states import EngineCallState
from heimdallr_ray.catalog.types import UtcDateTime
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import EngineKilled, StaleLease
from heimdallr_ray.queue import statements
from heimdallr_ray.queue.lease import Lease

MAX_DEATHS = 2
"""Deaths of an engine under a study until the study is set aside: the first may have had another cause."""
ENGINE_DIED = "engine.died"
_INSIDE, _DIED, _GUILTY = (f"'{state.value}'" for state in EngineCallState)

# Invariant: a job has one holder, so what an earlier one left behind says nothing any more.
_FORGET = text(f"DELETE FROM engine_call WHERE job_id = :job_id AND state = {_INSIDE}")  # noqa: S608
_ENTER = text(f"""
    INSERT INTO engine_call (id, job_id, fence, input_hash, replica, node, state, began_at)
    VALUES (:id, :job_id, :fence, :input_hash, :replica, :node, {_INSIDE}, :now)
""").bindparams(bindparam("now", type_=UtcDateTime()))  # noqa: S608
# Invariant: a death that was counted stays counted.
_LEAVE = text(f"DELETE FROM engine_call WHERE id = :id AND state = {_INSIDE}")  # noqa: S608
_FIND = text(f"SELECT replica, node FROM engine_call WHERE id = :id AND state = {_INSIDE}")  # noqa: S608
# Invariant: a call dies once.
_DIE = text(f"""
    UPDATE engine_call SET state = {_DIED} WHERE id = :id AND job_id = :job_id AND state = {_INSIDE}
 RETURNING input_hash
""")  # noqa: S608
_ANY = text(f"""
    SELECT 1 FROM engine_call WHERE job_id = :job_id AND input_hash = :input_hash AND state <> {_INSIDE} LIMIT 1
""")  # noqa: S608
# Invariant: a death of which another study was convicted counts for nobody else.
_COUNT = text(f"""
    SELECT count(*) FROM engine_call AS mine
     WHERE job_id = :job_id AND input_hash = :input_hash AND state <> {_INSIDE}
       AND NOT EXISTS (SELECT 1 FROM engine_call AS other
                        WHERE other.replica = mine.replica AND other.job_id <> mine.job_id AND other.state = {_GUILTY})
""")  # noqa: S608
_CONVICT = text(f"""
    UPDATE engine_call SET state = {_GUILTY}
     WHERE job_id = :job_id AND input_hash = :input_hash AND state = {_DIED}
""")  # noqa: S608


@dataclass(frozen=True)
class Ticket:
    """What a call of an engine says about itself: for which job it is, and on what.

    Attributes:
        call_id: of this one call.
        job_id: the job's row.
        fence: of the lease under which it was made.
        manifest_sha256: digest of the study's images.
    """

    call_id: str
    job_id: int
    fence: int
    manifest_sha256: str
    ahead: bool = False
    """Nobody waits for the labels yet: the engine ends the call as soon as other work waits."""


@dataclass(frozen=True)
class EngineId:
    """One engine process.

    Attributes:
        replica: name of the process, see `owners.owner_name`.
        node: Ray's id of its machine.
        identity: digest of what the engine computes with: package, models, device.
    """

    replica: str
    node: str
    identity: str


class EngineCalls:
    """The rows of `engine_call`. Holds no state of its own; safe to use from several threads and processes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """`clock` dates the rows; nothing is decided by their age."""
        self._database = database
        self._clock = clock
        self._hold = statements.BY_DIALECT[database.dialect].hold

    def must_be_alone(self, ticket: Ticket, engine: EngineId) -> bool:
        """True where an engine died while this study, perhaps beside another one, was inside.

        Raises:
            EngineKilled: that has happened so often that the study may not run any more.
            DatabaseBusy: no answer within the bound.
        """
        values = {"job_id": ticket.job_id, "input_hash": _input_hash(ticket, engine)}
        with self._database.read() as session:
            if self._deaths(session, values) >= MAX_DEATHS:
                raise _killed(MAX_DEATHS)
            return session.connection().execute(_ANY, values).first() is not None

    def enter(self, ticket: Ticket, engine: EngineId) -> None:
        """The study is inside the engine, durably: to be called before anything is done with its volume.

        Raises:
            StaleLease: nobody waits for this call's answer any more.
            DatabaseBusy: not written; the study must not run.
        """
        with self._database.write() as session:
            held = session.connection().execute(self._hold, {"job_id": ticket.job_id, "fence": ticket.fence}).first()
            if held is None:
                raise StaleLease(f"job {ticket.job_id}: fence {ticket.fence} does not hold it any more")
            session.connection().execute(_FORGET, {"job_id": ticket.job_id})
            values = {
                "id": ticket.call_id,
                "job_id": ticket.job_id,
                "fence": ticket.fence,
                "input_hash": _input_hash(ticket, engine),
                "replica": engine.replica,
                "node": engine.node,
                "now": self._clock.now(),
            }
            session.connection().execute(_ENTER, values)

    def leave(self, ticket: Ticket) -> None:
        """The engine is alive and through with the study, whatever came of it.

        Raises:
            DatabaseBusy: the row is left; it is believed only where the engine's process is gone.
        """
        with self._database.write() as session:
            session.connection().execute(_LEAVE, {"id": ticket.call_id})

    def inside(self, ticket: Ticket) -> EngineId | None:
        """The engine that began on this call and has not ended it; None where none has begun, or it is through."""
        with self._database.read() as session:
            row = session.connection().execute(_FIND, {"id": ticket.call_id}).first()
        return None if row is None else EngineId(str(row[0]), str(row[1]), "")

    def record_death(
        self, session: Session, lease: Lease, ticket: Ticket, replica: str, *, limit: int = MAX_DEATHS
    ) -> int:
        """The engine died while the study was inside: recorded in the caller's transaction, which holds the lease.

        Args:
            session: of `Database.write()`.
            lease: of the job.
            ticket: of the call that did not come back.
            replica: the process that died.
            limit: deaths from which on it is convicted; 1 for work that nobody waits for, which is not tried again.

        Returns:
            The deaths that count against the study now. From `limit` on it is convicted: who shared them is cleared.
        """
        called = {"id": ticket.call_id, "job_id": ticket.job_id}
        changed = cast("CursorResult[tuple[str]]", session.connection().execute(_DIE, called)).first()
        if changed is None:
            return 0
        values = {"job_id": ticket.job_id, "input_hash": str(changed[0])}
        deaths = self._deaths(session, values)
        if deaths >= limit:
            session.connection().execute(_CONVICT, values)
        record_event(
            session,
            ENGINE_DIED,
            now=self._clock.now(),
            actor=lease.owner,
            study_id=lease.study_id,
            job_id=lease.job_id,
            reason=f"the segmentation engine died while it worked on this study ({deaths} of {limit})",
            payload={"fence": lease.fence, "attempt": lease.attempt, "deaths": deaths, "engine": replica},
        )
        return deaths

    @staticmethod
    def _deaths(session: Session, values: Mapping[str, object]) -> int:
        return int(session.connection().execute(_COUNT, values).scalar_one())


def require_innocent(deaths: int, limit: int = MAX_DEATHS) -> None:
    """Nothing happens while the study may be tried again.

    Raises:
        EngineKilled: `deaths` that count against it have reached `limit`.
    """
    if deaths >= limit:
        raise _killed(deaths)


def _killed(deaths: int) -> EngineKilled:
    often = "once" if deaths == 1 else f"{deaths} times"
    return EngineKilled(f"the segmentation engine died {often} while it worked on this study")


def _input_hash(ticket: Ticket, engine: EngineId) -> str:
    return hashlib.sha256(f"{ticket.manifest_sha256}\x1f{engine.identity}".encode()).hexdigest()
