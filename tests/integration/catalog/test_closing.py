"""A study is closed once, when it is idle and nobody may still be sending to it."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import StudyFacts
from heimdallr_ray.catalog.states import StudyState, Urgency
from heimdallr_ray.catalog.studies import complete_study, record_instances, set_urgency, study_by_uid, transition
from heimdallr_ray.catalog.tables import JobRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history
from heimdallr_ray.errors import BadIdentifier, IllegalTransition, NotFound, NotOpen
from tests.support.clock import EPOCH
from tests.support.closing import close_idle_studies
from tests.support.studies import received


def _close(database: Database, at: float, busy: tuple[str, ...] = ()) -> list[str]:
    with database.write() as session:
        return close_idle_studies(session, EPOCH + timedelta(seconds=at), 30, busy, 5, "listener")


def _arrive(database: Database, number: int = 1, order: str | None = None) -> StudyRow:
    with database.write() as session:
        facts = StudyFacts(ordered_priority=order)
        record_instances(session, [received(n, study=number, facts=facts) for n in (2, 1)], EPOCH)
    return _study(database, number)


def _study(database: Database, number: int = 1) -> StudyRow:
    with database.read() as session:
        study = study_by_uid(session, f"1.2.{number}")
    assert study is not None
    return study


def _jobs(database: Database) -> list[JobRow]:
    with database.read() as session:
        return list(session.exec(select(JobRow)).all())


def test_closing_makes_manifest_job_and_history_together(database: Database) -> None:
    study = _arrive(database)
    _close(database, 30)
    digests = sorted(received(n).blob_sha256 for n in (1, 2))
    closed = _study(database)
    assert closed.manifest_sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()
    assert closed.closed_at == EPOCH + timedelta(seconds=30)
    (job,) = _jobs(database)
    assert (job.kind, job.key, job.study_id, job.epoch) == ("study", f"{study.id}:1", study.id, 1)
    assert (job.max_attempts, job.payload) == (5, {"manifest_sha256": closed.manifest_sha256})
    with database.read() as session:
        last = event_history(session, study.id)[-1]
    assert (last.kind, last.old, last.new, last.actor) == ("study.state", "receiving", "queued", "listener")
    assert (last.reason, last.payload["reason_code"]) == ("30 s without an image", "idle")
    assert (closed.close_code, closed.close_reason) == ("idle", "30 s without an image")
    # The study's own reason is for what has no result.
    assert (closed.reason_code, closed.reason, closed.closes_at) == (None, None, None)


def test_a_person_completes_a_study_to_which_somebody_still_sends(database: Database) -> None:
    study = _arrive(database)
    with database.write() as session:
        complete_study(
            session,
            study.study_uid,
            reason=" the scanner broke ",
            by=" Dr. Grey ",
            now=EPOCH,
            max_attempts=4,
            actor="api",
        )
    done = _study(database)
    assert (done.state, done.close_code) == ("queued", "operator")
    assert done.close_reason == "Dr. Grey said that it is complete: the scanner broke"
    (job,) = _jobs(database)
    assert (job.key, job.max_attempts, job.payload["manifest_sha256"]) == (f"{study.id}:1", 4, done.manifest_sha256)
    with database.read() as session:
        last = event_history(session, study.id)[-1]
    assert (last.actor, last.reason, last.payload["reason_code"]) == ("api", done.close_reason, "operator")
    with pytest.raises(NotOpen, match="the study is queued"), database.write() as session:
        complete_study(session, study.study_uid, reason="again", by="me", now=EPOCH, max_attempts=4, actor="api")


@pytest.mark.parametrize(
    ("reason", "by"), [("", "me"), (" ", "me"), ("x" * 501, "me"), ("why", " "), ("why", "x" * 65)]
)
def test_nobody_completes_a_study_without_name_and_reason(database: Database, reason: str, by: str) -> None:
    study = _arrive(database)
    with pytest.raises(BadIdentifier), database.write() as session:
        complete_study(session, study.study_uid, reason=reason, by=by, now=EPOCH, max_attempts=3, actor="api")
    with pytest.raises(NotFound), database.write() as session:
        complete_study(session, "1.2.9", reason="why", by="me", now=EPOCH, max_attempts=3, actor="api")
    assert _study(database).state == StudyState.RECEIVING


def test_nothing_is_half_closed_when_the_transaction_fails(database: Database) -> None:
    _arrive(database)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        assert close_idle_studies(session, EPOCH + timedelta(seconds=30), 30, (), 3, "listener")
        raise ZeroDivisionError
    assert _study(database).state == StudyState.RECEIVING
    assert _jobs(database) == []
    assert len(_close(database, 30)) == 1


def test_an_open_association_keeps_its_study_open(database: Database) -> None:
    busy, idle = _arrive(database, 1), _arrive(database, 2)
    assert _close(database, 100, busy=(busy.study_uid,)) == [idle.id]
    assert _study(database, 1).state == StudyState.RECEIVING
    assert _close(database, 101) == [busy.id]


@pytest.mark.parametrize(
    ("order", "priority"), [("STAT", 1), ("HIGH", 1), ("stat ", 1), ("ROUTINE", 3), ("LOW", 3), ("?", 3), (None, 3)]
)
def test_the_order_gives_the_jobs_priority(database: Database, order: str | None, priority: int) -> None:
    _arrive(database, order=order)
    _close(database, 30)
    assert _jobs(database)[0].priority == priority


def test_a_study_known_to_be_critical_is_not_queued_as_routine(database: Database) -> None:
    study = _arrive(database)
    with database.write() as session:
        set_urgency(session, study.id, Urgency.P0, "earlier result", now=EPOCH, actor="test")
    _close(database, 30)
    assert _jobs(database)[0].priority == 0


def test_many_idle_studies_are_closed_in_bounded_calls(database: Database) -> None:
    with database.write() as session:
        record_instances(session, [received(1, study=n) for n in range(1, 56)], EPOCH)
    assert [len(_close(database, 30)) for _ in range(3)] == [50, 5, 0]


def test_urgency_rises_and_never_falls(database: Database) -> None:
    study = _arrive(database)
    with database.write() as session:
        stands = [
            set_urgency(session, study.id, urgency, f"because {urgency}", now=EPOCH, actor="test")
            for urgency in (Urgency.P3, Urgency.P1, Urgency.P2)
        ]
    assert stands == [Urgency.P3, Urgency.P1, Urgency.P1]
    assert (_study(database).urgency, _study(database).urgency_reason) == ("P1", "because P1")
    with database.read() as session:
        events = [event for event in event_history(session, study.id) if event.kind == "study.urgency"]
    assert [(event.old, event.new, event.payload["proposed"]) for event in events] == [
        (None, "P3", "P3"),
        ("P3", "P1", "P1"),
        ("P1", "P1", "P2"),
    ]


def test_what_is_not_in_the_table_is_refused(database: Database) -> None:
    study = _arrive(database)
    with pytest.raises(IllegalTransition), database.write() as session:
        transition(session, study.id, StudyState.DONE, now=EPOCH, actor="test")
    with pytest.raises(NotFound), database.write() as session:
        transition(session, "absent", StudyState.QUEUED, now=EPOCH, actor="test")
    assert _study(database).state == StudyState.RECEIVING
