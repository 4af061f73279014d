"""With durability = study: a power cut is looked for once, and what nobody can vouch for after it is told."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import EventRow
from heimdallr_ray.config import Peer
from heimdallr_ray.errors import StorageFailed
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener import boot, hardening
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.commitment import REPORT_DELAY_S, CommitmentDesk
from heimdallr_ray.listener.commitment_report import Delivery, DeliveryOutcome, Report
from heimdallr_ray.listener.commitment_worker import CommitmentWorker
from heimdallr_ray.listener.receive import Receiver
from tests.support.clock import FakeClock
from tests.support.commitment import IMPLICIT, request
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes
from tests.support.wirepeer import CT, EXPLICIT

STUDY = "1.2.826.0.1.3680043.9.9.64"


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data", durability="study")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells when the machine was started."""
    path = tmp_path / "boot"
    path.write_text("first", encoding="ascii")
    monkeypatch.setattr(boot, "SOURCE", path)
    return path


def receiver_of(intake: Intake) -> Receiver:
    return Receiver(intake.settings, intake.database, intake.blobs, intake.clock)


def arrival(index: int) -> Arrival:
    return Arrival("a1", Door.DICOM, datetime.now(UTC), EXPLICIT, CT, f"{STUDY}.1.{index}")


def body(index: int, study: str = STUDY) -> bytes:
    return dataset_bytes(file_bytes(ct_slice(index, study, f"{study}.1", size=4)))


def answered(receiver: Receiver, index: int) -> None:
    """The sender has heard Success, and the process dies before the image's digest is known."""
    with receiver.receiving(arrival(index)) as reception:
        reception.write(body(index))
        reception.store()


def told(intake: Intake, kind: str) -> list[EventRow]:
    with intake.database.read() as session:
        return list(session.exec(select(EventRow).where(EventRow.kind == kind)).all())


@pytest.mark.parametrize("cut", [False, True])
def test_an_image_of_the_last_moment_is_kept_after_a_death_and_not_trusted_after_a_power_cut(
    intake: Intake, started: Path, cut: bool
) -> None:
    dying = receiver_of(intake)
    assert dying.replay() == 0
    answered(dying, 1)
    known = dying.accept(arrival(2), [body(2)])
    if cut:
        started.write_text("second", encoding="ascii")
    again = receiver_of(intake)
    again.replay()
    assert len(intake.instances()) == (1 if cut else 2)
    assert known.entry.sha256 in {row.blob_sha256 for row in intake.instances()}
    assert again.spool.quarantine_depth() == len(told(intake, "intake.quarantined")) == (1 if cut else 0)
    assert again.spool.depth() == 0


