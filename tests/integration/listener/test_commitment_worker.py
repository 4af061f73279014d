"""The worker that answers requests for commitment, with a clock that the test moves and a peer that it invents."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select

from heimdallr_ray.catalog.commitments import Asked
from heimdallr_ray.catalog.tables import AuditRow, InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.config import Peer
from heimdallr_ray.errors import DatabaseBusy, StorageFailed, StorageFull
from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener.action import ActionStatus
from heimdallr_ray.listener.commitment import REPORT_DELAY_S, CommitmentDesk
from heimdallr_ray.listener.commitment_check import FLUSH_PATIENCE_S, MISSING_GRACE_S
from heimdallr_ray.listener.commitment_report import Delivery, DeliveryOutcome, Report, ReportSender
from heimdallr_ray.listener.commitment_worker import MAX_REFUSALS, RECHECK_S, CommitmentWorker
from heimdallr_ray.security.audit import AuditLog
from tests.support.clock import FakeClock
from tests.support.commitment import CT, IMPLICIT, MR, report_peer, request, rows
from tests.support.intake import Intake, wait_for

DAY_S = 86_400.0
TRANSACTION = "1.2.99.1"
PEERS = {"CT1": Peer("CT1", "127.0.0.1", 104)}


class Bench:
    """A desk and a worker over one catalog, without a network."""

    def __init__(self, folder: Path) -> None:
        self.intake = Intake(folder / "data")
        self.clock = FakeClock()
        self.reports: list[Report] = []
        self.outcome = DeliveryOutcome(Delivery.TOLD, 0)
        self.flushes = 0
        self.flushed = True
        self.on_flush: Callable[[], object] = lambda: None
        self.on_send: Callable[[], None] = lambda: None
        self.on_look: Callable[[], None] = lambda: None
        self.desk = CommitmentDesk(self.intake.database, self.clock, PEERS)
        self.worker = self.another()

    def another(self, *, max_age_s: float = 7 * DAY_S, audit: AuditLog | None = None) -> CommitmentWorker:
        return CommitmentWorker(
            self.intake.database,
            self.intake.blobs,
            self.clock,
            PEERS,
            self.send,
            self.flush,
            self.look_for_losses,
            max_age_s=max_age_s,
            audit=audit,
        )

    def send(self, peer: Peer, report: Report) -> DeliveryOutcome:
        assert peer is PEERS["CT1"]
        self.on_send()
        self.reports.append(report)
        return self.outcome

    def flush(self, timeout_s: float) -> bool:
        assert 0 < timeout_s < 60
        self.flushes += 1
        self.on_flush()
        return self.flushed

    def look_for_losses(self) -> None:
        self.on_look()

    def store(
        self, sop_uid: str, content: bytes, sop_class: str = CT, *, study: str = "1.2.1", durable: bool = True
    ) -> str:
        """An instance in catalog and store; its blob."""
        blob = self.intake.blobs.put(content).sha256
        with self.intake.database.write() as session:
            now = self.clock.now()
            row = session.exec(select(StudyRow).where(StudyRow.study_uid == study)).one_or_none()
            if row is None:
                row = StudyRow(study_uid=study, first_received_at=now, last_received_at=now)
                session.add(row)
                session.flush()
            series = SeriesRow(study_id=row.id, series_uid=f"{study}.{blob[:5]}")
            session.add(series)
            session.flush()
            session.add(
                InstanceRow(
                    study_id=row.id,
                    series_id=series.id,
                    sop_uid=sop_uid,
                    sop_class_uid=sop_class,
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    blob_sha256=blob,
                    size=len(content),
                    spool_name=f"{study}{blob}"[:64],
                    received_at=now,
                    durable=durable,
                )
            )
        return blob

    def damage(self, blob: str) -> None:
        path = self.intake.blobs.path(blob)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"?")

    def ask(self, *pairs: tuple[str, str], transaction: str = TRANSACTION) -> None:
        dataset = request(transaction, pairs or [(CT, "1.2.3")])
        assert self.desk.ask(dataset, IMPLICIT, "CT1 ", "10.0.0.5", "a1") == ActionStatus.SUCCESS
        self.clock.advance(REPORT_DELAY_S)

    def failures(self) -> dict[str, int]:
        report = self.reports[-1]
        return {report.references[item.position].sop_instance_uid: item.reason for item in report.failures}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_no_report_overtakes_the_answer_to_its_request(bench: Bench) -> None:
    bench.store("1.2.3", b"x")
    bench.ask()
    bench.clock.advance(-REPORT_DELAY_S)
    assert not bench.worker.step()
    bench.clock.advance(REPORT_DELAY_S)
    assert bench.worker.step() and not bench.worker.step()
    assert bench.failures() == {} and bench.flushes == 0


def test_every_kind_of_failure_has_its_reason(bench: Bench) -> None:
    bench.store("1.2.1", b"whole")
    bench.store("1.2.2", b"of another class", MR)
    bench.damage(bench.store("1.2.3", b"damaged"))
    bench.intake.blobs.path(bench.store("1.2.4", b"gone")).unlink()
    bench.ask(*((CT, f"1.2.{number}") for number in range(1, 6)))
    bench.clock.advance(MISSING_GRACE_S)
    assert bench.worker.step()
    assert bench.failures() == {"1.2.2": 0x0119, "1.2.3": 0x0110, "1.2.4": 0x0110, "1.2.5": 0x0112}
    assert rows(bench.intake.database)[0].n_failed == 4


def test_where_one_uid_came_with_two_contents_both_must_be_whole(bench: Bench) -> None:
    bench.store("1.2.3", b"one")
    other = bench.store("1.2.3", b"other", study="1.2.2")
    bench.ask()
    assert bench.worker.step() and bench.failures() == {}
    bench.damage(other)
    bench.ask(transaction="1.2.99.2")
    assert bench.worker.step() and bench.failures() == {"1.2.3": 0x0110}


def test_what_was_acknowledged_but_is_no_row_yet_is_flushed_first(bench: Bench) -> None:
    bench.on_flush = lambda: bench.store("1.2.3", b"x")
    bench.ask()
    assert bench.worker.step()
    assert bench.flushes == 1 and bench.failures() == {}


def test_what_another_process_acknowledged_is_waited_for(bench: Bench) -> None:
    bench.ask()
    assert bench.worker.step() and bench.reports == []
    assert not bench.worker.step(), "not before a pause"
    bench.clock.advance(2)
    bench.store("1.2.3", b"x")
    assert bench.worker.step() and bench.failures() == {}
    assert rows(bench.intake.database)[0].attempt == 0


@pytest.mark.parametrize(("flushed", "bound_s"), [(True, MISSING_GRACE_S), (False, FLUSH_PATIENCE_S)])
def test_what_is_missing_is_waited_for_within_a_bound(bench: Bench, flushed: bool, bound_s: float) -> None:
    bench.flushed = flushed
    bench.ask()
    waited_s = 0.0
    while not bench.reports:
        assert bench.worker.step()
        bench.clock.advance(2)
        waited_s += 2
    assert bound_s - 2 <= waited_s <= bound_s + 4 and bench.failures() == {"1.2.3": 0x0112}


def test_a_peer_that_always_rejects_the_association_is_backed_off_and_given_up_after_a_week(bench: Bench) -> None:
    bench.store("1.2.3", b"x")
    bench.outcome = DeliveryOutcome(Delivery.REJECTED, None, "result 1, source 1, reason 3")
    bench.ask()
    started, at = bench.clock.monotonic(), list[float]()
    bench.on_send = lambda: at.append(bench.clock.monotonic())
    while (row := rows(bench.intake.database)[0]).state == "waiting":
        if not bench.worker.step():
            bench.clock.advance((row.run_at - bench.clock.now()).total_seconds())
    waits = [round(later - earlier) for earlier, later in itertools.pairwise(at)]
    assert waits[:6] == [5, 10, 20, 40, 80, 160] and max(waits) == 3600
    assert 7 * DAY_S <= bench.clock.monotonic() - started <= 7 * DAY_S + 3601 and len(at) < 190
    assert (row.state, row.error_code) == ("given_up", "too_old") and "commitment_days" in (row.error or "")


def test_a_peer_that_always_refuses_the_report_is_given_up_soon(bench: Bench) -> None:
    bench.store("1.2.3", b"x")
    bench.outcome = DeliveryOutcome(Delivery.REFUSED, 0x0110, "the peer answered the report with 0x0110")
    bench.ask()
    for _ in range(MAX_REFUSALS):
        assert bench.worker.step()
        bench.clock.advance(3600)
    row = rows(bench.intake.database)[0]
    assert (row.state, row.error_code, len(bench.reports)) == ("given_up", "refused", MAX_REFUSALS)
    bench.outcome = DeliveryOutcome(Delivery.TOLD, 0)
    bench.ask()
    assert bench.worker.step() and rows(bench.intake.database)[0].state == "told"


def test_what_is_told_late_has_been_looked_at_again(bench: Bench) -> None:
    blob = bench.store("1.2.3", b"x")
    bench.outcome = DeliveryOutcome(Delivery.UNREACHABLE)
    bench.ask()
    assert bench.worker.step() and bench.failures() == {}
    bench.damage(blob)
    bench.clock.advance(10)
    assert bench.worker.step() and bench.failures() == {}, "found a moment ago"
    bench.clock.advance(RECHECK_S + 1)
    bench.outcome = DeliveryOutcome(Delivery.TOLD, 0)
    assert bench.worker.step() and bench.failures() == {"1.2.3": 0x0110}


@pytest.mark.parametrize("step_s", [-3600, 3600, -7 * 3600])
def test_a_step_of_the_clock_neither_loses_nor_holds_a_report(bench: Bench, step_s: float) -> None:
    bench.store("1.2.3", b"x")
    bench.outcome = DeliveryOutcome(Delivery.UNREACHABLE)
    bench.ask()
    assert bench.worker.step()
    bench.clock.step(step_s)
    bench.outcome = DeliveryOutcome(Delivery.TOLD, 0)
    bench.clock.advance(6)
    assert bench.worker.step()
    assert rows(bench.intake.database)[0].state == "told"


def test_a_worker_that_was_stopped_for_longer_than_its_lease_changes_nothing(bench: Bench) -> None:
    """SIGSTOP while the peer is told; another worker tells it too and ends the request; then SIGCONT."""
    bench.store("1.2.3", b"x")
    bench.ask()

    def meanwhile() -> None:
        bench.on_send = lambda: None
        bench.clock.advance(1000)
        assert bench.another().step()
        assert rows(bench.intake.database)[0].state == "told"
        bench.outcome = DeliveryOutcome(Delivery.REFUSED, 0x0110)

    bench.on_send = meanwhile
    assert bench.worker.step()
    row = rows(bench.intake.database)[0]
    assert (row.state, row.refusals, row.fence, len(bench.reports)) == ("told", 0, 2, 2)


def test_a_peer_that_left_the_settings_is_named(tmp_path: Path, bench: Bench) -> None:
    bench.store("1.2.3", b"x")
    bench.ask()
    worker = CommitmentWorker(
        bench.intake.database,
        bench.intake.blobs,
        bench.clock,
        {},
        bench.send,
        bench.flush,
        bench.look_for_losses,
        max_age_s=DAY_S,
    )
    assert worker.step() and bench.reports == []
    assert "commitment_peers" in (rows(bench.intake.database)[0].error or "")


def test_nothing_is_promised_while_it_is_not_known_what_a_power_cut_took(bench: Bench) -> None:
    bench.store("1.2.3", b"x", durable=False)

    def away() -> None:
        raise StorageFailed("the disk does not answer")

    bench.on_look = away
    bench.ask()
    for _ in range(3):
        with pytest.raises(StorageFailed):
            bench.worker.step()
    row = rows(bench.intake.database)[0]
    assert (row.state, row.owner, row.attempt, bench.reports) == ("waiting", None, 0, [])
    with bench.intake.database.read() as session:
        assert session.exec(select(InstanceRow.durable)).all() == [False]
    bench.on_look = lambda: None
    assert bench.worker.step() and bench.failures() == {}
    with bench.intake.database.read() as session:
        assert session.exec(select(InstanceRow.durable)).all() == [True]


def test_a_database_that_does_not_answer_is_a_processing_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, status in ((DatabaseBusy(), 0x0110), (StorageFull(), 0x0213)):

        def refuse(*_: object, error: Exception = error) -> Asked:
            raise error

        monkeypatch.setattr("heimdallr_ray.listener.commitment.record_request", refuse)
        assert bench.desk.ask(request(TRANSACTION, [(CT, "1.2.3")]), IMPLICIT, "CT1", None, None) == status
    assert rows(bench.intake.database) == []


KILLED = """
import sys, time
from pathlib import Path
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Peer
from heimdallr_ray.listener.commitment_worker import CommitmentWorker
from tests.support.intake import Intake
intake = Intake(Path(sys.argv[1]))
def send(peer, report):
    print("telling", flush=True)
    time.sleep(60)
