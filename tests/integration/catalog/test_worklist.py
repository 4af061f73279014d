"""What the pages ask for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import StudyFacts
from heimdallr_ray.catalog.states import StudyState, Urgency
from heimdallr_ray.catalog.studies import record_instances, set_urgency, study_by_uid
from heimdallr_ray.catalog.worklist import (
    artifact_named,
    counts_by_state,
    event_history,
    events_after,
    last_event_id,
    queue_depth,
    study_detail,
    worklist,
    worklist_count,
)
from tests.support.clock import EPOCH
from tests.support.closing import close_idle_studies
from tests.support.studies import received


def _arrive(
    database: Database,
    number: int,
    *,
    at: float = 0,
    order: str | None = None,
    urgency: Urgency | None = None,
    **facts: Any,
) -> None:
    when = EPOCH + timedelta(seconds=at)
    item = received(1, study=number, at=when, facts=StudyFacts(ordered_priority=order, **facts))
    with database.write() as session:
        record_instances(session, [item], when)
        study = study_by_uid(session, f"1.2.{number}")
        assert study is not None
        if urgency is not None:
            set_urgency(session, study.id, urgency, None, now=when, actor="test")


def _order(database: Database, **options: str | int | None) -> list[int]:
    with database.read() as session:
        rows = worklist(session, **({"limit": 100, "offset": 0} | options))  # type: ignore[arg-type]
    return [int(row.study_uid.rsplit(".", 1)[1]) for row in rows]


def test_the_order_is_effective_class_then_arrival_then_uid(database: Database) -> None:
    _arrive(database, 1, at=5)
    _arrive(database, 2, at=4, urgency=Urgency.P3)
    _arrive(database, 3, at=6, urgency=Urgency.P2)
    _arrive(database, 4, at=7, order="STAT")
    _arrive(database, 5, at=8, urgency=Urgency.P0)
    _arrive(database, 6, at=3, order="HIGH", urgency=Urgency.P3)  # a machine does not lower an order
    _arrive(database, 7, at=9, order=" stat", urgency=Urgency.P2)
    _arrive(database, 9, at=1, order="LOW")
    _arrive(database, 8, at=1, order="NONSENSE")
    assert _order(database) == [5, 6, 4, 7, 3, 8, 9, 2, 1]


def test_pages_and_bounds(database: Database) -> None:
    for number in range(1, 6):
        _arrive(database, number, at=number)
    assert _order(database, limit=2) == [1, 2]
    assert _order(database, limit=2, offset=4) == [5]
    assert _order(database, limit=-1) == _order(database, limit=0) == []
    assert _order(database, limit=10**9, offset=-5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("josé", [1]),
        ("JOSÉ", [1]),
        ("silva", [1, 2]),
        ("acc-7", [2]),
        ("1.2.3", [3]),
        ("100%", [3]),
        ("%", [3]),
        ("_", []),
        ("'; DROP TABLE study; --", []),
        ("\0", [1, 2, 3]),
        ("  ", [1, 2, 3]),
    ],
)
def test_search_takes_text_as_text(database: Database, text: str, found: list[int]) -> None:
    _arrive(database, 1, at=1, patient_name="SILVA^JOSÉ", patient_id="P1")
    _arrive(database, 2, at=2, patient_name="Silva^Ana", accession_number="ACC-7")
    _arrive(database, 3, at=3, study_description="Dose 100%")
    assert _order(database, text=text) == found
    with database.read() as session:
        assert worklist_count(session, text=text) == len(found)


def test_counts_states_and_queue_agree_with_the_rows(database: Database) -> None:
    _arrive(database, 1)
    _arrive(database, 2, at=20)
    with database.write() as session:
        close_idle_studies(session, EPOCH + timedelta(seconds=30), 30, (), 3, "test")
    with database.read() as session:
        assert counts_by_state(session) == {"queued": 1, "settling": 1}
        depth = queue_depth(session)
        assert (depth.queued, depth.running, depth.dead) == (1, 0, 0)
        assert depth.oldest_run_at == EPOCH + timedelta(seconds=30)
        assert queue_depth(session, ("other",)).queued == 0
        assert worklist_count(session, state=StudyState.QUEUED) == 1
    assert _order(database, state="settling") == [2]


def test_events_are_read_in_pages_and_by_study(database: Database) -> None:
    _arrive(database, 1)
    _arrive(database, 2)
    with database.read() as session:
        everything = events_after(session, 0, 100)
        assert [event.id for event in events_after(session, everything[1].id or 0, 1)] == [everything[2].id]
        assert events_after(session, last_event_id(session), 100) == []
        study = study_by_uid(session, "1.2.2")
        assert study is not None
        assert [event.id for event in event_history(session, study.id)] == [e.id for e in everything[2:]]
        assert [event.id for event in event_history(session, study.id, 1)] == [everything[3].id]


def test_what_is_not_there_is_none(database: Database) -> None:
    with database.read() as session:
        assert study_detail(session, "1.2.99") is None
        assert artifact_named(session, "absent", "../../etc/passwd") is None
        assert last_event_id(session) == 0
