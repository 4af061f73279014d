"""Objects without Study Instance UID that come again, under another derived UID: one study, one row, no conflict."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlmodel import select

from heimdallr_ray.catalog import migrate
from heimdallr_ray.catalog.conflicts import contested
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import ReceivedInstance
from heimdallr_ray.catalog.recording import RecordOutcome, record_instances
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.studies import series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import InstanceRow, StudyRow
from heimdallr_ray.ids import Uid
from tests.support.clock import EPOCH
from tests.support.closing import close_idle_studies
from tests.support.studies import received


def blank(
    number: int, association: str, *, patient: str = "P1", series_too: bool = False, content: str = "", spool: str = ""
) -> ReceivedInstance:
    """Image `number` of a patient as an association brings it, without Study (and Series) Instance UID."""
    study_uid = Uid.derived("study", association, patient)
    one = received(number, content=f"{patient}{content}", spool=f"{association}{spool}", association=association)
    return replace(
        one,
        study_uid=study_uid,
        study_uid_generated=True,
        series_uid=Uid.derived("series", study_uid) if series_too else one.series_uid,
    )


def record(database: Database, items: Sequence[ReceivedInstance], at: float = 0.0) -> RecordOutcome:
    with database.write() as session:
        return record_instances(session, items, EPOCH + timedelta(seconds=at))


def blanks(numbers: Sequence[int], association: str, **how: bool) -> list[ReceivedInstance]:
    return [blank(number, association, **how) for number in numbers]  # pyright: ignore[reportArgumentType]


def studies(database: Database) -> list[StudyRow]:
    with database.read() as session:
        return list(session.exec(select(StudyRow)).all())


def flags(database: Database) -> list[bool]:
    with database.read() as session:
        return list(session.exec(select(InstanceRow.sop_uid_conflict)).all())


def test_the_same_objects_by_another_association_are_stored_once(database: Database) -> None:
    first = record(database, blanks(range(5), "a1"))
    again = record(database, blanks(range(5), "a2"), at=1)
    assert (again.stored, again.duplicates, again.conflicts, again.study_ids) == (0, 5, 0, first.study_ids)
    (study,) = studies(database)
    assert (study.n_instances, flags(database)) == (5, [False] * 5)
    with database.read() as session:
        assert contested(session, 10).images == 0
        # Who asks by the UID that the second association's objects were told under finds them.
        found = study_by_uid(session, str(blank(0, "a2").study_uid))
        assert found is not None and found.id == study.id
        assert study_by_uid(session, "1.2.3.4.5") is None


def test_one_call_that_has_both_makes_one_study(database: Database) -> None:
    outcome = record(database, blanks((1, 2), "a1") + blanks((2, 3), "a2"))
    assert (outcome.stored, outcome.duplicates, outcome.conflicts) == (3, 1, 0)
    assert [study.n_instances for study in studies(database)] == [3]


@pytest.mark.parametrize("series_too", [False, True])
@pytest.mark.parametrize("group", [1, 3, 5, 10])
def test_what_an_association_that_broke_off_had_sent_and_the_rest_are_one_study(
    database: Database, group: int, series_too: bool
) -> None:
    record(database, blanks(range(5), "a1", series_too=series_too))
    items = blanks(range(10), "a2", series_too=series_too)
    for start in range(0, 10, group):
        record(database, items[start : start + group], at=1)
    (study,) = studies(database)
    assert (study.n_instances, flags(database)) == (10, [False] * 10)
    with database.read() as session:
        assert [row.n_instances for row in series_rows_of(session, study.id)] == [10]


def test_a_replay_after_a_death_changes_nothing(database: Database) -> None:
    record(database, blanks(range(3), "a1"))
    again = blanks(range(6), "a2")
    record(database, again, at=1)
    before = [study.model_dump() for study in studies(database)]
    outcome = record(database, again, at=1)
    assert (outcome.stored, outcome.duplicates, outcome.replayed) == (0, 3, 3)
    assert [study.model_dump() for study in studies(database)] == before
    assert flags(database) == [False] * 6
    for at in (20, 40):
        replays = [replace(item, replayed=True) for item in again]
        outcome = record(database, replays, at=at)
        assert (outcome.stored, outcome.duplicates, outcome.replayed) == (0, 0, 6)
        assert [study.model_dump() for study in studies(database)] == before


def test_other_patients_and_other_bytes_stay_apart(database: Database) -> None:
    record(database, blanks(range(3), "a1"))
    other = record(database, [blank(number, "a2", patient="P2") for number in range(3)])
    # The UIDs are the same and the bytes are not: two patients, two studies, and every image contested.
    assert (other.stored, other.duplicates, other.conflicts) == (3, 0, 3)
    assert sorted(study.n_instances for study in studies(database)) == [3, 3]
    assert flags(database) == [True] * 6


def test_of_three_under_one_uid_a_third_that_differs_flags_them_all(database: Database) -> None:
    record(database, [blank(1, "a1")])
    record(database, [blank(1, "a2")])
    assert flags(database) == [False]
    outcome = record(database, [blank(1, "a3", content="changed")])
    assert (outcome.stored, outcome.conflicts) == (1, 1)
    assert flags(database) == [True, True]


def test_a_study_of_its_own_that_was_begun_is_whole_and_nobody_is_accused(database: Database) -> None:
    record(database, blanks((1, 2), "a1"))
    # The new images come first: when the known ones come, their study is there.
    record(database, blanks((3, 4), "a2"), at=1)
    outcome = record(database, blanks((1, 2), "a2"), at=2)
    assert (outcome.stored, outcome.conflicts) == (2, 0)
    assert sorted(study.n_instances for study in studies(database)) == [2, 4]
    assert flags(database) == [False] * 6


def test_a_study_that_has_its_uid_is_never_joined(database: Database) -> None:
    """The bytes say whether there is a UID, so equal bytes cannot; a lie about the digest does not matter."""
    record(database, [received(1)])
    stranger = replace(received(1, spool="b"), study_uid=Uid("1.2.77"), study_uid_generated=True)
    outcome = record(database, [stranger])
    assert (outcome.stored, outcome.conflicts) == (1, 0)
    assert len(studies(database)) == 2


def test_only_a_new_image_opens_a_closed_study_again(database: Database) -> None:
    record(database, blanks((1, 2), "a1"))
    with database.write() as session:
        assert len(close_idle_studies(session, EPOCH + timedelta(seconds=60), 30, (), 3, "test")) == 1
    assert record(database, blanks((1, 2), "a2"), at=90).reopened == ()
    assert studies(database)[0].state == StudyState.QUEUED
    record(database, blanks((3,), "a2"), at=91)
    (study,) = studies(database)
    assert (study.state, study.epoch, study.n_instances) == (StudyState.RECEIVING, 2, 3)


def test_two_associations_at_once_make_one_study(database: Database) -> None:
    barrier = threading.Barrier(2)
    outcomes: list[RecordOutcome] = []

    def send(association: str) -> None:
        barrier.wait(10)
        for number in range(8):
            outcomes.append(record(database, blanks((number,), association)))

    threads = [threading.Thread(target=send, args=(name,)) for name in ("a1", "a2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (sum(one.stored for one in outcomes), sum(one.duplicates for one in outcomes)) == (8, 8)
    assert [study.n_instances for study in studies(database)] == [8]
    assert not any(flags(database))


def test_they_are_looked_for_by_an_index(database: Database) -> None:
    question = (
        "SELECT instance.sop_uid FROM instance JOIN study ON study.id = instance.study_id "
        "JOIN series ON series.id = instance.series_id WHERE instance.sop_uid IN ('1.2', '1.3') "
        "AND instance.blob_sha256 IN ('a', 'b') AND study.uid_generated IS TRUE "
        "ORDER BY study.first_received_at, study.id"
    )
    record(database, [received(n, study=n % 50) for n in range(2000)])
    with database.write() as session:
        session.connection().execute(text("ANALYZE"))
        explain = "EXPLAIN" if database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = str(session.connection().execute(text(f"{explain} {question}")).all())
    assert "ix_instance_sop_uid" in plan, plan


def test_an_older_catalog_loses_its_wrong_flags_and_keeps_the_right_ones(database: Database) -> None:
    # As the version before recorded them: the same bytes twice in two studies, flagged.
    record(database, blanks((3, 4), "a2"))
    record(database, blanks((1, 2), "a1"))
    record(database, blanks((1, 2), "a2"))
    record(database, [received(8), received(8, content="changed")])
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE instance SET sop_uid_conflict = true"))
        migrate.downgrade(connection, "0012")
        migrate.upgrade(connection)
    with database.read() as session:
        kept = session.exec(select(InstanceRow.sop_uid).where(InstanceRow.sop_uid_conflict)).all()
    assert list(kept) == [received(8).sop_uid] * 2
    assert record(database, blanks((2,), "a3")).duplicates == 1