worker = CommitmentWorker(intake.database, intake.blobs, SystemClock(), {"CT1": Peer("CT1", "127.0.0.1", 104)}, send,
                          lambda timeout_s: True, lambda: None, max_age_s=9e9)
worker.start()
time.sleep(60)
"""


def test_what_a_killed_worker_was_telling_is_told_by_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.clock = FakeClock(bench.intake.clock.now() - timedelta(seconds=30))
    bench.desk = CommitmentDesk(bench.intake.database, bench.clock, PEERS)
    bench.store("1.2.3", b"x")
    bench.ask()
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "data")], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"telling\n"
    finally:
        child.kill()
        child.wait(20)
        if child.stdout is not None:
            child.stdout.close()
    row = rows(bench.intake.database)[0]
    assert row.state == "waiting" and row.owner and row.lease_until
    with report_peer("CT1") as peer:
        peers = {"CT1": Peer("CT1", "127.0.0.1", peer.port)}
        worker = CommitmentWorker(
            bench.intake.database,
            bench.intake.blobs,
            bench.intake.clock,
            peers,
            ReportSender("HEIMDALLR"),
            bench.flush,
            bench.look_for_losses,
            max_age_s=DAY_S,
            scan_s=0.2,
        )
        started = time.monotonic()
        worker.start()
        try:
            wait_for(lambda: rows(bench.intake.database)[0].state == "told", 50, "the next worker tells it")
        finally:
            worker.stop()
    assert time.monotonic() - started < 60, "without waiting for the lease of a dead process"
    assert [told.committed for told in peer.told] == [["1.2.3"]] and rows(bench.intake.database)[0].fence == 2


def test_requests_and_answers_stand_in_the_audit_chain(bench: Bench) -> None:
    log = AuditLog.of(bench.intake.settings)
    bench.desk = CommitmentDesk(bench.intake.database, bench.clock, PEERS, audit=log)
    bench.store("1.2.3", b"x")
    bench.ask()
    assert bench.another(audit=log).step()
    bench.ask(transaction="1.2.99.2")
    assert bench.another(audit=log, max_age_s=0.1).step()
    with bench.intake.database.read() as session:
        entries = session.exec(
            select(AuditRow).where(col(AuditRow.action).startswith("commitment")).order_by(col(AuditRow.id))
        ).all()
    assert [(entry.action, entry.outcome, entry.actor_kind, entry.actor_name) for entry in entries] == [
        ("commitment.asked", "success", "ae", "CT1"),
        ("commitment.answered", "success", "system", "commitment"),
        ("commitment.asked", "success", "ae", "CT1"),
        ("commitment.answered", "failed", "system", "commitment"),
    ]
    assert entries[0].actor_address == "10.0.0.5" and "1.2.99" not in "".join(entry.detail for entry in entries)


def test_what_the_disk_may_not_have_yet_is_made_durable_before_it_is_committed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """durability = study: Success was answered before the disk had the bytes; a commitment says that it has them."""
    loose = bench.store("1.2.3", b"loose", durable=False)
    bench.store("1.2.4", b"firm")
    asked: list[Sha256] = []
    harden = bench.intake.blobs.harden

    def spy(digests: Iterable[Sha256]) -> list[Sha256]:
        asked.extend(given := list(digests))
        if len(asked) == 1:
            raise StorageFailed("the disk refuses")
        assert bench.reports == []
        return harden(given)

    monkeypatch.setattr(bench.intake.blobs, "harden", spy)
    bench.ask((CT, "1.2.3"), (CT, "1.2.4"))
    assert bench.worker.step() and bench.reports == []
    assert rows(bench.intake.database)[0].error_code == "storage_failed"
    bench.clock.advance(6)
    assert bench.worker.step() and bench.failures() == {}
    assert asked == [loose, loose] and all(row.durable for row in bench.intake.instances())


def test_what_is_in_memory_does_not_stand_for_what_is_on_the_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = bench.store("1.2.3", b"x")
    asked: list[str] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    bench.ask()
    assert bench.worker.step() and bench.failures() == {} and asked == [blob]


def test_requests_that_wait_are_bounded_for_each_peer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heimdallr_ray.catalog.commitments.MAX_WAITING", 2)
    bench.store("1.2.3", b"x")
    bench.ask()
    bench.ask(transaction="1.2.99.2")
    third = request("1.2.99.3", [(CT, "1.2.3")])
    assert bench.desk.ask(third, IMPLICIT, "CT1", None, None) == ActionStatus.RESOURCE_LIMITATION
    bench.ask()  # again, which is no new request
    assert bench.worker.step()
    assert bench.desk.ask(third, IMPLICIT, "CT1", None, None) == ActionStatus.SUCCESS


def test_who_sends_what_was_missing_and_asks_again_is_told_what_is_there_now(bench: Bench) -> None:
    bench.outcome = DeliveryOutcome(Delivery.UNREACHABLE)
    bench.ask()
    bench.clock.advance(MISSING_GRACE_S)
    assert bench.worker.step() and bench.failures() == {"1.2.3": 0x0112}
    bench.store("1.2.3", b"x")
    bench.outcome = DeliveryOutcome(Delivery.TOLD, 0)
    bench.ask()
    assert bench.worker.step() and bench.failures() == {}
