"""What arrives becomes rows exactly once, whatever the order, the repetitions and the lies."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts, StudyFacts
from heimdallr_ray.catalog.recording import MAX_COMPARED, RecordOutcome
from heimdallr_ray.catalog.states import Door, JobState, StudyState
from heimdallr_ray.catalog.studies import instances_of, record_instances, series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import InstanceRow, JobRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history
from tests.support.clock import EPOCH
from tests.support.closing import close_idle_studies
from tests.support.studies import received


def _record(database: Database, *instances: ReceivedInstance, at: float = 0.0) -> RecordOutcome:
    with database.write() as session:
        return record_instances(session, instances, EPOCH + timedelta(seconds=at))


def _close(database: Database, at: float) -> list[str]:
    with database.write() as session:
        return close_idle_studies(session, EPOCH + timedelta(seconds=at), 30, (), 3, "test")


def _study(database: Database, number: int = 1) -> StudyRow:
    with database.read() as session:
        study = study_by_uid(session, f"1.2.{number}")
    assert study is not None
    return study


def _instances(database: Database) -> list[InstanceRow]:
    with database.read() as session:
        return instances_of(session, _study(database).id)


def test_the_first_image_makes_the_study_and_its_series(database: Database) -> None:
    outcome = _record(database, received(1), received(2, series=2))
    study = _study(database)
    assert outcome == RecordOutcome(stored=2, duplicates=0, study_ids=(study.id,))
    assert (study.state, study.epoch, study.n_instances, study.n_bytes) == (StudyState.RECEIVING, 1, 2, 2003)
    assert (study.first_received_at, study.last_received_at, study.door, study.modalities) == (
        EPOCH,
        EPOCH,
        "dicom",
        "CT",
    )
    with database.read() as session:
        assert [(row.series_uid, row.n_instances) for row in series_rows_of(session, study.id)] == [
            ("1.2.1.1", 1),
            ("1.2.1.2", 1),
        ]
        assert [event.kind for event in event_history(session, study.id)] == ["study.state", "study.images"]


def test_a_replayed_spool_changes_nothing(database: Database) -> None:
    batch = [received(n) for n in range(5)]
    _record(database, *batch)
    before = _study(database).model_dump()
    outcome = _record(database, *batch, at=5)
    assert (outcome.stored, outcome.duplicates, outcome.replayed, outcome.study_ids) == (0, 0, 5, ())
    assert _study(database).model_dump() == before


def test_a_replayed_duplicate_is_counted_nowhere_and_lengthens_no_wait(database: Database) -> None:
    """It has no row that would tell that it was recorded before."""
    _record(database, received(1), received(2))
    again = replace(received(1, spool="again", at=EPOCH + timedelta(seconds=3)), replayed=True)
    for at in (5.0, 10.0, 15.0):
        outcome = _record(database, again, at=at)
        assert (outcome.stored, outcome.duplicates, outcome.replayed) == (0, 0, 1)
        # When it came is known, and is the same each time.
        assert _study(database).last_received_at == EPOCH + timedelta(seconds=3)
    before = _study(database).model_dump()
    outcome = _record(database, replace(received(2, spool="older"), replayed=True), at=20)
    assert (outcome.duplicates, outcome.replayed, _study(database).model_dump()) == (0, 1, before)
    # A new one that is replayed is a row, once, and beside it the duplicate changes nothing either.
    new = replace(received(3), replayed=True)
    for at, stored in ((25.0, 1), (30.0, 0)):
        outcome = _record(database, again, new, at=at)
        assert (outcome.stored, outcome.duplicates, outcome.replayed) == (stored, 0, 2 - stored)
        assert _study(database).last_received_at == EPOCH + timedelta(seconds=25)


def test_the_same_object_again_is_a_duplicate_without_a_row(database: Database) -> None:
    _record(database, received(1))
    outcome = _record(database, received(1, spool="again"), received(1, spool="and again"), at=5)
    assert (outcome.stored, outcome.duplicates) == (0, 2)
    study = _study(database)
    assert (study.n_instances, len(_instances(database))) == (1, 1)
    # The sender is still there: the study is not idle.
    assert study.last_received_at == EPOCH + timedelta(seconds=5)


def test_the_same_uid_with_other_bytes_is_kept_and_flagged(database: Database) -> None:
    _record(database, received(1), received(2))
    outcome = _record(database, received(1, content="changed"))
    assert (outcome.stored, outcome.conflicts) == (1, 1)
    assert sorted((row.sop_uid, row.sop_uid_conflict) for row in _instances(database)) == [
        ("1.2.1.1.1", True),
        ("1.2.1.1.1", True),
        ("1.2.1.1.2", False),
    ]


def test_another_file_of_the_same_data_set_is_a_duplicate_and_reopens_nothing(database: Database) -> None:
    """Only images whose UID the study has under another digest are asked about."""
    asked: list[frozenset[str]] = []
    wraps = [received(1, content=name, spool=name) for name in ("a", "b", "c")]
    other = received(1, content="other")

    def same(one: str, another: str) -> bool:
        asked.append(frozenset((one, another)))
        return str(other.blob_sha256) not in (one, another)

    def record(*instances: ReceivedInstance, at: float) -> RecordOutcome:
        with database.write() as session:
            return record_instances(session, instances, EPOCH + timedelta(seconds=at), same)

    record(wraps[0], received(2), received(3), at=0)
    record(received(2, spool="again"), received(4), at=1)
    assert asked == []
    outcome = record(wraps[1], wraps[2], at=2)
    assert (outcome.stored, outcome.duplicates, outcome.conflicts) == (0, 2, 0)
    assert _close(database, at=100)
    outcome = record(wraps[2], at=101)
    assert (outcome.stored, outcome.duplicates, outcome.conflicts, outcome.reopened) == (0, 1, 0, ())
    assert (_study(database).epoch, _study(database).n_instances) == (1, 4)
    outcome = record(other, wraps[1], at=102)
    assert (outcome.stored, outcome.duplicates, outcome.conflicts) == (1, 1, 1)
    assert sorted(row.sop_uid_conflict for row in _instances(database)) == [False, False, False, True, True]


def test_of_an_image_that_comes_in_many_forms_a_bounded_number_is_compared(database: Database) -> None:
    asked = 0

    def different(_one: str, _other: str) -> bool:
        nonlocal asked
        asked += 1
        return False

    forms = [received(1, content=str(n)) for n in range(3 * MAX_COMPARED)]
    with database.write() as session:
        outcome = record_instances(session, forms, EPOCH, different)
    assert (outcome.stored, outcome.conflicts) == (len(forms), len(forms) - 1)
    assert asked < MAX_COMPARED * len(forms)


def test_a_conflict_inside_one_group_and_across_studies_is_flagged(database: Database) -> None:
    stranger = replace(received(1, study=2), sop_uid=received(1).sop_uid)
    outcome = _record(database, received(1), received(1, content="changed"), stranger)
    assert (outcome.stored, outcome.conflicts) == (3, 2)
    with database.read() as session:
        assert all(session.exec(select(InstanceRow.sop_uid_conflict)).all())


def test_facts_are_filled_in_and_the_first_value_stands(database: Database) -> None:
    _record(database, received(1, facts=StudyFacts(patient_id="P1", ordered_priority="ROUTINE")))
    _record(
        database,
        received(
            2,
            facts=StudyFacts(patient_id="P2", patient_name="SILVA^JOSÉ", ordered_priority="STAT"),
            series_facts=SeriesFacts(modality="SR", series_description="Dose"),
            series=2,
            door=Door.STOW,
            synthetic=True,
        ),
    )
    _record(database, received(3, facts=StudyFacts(ordered_priority="LOW")))
    study = _study(database)
    assert (study.patient_id, study.patient_name, study.modalities) == ("P1", "SILVA^JOSÉ", "CT,SR")
    assert (study.ordered_priority, study.door, study.synthetic) == ("STAT", "dicom", True)


def test_text_that_a_database_cannot_hold_does_not_stop_the_group(database: Database) -> None:
    hostile = StudyFacts(
        patient_name="A\0B\ud800C" + "x" * 500, patient_id="\0", study_description="'; DROP TABLE study"
    )
    outcome = _record(database, received(1, facts=hostile), received(1, study=2))
    assert outcome.stored == 2
    study = _study(database)
    assert (study.patient_name or "").startswith("AB?C")
    assert (len(study.patient_name or ""), study.patient_id) == (324, None)


def test_a_late_image_opens_the_next_epoch_and_cancels_the_waiting_job(database: Database) -> None:
    _record(database, received(1))
    study_id = _study(database).id
    assert _close(database, 30) == [study_id]
    outcome = _record(database, received(2), at=40)
    study = _study(database)
    assert outcome.reopened == (study_id,)
    assert (study.state, study.epoch, study.manifest_sha256, study.closed_at) == (StudyState.RECEIVING, 2, None, None)
    assert _close(database, 70) == [study_id]
    with database.read() as session:
        jobs = [(job.key, job.state, job.epoch) for job in session.exec(select(JobRow)).all()]
        assert len(instances_of(session, study_id, 1)) == 1
        assert len(instances_of(session, study_id, 2)) == 2
    assert sorted(jobs) == [(f"{study_id}:1", JobState.CANCELLED, 1), (f"{study_id}:2", JobState.QUEUED, 2)]


def test_a_duplicate_does_not_reopen(database: Database) -> None:
    _record(database, received(1))
    _close(database, 30)
    before = _study(database).model_dump()
    outcome = _record(database, received(1, spool="again"), at=40)
    assert (outcome.duplicates, outcome.reopened) == (1, ())
    assert _study(database).model_dump() == before


def test_an_image_wakes_a_settling_study(database: Database) -> None:
    _record(database, received(1))
    assert _close(database, 5) == []
    assert _study(database).state == StudyState.SETTLING
    _record(database, received(2), at=10)
    assert (_study(database).state, _study(database).epoch) == (StudyState.RECEIVING, 1)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_any_grouping_any_repetition_gives_the_same_rows(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    objects = [received(n, study=1 + n % 2, series=1 + n % 3) for n in range(24)]
    arrivals = objects + [replace(item, spool_name=item.spool_name + "b") for item in chance.sample(objects, 8)]
    arrivals += chance.sample(arrivals, 10)
    chance.shuffle(arrivals)
    stored = 0
    while arrivals:
        size = chance.randint(1, 9)
        stored += _record(database, *arrivals[:size]).stored
        arrivals = arrivals[size:]
    assert stored == len(objects)
    assert (_study(database, 1).n_instances, _study(database, 2).n_instances) == (12, 12)
    _close(database, 30)
    # The manifest depends on the content alone.
    for study in (1, 2):
        digests = sorted(item.blob_sha256 for item in objects if item.study_uid == f"1.2.{study}")
        wanted = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        assert _study(database, study).manifest_sha256 == wanted
