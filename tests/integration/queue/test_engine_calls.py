"""Deaths of engines count for the study that was inside, once, until another study is convicted of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import EngineCallRow
from heimdallr_ray.deployments import attendance
from heimdallr_ray.deployments.attendance import Attendance
from heimdallr_ray.errors import EngineKilled, EngineUnavailable, StaleLease
from heimdallr_ray.ids import new_id
from heimdallr_ray.queue.engine_calls import MAX_DEATHS, EngineCalls, EngineId, Ticket, require_innocent
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from tests.support.clock import FakeClock

FIRST = EngineId("host/1/a", "node", "models")
SECOND = replace(FIRST, replica="host/2/b")
THIRD = replace(FIRST, replica="host/3/c")


class Site:
    """A queue and the calls of its jobs."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, FakeClock()
        self.queue = LeaseQueue(database, self.clock, 20.0, database_time=False)
        self.calls = EngineCalls(database, self.clock)
        self._names = (f"job-{number}" for number in count())

    def lease(self) -> Lease:
        with self.database.write() as session:
            self.queue.enqueue(session, "study", next(self._names), payload={"manifest_sha256": "images"})
        found = self.queue.claim("worker", ["study"])
        assert found is not None
        return found

    def ticket(self, lease: Lease, manifest: str = "images") -> Ticket:
        return Ticket(new_id(), lease.job_id, lease.fence, manifest)

    def enter(self, lease: Lease, engine: EngineId = FIRST) -> Ticket:
        ticket = self.ticket(lease)
        self.calls.enter(ticket, engine)
        self.clock.advance(1)
        return ticket

    def die(self, lease: Lease, ticket: Ticket) -> int:
        with self.database.write() as session:
            return self.calls.record_death(session, lease, ticket, "replica")

    def must_be_alone(self, lease: Lease, engine: EngineId = FIRST, manifest: str = "images") -> bool:
        return self.calls.must_be_alone(self.ticket(lease, manifest), engine)

    def states(self) -> list[str]:
        with self.database.read() as session:
            rows = session.exec(select(EngineCallRow)).all()
            return [row.state for row in sorted(rows, key=lambda row: row.began_at)]


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


def test_a_study_that_leaves_the_engine_leaves_no_row(site: Site) -> None:
    lease = site.lease()
    ticket = site.enter(lease)
    assert site.calls.inside(ticket) == replace(FIRST, identity="")
    site.calls.leave(ticket)
    assert site.calls.inside(ticket) is None
    assert (site.states(), site.die(lease, ticket), site.must_be_alone(lease)) == ([], 0, False)


def test_the_second_death_is_one_too_many_and_each_is_counted_once(site: Site) -> None:
    lease = site.lease()
    first = site.enter(lease)
    assert [site.die(lease, first), site.die(lease, first)] == [1, 0]
    require_innocent(1)
    assert site.must_be_alone(lease)
    second = site.enter(lease, SECOND)
    assert site.die(lease, second) == MAX_DEATHS == 2
    assert site.states() == ["guilty", "guilty"]
    # Also for a holder that took over before the study's failure was written down.
    with pytest.raises(EngineKilled, match="died 2 times"):
        site.must_be_alone(lease, THIRD)
    with pytest.raises(EngineKilled):
        require_innocent(2)


def test_other_images_and_another_engine_start_at_zero(site: Site) -> None:
    lease = site.lease()
    site.die(lease, site.enter(lease))
    assert site.must_be_alone(lease)
    assert not site.must_be_alone(lease, manifest="more images")
    other = replace(SECOND, identity="other models")
    assert not site.must_be_alone(lease, other)
    assert site.die(lease, site.enter(lease, other)) == 1
    assert not site.must_be_alone(site.lease())


def test_who_shared_a_death_is_cleared_when_the_other_one_is_convicted(site: Site) -> None:
    killer, beside = site.lease(), site.lease()
    tickets = site.enter(killer), site.enter(beside)
    assert (site.die(killer, tickets[0]), site.die(beside, tickets[1])) == (1, 1)
    assert site.must_be_alone(killer) and site.must_be_alone(beside)
    assert site.die(killer, site.enter(killer, SECOND)) == 2
    assert site.must_be_alone(beside)
    # Its own next death is its first one.
    assert site.die(beside, site.enter(beside, THIRD)) == 1


def test_a_death_of_which_another_was_convicted_before_it_was_recorded_does_not_count(site: Site) -> None:
    killer, beside = site.lease(), site.lease()
    tickets = site.enter(killer), site.enter(beside)
    site.die(killer, tickets[0])
    site.die(killer, site.enter(killer, SECOND))
    assert site.die(beside, tickets[1]) == 0


def test_a_stale_holder_does_not_enter_and_what_it_left_is_forgotten(site: Site) -> None:
    lease = site.lease()
    left = site.enter(lease)
    site.clock.advance(21)
    taken = site.queue.claim("another", ["study"])
    assert taken is not None and taken.job_id == lease.job_id
    with pytest.raises(StaleLease):
        site.enter(lease)
    assert site.states() == ["inside"]
    site.enter(taken, SECOND)
    assert (site.states(), site.calls.inside(left)) == (["inside"], None)


def test_the_door_signs_in_and_out_and_keeps_suspects_apart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "WAIT_S", 0.05)
    door = Attendance(site.calls, FIRST, places=2)
    suspect, other = site.lease(), site.lease()
    site.die(suspect, site.enter(suspect, SECOND))
    with door.of(site.ticket(other)), door.of(None):
        assert site.states() == ["died", "inside"]
        with pytest.raises(EngineUnavailable, match="did not leave"), door.of(site.ticket(suspect)):
            pytest.fail("it was not alone")
    assert site.states() == ["died"]
    with pytest.raises(ValueError, match="the engine's"), door.of(site.ticket(suspect)):
        raise ValueError("the engine's")
    assert site.states() == ["died"]


def test_a_study_that_cannot_be_signed_in_is_not_begun(site: Site) -> None:
    lease = site.lease()
    with pytest.raises(StaleLease), Attendance(site.calls, FIRST, 1).of(replace(site.ticket(lease), fence=0)):
        pytest.fail("it was begun")


def test_an_engine_is_another_one_with_other_models_device_or_package(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "manifest.json").write_text("{}")
    one = attendance.identity_of("1.0", folder, "cuda")
    assert one == attendance.identity_of("1.0", folder, "cuda")
    others = {attendance.identity_of("1.1", folder, "cuda"), attendance.identity_of("1.0", folder, "cpu")}
    (folder / "manifest.json").write_text("{ }")
    others.add(attendance.identity_of("1.0", folder, "cuda"))
    assert len(others | {one}) == 4


def test_work_that_nobody_waits_for_is_convicted_at_once_and_clears_who_was_beside_it(site: Site) -> None:
    ahead, live = site.lease(), site.lease()
    of_ahead, of_live = site.enter(ahead), site.enter(live)
    assert site.die(live, of_live) == 1
    with site.database.write() as session:
        assert site.calls.record_death(session, ahead, of_ahead, FIRST.replica, limit=1) == 1
    with pytest.raises(EngineKilled, match="died once"):
        require_innocent(1, 1)
    # The death that both were in counts for the live study no more.
    assert site.die(live, site.enter(live, SECOND)) == 1
