"""The SQL of the queue, per dialect and side by side, each statement with the invariant it keeps.

FINISH lives in heimdallr_ray.catalog.jobs, because a result commits together with it.

States of a job: queued -> running -> done, dead or cancelled; running -> queued (failed attempt, given back). An
expired lease stays `running` until somebody claims the job. `fence` only grows: each claim and
each cancellation adds one. `attempt` counts attempts that failed, and the present one; `lost` counts holders that
vanished, which is no failure of the job: a takeover goes on with the attempt that its holder could not end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, BigInteger, BindParameter, Integer, String, TextClause, bindparam, text
from sqlalchemy.sql.selectable import TextualSelect

from heimdallr_ray.catalog.jobs import FINISH
from heimdallr_ray.catalog.states import JobPriority, Urgency
from heimdallr_ray.catalog.types import UtcDateTime

AGEING_STEP_S = 30 * 60
"""A waiting job rises one level per this long."""
LIVE_CEILING = JobPriority.LIVE[Urgency.P1]
"""No age brings a routine job into the level of P0."""
BATCH_CEILING = JobPriority.LIVE[Urgency.P3] + 1
"""No age brings a batch job in front of live work."""
MAX_LOST = 10
"""A job whose holders vanish this often takes them down itself."""
MAX_LEVELS = JobPriority.BATCH - BATCH_CEILING
"""The most levels that any job can rise."""

_AGE = "CASE " + " ".join(f"WHEN created_at <= :aged_{n} THEN {n}" for n in range(MAX_LEVELS, 0, -1)) + " ELSE 0 END"
_LEVEL = f"""CASE WHEN priority <= {LIVE_CEILING} THEN priority
                  WHEN priority < {BATCH_CEILING} AND priority - {_AGE} < {LIVE_CEILING} THEN {LIVE_CEILING}
                  WHEN priority >= {BATCH_CEILING} AND priority - {_AGE} < {BATCH_CEILING} THEN {BATCH_CEILING}
                  ELSE priority - {_AGE} END"""
_READY = """kind IN :kinds
        AND ((state = 'queued' AND run_at <= :now)
             OR (state = 'running' AND lease_until <= :now AND lost + 1 < :max_lost))"""
_ORDER = f"{_LEVEL}, run_at, id"
_RETURNED = """id, kind, key, study_id, epoch, fence, owner, attempt, max_attempts, lost, payload, lease_until"""

_AGED = [bindparam(f"aged_{n}", type_=UtcDateTime()) for n in range(1, MAX_LEVELS + 1)]
_NOW = bindparam("now", type_=UtcDateTime())
_LEASE_UNTIL = bindparam("lease_until", type_=UtcDateTime())
_KINDS = bindparam("kinds", type_=String(), expanding=True)


def _claim(select: str, *parameters: BindParameter[Any]) -> TextualSelect:
    statement = text(f"""
        UPDATE job
           SET state = 'running', owner = :owner, lease_until = :lease_until, fence = fence + 1,
               attempt = attempt + CASE WHEN state = 'queued' THEN 1 ELSE 0 END,
               lost = lost + CASE WHEN state = 'running' THEN 1 ELSE 0 END, error_code = NULL, error = NULL
         WHERE id = ({select})
     RETURNING {_RETURNED}
    """)  # noqa: S608
    return statement.bindparams(_NOW, _LEASE_UNTIL, *(parameters or (_KINDS, *_AGED))).columns(
        id=BigInteger,
        kind=String,
        key=String,
        study_id=String,
        epoch=Integer,
        fence=Integer,
        owner=String,
        attempt=Integer,
        max_attempts=Integer,
        lost=Integer,
        payload=JSON,
        lease_until=UtcDateTime,
    )


# Invariant: of all workers that ask at once, one gets the best ready or expired job; its fence is greater than that of
# every earlier holder. A job whose lease lives is never taken; a job never loses more than max_lost holders, and never
# fails more than max_attempts times.
# SQLite: the write lock (BEGIN IMMEDIATE) makes the sub-select and the update one step.
_CLAIM_SQLITE = _claim(f"SELECT id FROM job WHERE {_READY} ORDER BY {_ORDER} LIMIT 1")  # noqa: S608
# PostgreSQL: SKIP LOCKED lets another worker take the next row instead of waiting for, and then missing, this one.
_CLAIM_POSTGRESQL = _claim(
    f"SELECT id FROM job WHERE {_READY} ORDER BY {_ORDER} LIMIT 1 FOR UPDATE SKIP LOCKED"  # noqa: S608
)

# Invariant: work that nobody waits for begins only while no other job waits or runs, and none of its own kind runs; so
# at most one of them runs. What another transaction enqueues meanwhile is seen by OTHERS, which its holder asks.
_OTHERS = "SELECT 1 FROM job AS other WHERE other.kind <> :kind AND other.state IN ('queued', 'running')"
_OWN = "SELECT 1 FROM job AS own WHERE own.kind = :kind AND own.state = 'running'"
_IDLE = f"""kind = :kind AND state = 'queued' AND run_at <= :now
        AND NOT EXISTS ({_OTHERS}) AND NOT EXISTS ({_OWN})"""
_KIND = bindparam("kind", type_=String())
_CLAIM_IDLE = f"SELECT id FROM job WHERE {_IDLE} ORDER BY priority, run_at, id LIMIT 1"  # noqa: S608
_CLAIM_IDLE_SQLITE = _claim(_CLAIM_IDLE, _KIND)
_CLAIM_IDLE_POSTGRESQL = _claim(f"{_CLAIM_IDLE} FOR UPDATE SKIP LOCKED", _KIND)
_IDLE_LOCK = 0x4865_696D_6408
ONE_AT_A_TIME = text(f"SELECT pg_advisory_xact_lock({_IDLE_LOCK})")
OTHERS = text(f"{_OTHERS} LIMIT 1").bindparams(_KIND)
PEEK_IDLE = text(f"""
    SELECT 1 FROM job WHERE ({_IDLE}) OR (kind = :kind AND state = 'running' AND lease_until <= :now) LIMIT 1
