"""From the spool to rows: groups, replays, and what cannot be committed."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.associations import AssociationOpened, record_opened
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import AssociationRow, EventRow
from heimdallr_ray.errors import NotDicom, StorageFailed
from heimdallr_ray.listener import committer, receive
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.completion import CompletionWatcher
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.receive import Receiver
from tests.support.closing import policy
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for

STUDY = "1.2.826.0.1.3680043.9.9.77"


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data")


@pytest.fixture
def receiver(intake: Intake) -> Receiver:
    return Receiver(intake.settings, intake.database, intake.blobs, intake.clock)


def body(index: int) -> bytes:
    return dataset_bytes(file_bytes(ct_slice(index, STUDY, f"{STUDY}.1")))


def accept(receiver: Receiver, index: int) -> Accepted:
    arrival = Arrival("a1", Door.DICOM, datetime.now(UTC), "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2")
    return receiver.accept(arrival, [body(index)])


def test_what_was_enqueued_is_committed_in_groups(intake: Intake, receiver: Receiver) -> None:
    receiver.start()
    for index in range(1, 11):
        receiver.enqueue(accept(receiver, index))
    assert receiver.flush(20)
    assert receiver.stop()
    assert sorted(intake.stored().values()) == sorted(sha256(body(index)) for index in range(1, 11))
    assert intake.spooled() == []
    with intake.database.read() as session:
        groups = session.exec(select(EventRow).where(EventRow.kind == "study.images")).all()
    assert 1 <= len(groups) < 10


@pytest.mark.parametrize("after", ["accept", "adopt", "rows"])
def test_a_death_at_any_point_loses_and_doubles_nothing(
    intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    items = [accept(receiver, index) for index in (1, 2, 3)]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if after == "adopt":
            patch.setattr(receive, "record_instances", die)
            with pytest.raises(KeyboardInterrupt):
                receiver.commit_group(items)
        if after == "rows":
            receiver.commit_group(items)
            patch.setattr(receiver.spool, "remove", die)
            with pytest.raises(KeyboardInterrupt):
                receiver.clear(all_of_it=True)
    assert len(intake.instances()) == (3 if after == "rows" else 0)
    successor = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    assert successor.replay() == 3
    assert successor.replay() == 0
    assert sorted(intake.stored().values()) == sorted(sha256(body(index)) for index in (1, 2, 3))
    assert [study.n_instances for study in intake.studies()] == [3]
    assert [study.epoch for study in intake.studies()] == [1]
    assert intake.spooled() == []


def test_a_duplicate_that_is_replayed_again_and_again_changes_nothing(
    intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process dies each time before the files leave the spool."""
    began = AssociationOpened("a1", Door.DICOM, "CT1", "HEIMDALLR", "127.0.0.1", datetime.now(UTC))
    notes = [lambda session: record_opened(session, [began])]
    receiver.commit_group([accept(receiver, 1)], notes)
    receiver.clear(all_of_it=True)
    receiver.commit_group([accept(receiver, 1), accept(receiver, 1)])
    first = intake.studies()[0].model_dump()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        successor = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
        with monkeypatch.context() as patch:
            patch.setattr(successor.spool, "remove", die)
            with pytest.raises(KeyboardInterrupt):
                successor.replay()
        assert successor.counts().duplicates == 0
    assert len(intake.spooled()) == 2
    with intake.database.read() as session:
        assert [row.duplicates for row in session.exec(select(AssociationRow)).all()] == [2]
    assert intake.studies()[0].model_dump() == first
    assert Receiver(intake.settings, intake.database, intake.blobs, intake.clock).replay() == 2
    assert intake.spooled() == []


def test_an_unreadable_header_is_refused_before_success(intake: Intake, receiver: Receiver) -> None:
    arrival = Arrival("a1", Door.DICOM, datetime.now(UTC), "1.2.840.10008.1.2.1")
    with pytest.raises(NotDicom):
        receiver.accept(arrival, [b"\0" * 40])
    assert intake.spooled() == []


def test_a_file_damaged_in_the_spool_is_quarantined_and_told(intake: Intake, receiver: Receiver) -> None:
    good, bad = accept(receiver, 1), accept(receiver, 2)
    damaged = bad.entry.path.read_bytes()[:200]
    bad.entry.path.write_bytes(damaged)
    assert receiver.replay() == 2
    assert [row.spool_name for row in intake.instances()] == [good.entry.name]
    assert (receiver.spool.quarantined / f"{bad.entry.name}.dcm").read_bytes() == damaged
    with intake.database.read() as session:
        events = session.exec(select(EventRow).where(EventRow.kind == "intake.quarantined")).all()
    assert [event.payload["spool_name"] for event in events] == [bad.entry.name]
    assert receiver.counts().quarantined == 1


def test_one_object_that_cannot_be_committed_does_not_hold_up_the_others(
    intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = accept(receiver, 2)
    real = receive.record_instances

    def refuse(session: object, items: list[object], now: datetime, same: object) -> object:
        if any(getattr(item, "spool_name", "") == poison.entry.name for item in items):
            raise ValueError("poison")
        return real(session, items, now, same)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(receive, "record_instances", refuse)
    receiver.start()
    for item in (accept(receiver, 1), poison, accept(receiver, 3)):
        receiver.enqueue(item)
    assert receiver.flush(20)
    receiver.stop()
    assert len(intake.instances()) == 2
    assert sorted(path.split("/")[0] for path in intake.spooled()) == ["quarantine", "quarantine"]


def test_a_locked_database_delays_rows_and_loses_none(
    intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = receiver.commit_group
    failures = 0

    def busy(group: object, notes: object) -> object:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise StorageFailed("not now")
        return real(group, notes)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(receiver, "commit_group", busy)
    receiver.start()
    receiver.enqueue(accept(receiver, 1))
    assert receiver.flush(20)
    receiver.stop()
    assert failures == 3
    assert receiver.counts().commit_failures == 3
    assert len(intake.instances()) == 1


def test_success_does_not_wait_for_the_database(intake: Intake, receiver: Receiver) -> None:
    path = intake.settings.resolved_database_url.removeprefix("sqlite:///")
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    receiver.start()
    try:
        receiver.enqueue(accept(receiver, 1))
        assert not receiver.flush(0.5)
        assert receiver.pending_study_uids() == {STUDY}
        watcher = CompletionWatcher(
            receiver, frozenset, intake.database, intake.clock, policy=policy(0.1), scan_s=1, max_attempts=3
        )
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert receiver.flush(40)
    wait_for(watcher.scan, 30, "the study to be closed")
    receiver.stop()
    assert len(intake.jobs()) == 1


def test_more_than_fits_in_memory_waits_on_the_disk(
    intake: Intake, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "MAX_QUEUED", 3)
    for index in range(1, 9):
        receiver.enqueue(accept(receiver, index))
    receiver.start()
    assert receiver.flush(30)
    receiver.stop()
    assert len(intake.instances()) == 8
    assert intake.spooled() == []


def test_orphans_of_another_process_are_adopted_after_a_while(intake: Intake, receiver: Receiver) -> None:
    accept(receiver, 1)
    other = Receiver(intake.settings, intake.database, intake.blobs, intake.clock)
    other.adopt_orphans(min_age_s=60)
    assert intake.instances() == []
    other.adopt_orphans(min_age_s=0)
    assert len(intake.instances()) == 1