def test_a_database_that_is_away_makes_nobody_trust_it_later(
    intake: Intake, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(receiver_of(intake), 1)
    started.write_text("second", encoding="ascii")
    again = receiver_of(intake)

    def away() -> None:
        raise StorageFailed("the database does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(intake.database, "write", away)
        with pytest.raises(StorageFailed):
            again.replay()
    again.adopt_orphans(0.0)
    assert intake.instances() == []
    assert again.spool.quarantine_depth() == 1


@pytest.mark.parametrize("first", ["harden", "adopt_orphans", "another process"])
def test_whoever_comes_first_nobody_trusts_an_image_of_before_the_cut(
    intake: Intake, started: Path, first: str
) -> None:
    answered(receiver_of(intake), 1)
    (torn,) = intake.settings.spool_dir.glob("ready/*.unsynced-*.dcm")
    torn.write_bytes(torn.read_bytes()[:-16] + bytes(16))
    started.write_text("second", encoding="ascii")
    again = receiver_of(intake)
    if first == "harden":
        again.harden([])
    elif first == "adopt_orphans":
        again.adopt_orphans(0.0)
    else:
        receiver_of(intake).harden([])
    again.replay()
    assert intake.instances() == []
    assert again.spool.quarantine_depth() == len(told(intake, "intake.quarantined")) == 1


def test_a_study_of_more_rows_than_are_looked_at_once_is_not_called_hard(
    intake: Intake, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "MAX_PER_SCAN", 5)
    receiver = receiver_of(intake)
    receiver.replay()
    items = [receiver.accept(arrival(index), [body(index, f"{STUDY}.{index % 3}")]) for index in range(12)]
    receiver.commit_group(items)
    ids = {study.id for study in intake.studies()}
    assert len(ids) == 3
    while ids:
        hard = receiver.harden(ids)
        assert hard
        for row in intake.instances():
            assert row.durable or row.study_id not in hard
        ids -= hard


def test_a_person_closes_nothing_that_a_power_cut_may_take(
    intake: Intake, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receiver_of(intake)
    receiver.replay()
    receiver.commit_group([receiver.accept(arrival(1), [body(1)])])
    late = iter(range(2, 4))
    real = receiver.harden

    def harden(ids: Collection[str]) -> frozenset[str]:
        hard = real(ids)
        # One more comes just then.
        for index in late:
            receiver.commit_group([receiver.accept(arrival(index), [body(index)])])
            break
        return hard

    monkeypatch.setattr(receiver, "harden", harden)
    closed_with = receiver.close_hard(STUDY, lambda _session: len(intake.instances()))
    assert closed_with == 3
    assert all(row.durable for row in intake.instances())


@pytest.mark.parametrize("by", ["replay", "adopt_orphans", "harden"])
def test_all_rows_are_looked_at_however_many_and_by_whoever_comes_first(
    intake: Intake, started: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(hardening, "MAX_PER_SCAN", 3)
    before = receiver_of(intake)
    before.replay()
    items = [before.accept(arrival(index), [body(index)]) for index in range(10)]
    before.commit_group(items)
    before.clear(all_of_it=True)
    for item in items[2:9:2]:
        intake.blobs.path(item.entry.sha256).write_bytes(b"torn")
    started.write_text("second", encoding="ascii")
    again = receiver_of(intake)
    if by == "replay":
        again.replay()
    elif by == "adopt_orphans":
        again.adopt_orphans(0.0)
    else:
        again.harden([study.id for study in intake.studies()])
    rows = intake.instances()
    assert len(rows) == 6
    assert all(row.durable for row in rows)
    assert sum(int(event.payload["lost"]) for event in told(intake, "study.images_lost")) == 4
    for row in rows:
        intake.blobs.verify(row.blob_sha256)
    assert not hardening.is_new_boot(again.spool.root)


def test_a_request_for_commitment_that_comes_first_finds_what_the_cut_took(intake: Intake, started: Path) -> None:
    before = receiver_of(intake)
    before.replay()
    items = [before.accept(arrival(index), [body(index)]) for index in range(1, 4)]
    before.commit_group(items)
    before.clear(all_of_it=True)
    torn = intake.blobs.path(items[1].entry.sha256)
    torn.chmod(0o600)
    torn.write_bytes(torn.read_bytes()[:-8] + bytes(8))
    started.write_text("second", encoding="ascii")

    clock, peers, reports = FakeClock(intake.clock.now()), {"CT1": Peer("CT1", "127.0.0.1", 104)}, list[Report]()

    def send(peer: Peer, report: Report) -> DeliveryOutcome:
        assert peer is peers["CT1"]
        reports.append(report)
        return DeliveryOutcome(Delivery.TOLD, 0)

    again = receiver_of(intake)
    wanted = [(CT, str(item.identity.sop_uid)) for item in items]
    desk = CommitmentDesk(intake.database, clock, peers)
    assert desk.ask(request("1.2.99.1", wanted), IMPLICIT, "CT1", None, None) == 0
    clock.advance(REPORT_DELAY_S + 60)
    worker = CommitmentWorker(
        intake.database, intake.blobs, clock, peers, send, again.settled, again.look_for_losses, max_age_s=3600
    )
    again.start()
    try:
        assert worker.step()
    finally:
        again.stop()
    assert [reports[0].references[one.position].sop_instance_uid for one in reports[0].failures] == [wanted[1][1]]
    # The row went with its bytes: the image is stored anew where its sender believes the report and sends it again.
    rows = intake.instances()
    assert {row.sop_uid for row in rows} == {wanted[0][1], wanted[2][1]}
    assert all(row.durable for row in rows)
    assert [int(event.payload["lost"]) for event in told(intake, "study.images_lost")] == [1]
    again.commit_group([again.accept(arrival(2), [body(2)])])
    assert len(intake.instances()) == 3
    intake.blobs.verify(items[1].entry.sha256)


def test_an_image_that_is_sent_again_while_losses_are_looked_for_keeps_its_row(
    intake: Intake, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receiver_of(intake)
    receiver.replay()
    receiver.commit_group([receiver.accept(arrival(1), [body(1)])])
    receiver.clear(all_of_it=True)
    (row,) = intake.instances()
    receiver.spool.close()
    # The power cut takes its last bytes.
    place = intake.blobs.locate(row.blob_sha256)
    place.chmod(0o600)
    place.write_bytes(place.read_bytes()[:-16] + bytes(16))
    started.write_text("second", encoding="ascii")
    again = receiver_of(intake)
    hardened = intake.blobs.harden

    def meanwhile(digests: Iterable[Sha256]) -> list[Sha256]:
        # What was damaged is set aside, and its row is not yet taken back.
        again.commit_group([again.accept(arrival(1), [body(1)])])
        return hardened(digests)

    monkeypatch.setattr(intake.blobs, "harden", meanwhile)
    again.look_for_losses()
    assert [(one.id, one.blob_sha256, one.durable) for one in intake.instances()] == [(row.id, row.blob_sha256, True)]
    assert intake.blobs.verify(row.blob_sha256)
    assert told(intake, "study.images_lost") == []
