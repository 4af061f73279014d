"""The table of commitment requests: one row for each, one worker at a time, one report at a time for each peer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any, cast

import pytest

from heimdallr_ray.catalog import commitment_leases as leases
from heimdallr_ray.catalog import commitments
from heimdallr_ray.catalog.commitment_leases import CommitmentLease
from heimdallr_ray.catalog.commitments import Asked, CommitmentRequest, Failure, Reference
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import EventRow
from heimdallr_ray.catalog.worklist import events_after
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Peer
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.listener.commitment_report import Delivery, DeliveryOutcome, Report
from heimdallr_ray.listener.commitment_worker import CommitmentWorker
from tests.support.clock import EPOCH
from tests.support.commitment import CT, rows

LEASE_S = 60.0


def asked(number: int = 1, peer: str = "CT1", instance: str = "1.2.3") -> CommitmentRequest:
    return CommitmentRequest(f"1.2.99.{number}", (Reference(CT, instance),), peer, "10.0.0.5", f"a{number}")


def record(database: Database, request: CommitmentRequest, at_s: float = 0.0) -> Asked:
    now = EPOCH + timedelta(seconds=at_s)
    with database.write() as session:
        return commitments.record_request(session, request, now, now).asked


def claim(database: Database, at_s: float = 0.0, owner: str = "host/1/a") -> CommitmentLease | None:
    with database.write() as session:
        return leases.claim(session, owner, EPOCH + timedelta(seconds=at_s), LEASE_S)


def held(database: Database, at_s: float = 0.0) -> CommitmentLease:
    lease = claim(database, at_s)
    assert lease is not None
    return lease


def test_asking_again_is_one_row_and_other_references_change_nothing(database: Database) -> None:
    assert record(database, asked()) is Asked.NEW
    assert record(database, asked(), 3) is Asked.AGAIN
    assert record(database, asked(instance="1.2.4"), 4) is Asked.OTHER
    assert record(database, asked(peer="CT2"), 5) is Asked.NEW
    first, second = rows(database)
    assert (first.times_asked, first.items, first.n_items, first.state) == (2, [[CT, "1.2.3"]], 1, "waiting")
    assert (first.first_asked_at, first.asked_at) == (EPOCH, EPOCH + timedelta(seconds=3))
    assert (second.calling_ae, second.times_asked) == ("CT2", 1)


def test_a_request_that_has_ended_waits_again_when_it_is_asked_again(database: Database) -> None:
    record(database, asked())
    lease = held(database)
    with database.write() as session:
        leases.record_check(session, lease, [Failure(0, 0x0112)], EPOCH)
        leases.record_told(session, lease, EPOCH, 1, None)
    assert rows(database)[0].state == "told" and claim(database, 9) is None
    assert record(database, asked(), 10) is Asked.AGAIN
    row = rows(database)[0]
    assert (row.state, row.checked_at, row.n_failed, row.failures, row.ended_at) == ("waiting", None, None, [], None)
    again = held(database, 10)
    assert again.fence == lease.fence + 1 and again.checked_at is None


def test_one_worker_holds_a_request_and_one_report_goes_to_a_peer_at_a_time(database: Database) -> None:
    for number, peer in ((1, "CT1"), (2, "CT1"), (3, "CT2")):
        record(database, asked(number, peer), number)
    first = held(database, 10)
    assert first.transaction_uid == "1.2.99.1"
    assert held(database, 10).calling_ae == "CT2"
    assert claim(database, 10) is None, "CT1 is being told"
    with database.write() as session:
        leases.record_told(session, first, EPOCH, 0, None)
    assert held(database, 10).transaction_uid == "1.2.99.2"


def test_a_lease_that_ran_out_is_taken_over_and_its_late_holder_changes_nothing(database: Database) -> None:
    record(database, asked())
    late = held(database)
    assert claim(database, LEASE_S - 1) is None
    held(database, LEASE_S + 1)
    now = EPOCH + timedelta(seconds=LEASE_S + 2)
    with pytest.raises(StaleLease), database.write() as session:
        leases.record_told(session, late, now, 0, None)
    with pytest.raises(StaleLease), database.write() as session:
        leases.renew(session, late, now, LEASE_S)
    with pytest.raises(StaleLease), database.write() as session:
        leases.record_failure(session, late, now, "unreachable", "")
    row = rows(database)[0]
    assert (row.state, row.fence, row.attempt) == ("waiting", 2, 0)


def test_requests_of_a_dead_holder_are_free_at_once(database: Database) -> None:
    record(database, asked(1))
    record(database, asked(2, "CT2"), 0.1)
    claim(database, 1, owner="host/1/dead")
    claim(database, 1, owner="host/2/alive")
    with database.write() as session:
        assert leases.free_dead_owners(session, lambda owner: "dead" in owner) == 1
    assert held(database, 1).transaction_uid == "1.2.99.1" and claim(database, 1) is None


def test_a_peer_that_cannot_be_reached_is_tried_once_for_all_its_requests(database: Database) -> None:
    for number in (1, 2, 3):
        record(database, asked(number), 0.1 * (number - 1))
    record(database, asked(4, "CT2"), 0.9)
    lease = held(database)
    with database.write() as session:
        again = leases.record_failure(session, lease, EPOCH, "unreachable", "nobody there")
    assert again == EPOCH + timedelta(seconds=5)
    assert held(database, 1).calling_ae == "CT2" and claim(database, 1) is None
    with database.read() as session:
        found = commitments.outbox(session)
        waiting = commitments.pending(session, 2)
    assert (found.depth, found.oldest_asked_at, found.failing, found.given_up) == (4, EPOCH, 1, 0)
    assert [(item.calling_ae, item.n_items) for item in waiting] == [("CT1", 1), ("CT1", 1)]
    assert sorted((item.attempt, item.error_code) for item in waiting)[-1] == (1, "unreachable")
    # Once one report gets through, the others need not wait for their turn.
    lease = held(database, 6)
    with database.write() as session:
        leases.record_failure(session, lease, EPOCH + timedelta(seconds=6), "unreachable", "")
    lease = held(database, 20)
    with database.write() as session:
        leases.record_told(session, lease, EPOCH + timedelta(seconds=20), 0, None)
    assert held(database, 20).calling_ae == "CT1"


def test_a_refused_report_keeps_no_other_waiting(database: Database) -> None:
    record(database, asked(1))
    record(database, asked(2), 0.1)
    lease = held(database)
    with database.write() as session:
        leases.record_failure(session, lease, EPOCH, "refused", "0x0110", refused=True, of_peer=False)
    assert held(database, 1).transaction_uid == "1.2.99.2"
    assert rows(database)[0].refusals == 1


@pytest.mark.parametrize("hours", [-1, 1, -24])
def test_a_step_of_the_clock_holds_no_request_back(database: Database, hours: int) -> None:
    record(database, asked())
    lease = held(database)
    with database.write() as session:
        leases.record_failure(session, lease, EPOCH, "unreachable", "")
    assert claim(database, hours * 3600) is not None


def test_a_lease_of_before_a_step_back_does_not_last_for_hours(database: Database) -> None:
    record(database, asked())
    held(database)
    assert claim(database, -3600) is not None


def test_asking_telling_and_giving_up_are_events_without_patient_data(database: Database) -> None:
    record(database, asked(1))
    record(database, asked(2), 0.1)
    first = held(database)
    with database.write() as session:
        leases.record_told(session, first, EPOCH, 0, None)
        leases.give_up(
            session,
            leases.claim(session, "o", EPOCH + timedelta(seconds=1), LEASE_S) or first,
            EPOCH,
            "too_old",
            "no",
        )
    with database.read() as session:
        found: list[EventRow] = list(events_after(session, 0, 100))
        figures = commitments.outbox(session)
    assert [event.kind for event in found] == [
        *("commitment.asked", "commitment.asked", "commitment.told", "commitment.given_up")
    ]
    assert found[2].payload == {"commitment": first.id, "peer": "CT1", "n_items": 1, "n_failed": 0}
    assert (figures.depth, figures.oldest_asked_at, figures.given_up) == (0, None, 1)


def test_workers_of_several_processes_tell_each_request_once_and_a_peer_one_at_a_time(database: Database) -> None:
    """Four workers over one database, as four listeners have; a report takes a while."""
    clock = SystemClock()
    with database.write() as session:
        for number in range(24):
            commitments.record_request(session, asked(number, f"CT{number % 3}"), clock.now(), clock.now())
    lock, busy, most, told = threading.Lock(), Counter[str](), Counter[str](), Counter[str]()

    def send(peer: Peer, report: Report) -> DeliveryOutcome:
        with lock:
            busy[peer.ae_title] += 1
            most[peer.ae_title] = max(most[peer.ae_title], busy[peer.ae_title])
            told[report.transaction_uid] += 1
        time.sleep(0.02)
        with lock:
            busy[peer.ae_title] -= 1
        return DeliveryOutcome(Delivery.TOLD, 0)

    peers = {f"CT{number}": Peer(f"CT{number}", "127.0.0.1", 104) for number in range(3)}
    workers = [
        CommitmentWorker(
            database,
            cast(Any, _NoBlobs()),
            clock,
            peers,
            send,
            lambda _: True,
            lambda: None,
            max_age_s=60,
            missing_grace_s=0,
            scan_s=0.05,
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while any(row.state == "waiting" for row in rows(database)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for worker in workers:
        worker.stop()
    assert set(told.values()) == {1} and len(told) == 24
    assert most == {"CT0": 1, "CT1": 1, "CT2": 1}
    assert {(row.state, row.n_failed) for row in rows(database)} == {("told", 1)}


class _NoBlobs:
    """Never asked: no reference of these tests is in the catalog."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)