""").bindparams(_NOW, _KIND)  # noqa: S608

# Invariant: a holder of such work that vanished is not replaced: it may have been the work that took it down.
BURY_KIND = (
    text("""
    UPDATE job
       SET state = 'dead', finished_at = :now, owner = NULL, lease_until = NULL, lost = lost + 1,
           error_code = 'worker_lost', error = 'its worker vanished'
     WHERE kind = :kind AND state = 'running' AND lease_until <= :now
 RETURNING id
""")
    .bindparams(_NOW, _KIND)
    .columns(id=BigInteger)
)

# Invariant: none; it only spares an idle worker the write lock. A wrong answer costs one poll.
PEEK = text(f"""
    SELECT 1 FROM job
     WHERE ({_READY}) OR (state = 'running' AND lease_until <= :now AND lost + 1 >= :max_lost)
     LIMIT 1
""").bindparams(_NOW, _KINDS)  # noqa: S608

# Invariant: a job that takes all its workers down ends as dead, once; its last holder can neither renew nor finish it.
BURY = (
    text("""
    UPDATE job
       SET state = 'dead', finished_at = :now, owner = NULL, lease_until = NULL, lost = lost + 1,
           error_code = 'worker_lost_repeatedly', error = 'the job lost its worker again and again'
     WHERE state = 'running' AND lease_until <= :now AND lost + 1 >= :max_lost
 RETURNING id, study_id, epoch, fence, attempt, lost
""")
    .bindparams(_NOW)
    .columns(id=BigInteger, study_id=String, epoch=Integer, fence=Integer, attempt=Integer, lost=Integer)
)

# Invariant: only the holder of the newest fence extends a lease; an expired lease that nobody took may be revived.
RENEW = text("""
    UPDATE job SET lease_until = :lease_until
     WHERE id = :job_id AND fence = :fence AND state = 'running'
""").bindparams(_LEASE_UNTIL)

# Invariant: only the holder of the newest fence ends an attempt; the job waits again and keeps its attempts.
RETRY = text("""
    UPDATE job
       SET state = 'queued', run_at = :run_at, owner = NULL, lease_until = NULL, error_code = :code, error = :detail
     WHERE id = :job_id AND fence = :fence AND state = 'running'
""").bindparams(bindparam("run_at", type_=UtcDateTime()))

# Invariant: only the holder of the newest fence gives a job up; it is never claimed again.
KILL = text("""
    UPDATE job
       SET state = 'dead', finished_at = :now, owner = NULL, lease_until = NULL, error_code = :code, error = :detail
     WHERE id = :job_id AND fence = :fence AND state = 'running'
""").bindparams(_NOW)

# Invariant: an orderly shutdown costs the job no attempt, and its old holder's fence is spent with the next claim.
RELEASE = text("""
    UPDATE job
       SET state = 'queued', owner = NULL, lease_until = NULL, attempt = attempt - 1
     WHERE id = :job_id AND fence = :fence AND state = 'running'
""")

# Invariant: a lease ends early only under the fence that its holder has; a holder that lives after all revives it,
# unless somebody has taken the job.
EXPIRE = text("""
    UPDATE job SET lease_until = :now
     WHERE id = :job_id AND fence = :fence AND state = 'running' AND lease_until > :now
""").bindparams(_NOW)

# Invariant: while this transaction lives nobody else can claim the job, so what it writes is written under the fence.
_HOLD = "SELECT attempt FROM job WHERE id = :job_id AND fence = :fence AND state = 'running'"
_HOLD_SQLITE = text(_HOLD)
_HOLD_POSTGRESQL = text(f"{_HOLD} FOR UPDATE")

# Invariant: what a step gave for an input is recorded once; a repetition after a takeover changes nothing.
RECORD_STEP = text("""
    INSERT INTO job_step (job_id, step, input_hash, output, fence, attempt, seconds, finished_at)
    VALUES (:job_id, :step, :input_hash, :output, :fence, :attempt, :seconds, :now)
    ON CONFLICT (job_id, step, input_hash) DO NOTHING
""").bindparams(_NOW, bindparam("output", type_=JSON()))

DATABASE_TIME = text("SELECT clock_timestamp() AS now").columns(now=UtcDateTime)


@dataclass(frozen=True)
class Statements:
    """The statements that differ between the dialects."""

    claim: TextualSelect
    claim_idle: TextualSelect
    hold: TextClause


BY_DIALECT = {
    "sqlite": Statements(claim=_CLAIM_SQLITE, claim_idle=_CLAIM_IDLE_SQLITE, hold=_HOLD_SQLITE),
    "postgresql": Statements(claim=_CLAIM_POSTGRESQL, claim_idle=_CLAIM_IDLE_POSTGRESQL, hold=_HOLD_POSTGRESQL),
}

__all__ = [
    "AGEING_STEP_S",
    "BATCH_CEILING",
    "BURY",
    "BURY_KIND",
    "BY_DIALECT",
    "DATABASE_TIME",
    "EXPIRE",
    "FINISH",
    "KILL",
    "LIVE_CEILING",
    "MAX_LEVELS",
    "MAX_LOST",
    "ONE_AT_A_TIME",
    "OTHERS",
    "PEEK",
    "PEEK_IDLE",
    "RECORD_STEP",
    "RELEASE",
    "RENEW",
    "RETRY",
    "Statements",
]
