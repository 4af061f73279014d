"""More open studies than one scan looks at: each is looked at, and an honest one is closed in its time."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import pytest
from sqlalchemy import insert, text

from heimdallr_ray.catalog.associations import AssociationClosed, AssociationOpened, record_closed, record_opened
from heimdallr_ray.catalog.closing import MAX_WATCHED, open_studies
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.states import Door, How, StudyState
from heimdallr_ray.catalog.studies import record_instances, study_by_uid
from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.listener import completion
from heimdallr_ray.listener.completion import CompletionWatcher
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.sources import CompletionPolicy, CompletionRules
from tests.support.clock import FakeClock
from tests.support.receivers import NothingInHand
from tests.support.studies import received

WAIT_S = 15.0
MAX_OPEN_S = 7200.0
HONEST = 90_000


class Flood:
    """One sender that holds `held` studies open, a watcher that looks at `page` studies in a scan, and honest ones."""

    def __init__(self, database: Database, *, page: int, held: int) -> None:
        self.database, self.clock = database, FakeClock()
        self.open = {"flood"}
        self.busy: set[str] = set()
        self.watcher = CompletionWatcher(
            cast(Receiver, NothingInHand()),
            lambda: frozenset(self.busy),
            database,
            self.clock,
            policy=CompletionPolicy(CompletionRules(60, WAIT_S, 300, MAX_OPEN_S)),
            scan_s=1,
            max_attempts=3,
            grace_s=0.0,
            open_association_ids=lambda: frozenset(self.open),
            page=page,
        )
        self.begin("flood")
        self.image("flood", *range(1, held + 1))
        self.clock.advance(1)

    def begin(self, association: str) -> None:
        self.open.add(association)
        with self.database.write() as session:
            opened = AssociationOpened(association, Door.DICOM, "CT1", "HEIMDALLR", "10.0.0.1", self.clock.now())
            record_opened(session, [opened])

    def image(self, association: str, *studies: int, number: int = 1) -> None:
        at = self.clock.now()
        with self.database.write() as session:
            items = [received(number, study=study, at=at, association=association) for study in studies]
            record_instances(session, items, at)

    def finish(self, association: str, how: How = How.RELEASED) -> None:
        self.open.discard(association)
        with self.database.write() as session:
            record_closed(session, [AssociationClosed(association, self.clock.now(), how, stored=1)])

    def honest(self, *studies: int) -> None:
        """Studies whose sender has ended as it should."""
        self.begin("honest")
        self.image("honest", *studies)
        self.finish("honest")

    def study(self, number: int) -> StudyRow:
        with self.database.read() as session:
            row = study_by_uid(session, f"1.2.{number}")
        assert row is not None
        return row

    def scan_until_closed(self, number: int, limit_s: float, every_s: float = 1.0) -> float:
        """Scans while time passes until the study is closed; after how long."""
        passed = 0.0
        while passed <= limit_s:
            self.watcher.scan()
            if self.study(number).state == StudyState.QUEUED:
                return passed
            self.clock.advance(every_s)
            passed += every_s
        pytest.fail(f"still {self.study(number).state} after {limit_s:g} s")


def test_an_open_association_with_thousands_of_studies_keeps_nobody_else_open(database: Database) -> None:
    flood = Flood(database, page=5, held=23)
    flood.honest(HONEST)
    # 24 studies are five scans.
    assert WAIT_S <= flood.scan_until_closed(HONEST, 60) <= WAIT_S + 5
    assert flood.study(1).state == StudyState.RECEIVING
    assert (flood.study(HONEST).close_code, flood.study(23).close_code) == ("idle_after_release", "sending")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_it_is_so_with_the_real_bound(database: Database) -> None:
    flood = Flood(database, page=MAX_WATCHED, held=1)
    now, held = flood.clock.now() - timedelta(seconds=1), range(2, MAX_WATCHED + 2)
    with flood.database.write() as session:
        connection = session.connection()
        common = {"first_received_at": now, "last_received_at": now, "n_instances": 1, "calling_ae": "CT1"}
        connection.execute(insert(StudyRow), [{"id": f"{n:032x}", "study_uid": f"1.2.{n}", **common} for n in held])
        connection.execute(
            insert(SeriesRow), [{"id": f"{n:032x}", "study_id": f"{n:032x}", "series_uid": f"1.2.{n}.1"} for n in held]
        )
        connection.execute(
            insert(InstanceRow),
            [
                {
                    "id": f"{n:032x}",
                    "study_id": f"{n:032x}",
                    "series_id": f"{n:032x}",
                    "sop_uid": f"1.2.{n}.1.1",
                    "sop_class_uid": "1.2.3",
                    "transfer_syntax_uid": "1.2.840.10008.1.2.1",
                    "blob_sha256": f"{n:064x}",
                    "size": 1,
                    "spool_name": f"{n:064x}",
                    "received_at": now,
                    "association_id": "flood",
                }
                for n in held
            ],
        )
    flood.honest(HONEST)
    with flood.database.read() as session:
        assert len(open_studies(session)) == MAX_WATCHED
    assert WAIT_S <= flood.scan_until_closed(HONEST, 60, every_s=5) <= WAIT_S + 10


def test_images_that_keep_coming_to_the_others_change_nothing(database: Database) -> None:
    flood = Flood(database, page=4, held=10)
    flood.honest(HONEST)
    passed = 0
    while passed < 30:
        flood.image("flood", *range(1, 11), number=2 + passed)
        if flood.watcher.scan():
            break
        flood.clock.advance(1)
        passed += 1
    assert flood.study(HONEST).state == StudyState.QUEUED
    assert WAIT_S <= passed <= WAIT_S + 3


def test_the_maximum_ends_each_of_them_within_a_round(database: Database) -> None:
    flood = Flood(database, page=4, held=10)
    flood.watcher.scan()
    flood.clock.advance(MAX_OPEN_S)
    assert sum(len(flood.watcher.scan()) for _ in range(4)) == 10
    assert {flood.study(number).close_code for number in range(1, 11)} == {"hard_maximum"}


def test_what_one_transaction_does_not_close_the_next_scan_does(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "APPLY_S", 0.0)
    monkeypatch.setattr(completion, "MAX_PER_CALL", 3)
    monkeypatch.setattr("heimdallr_ray.catalog.closing.MAX_PER_CALL", 3)
    flood = Flood(database, page=100, held=2)
    flood.honest(*range(HONEST, HONEST + 11))
    flood.watcher.scan()
    flood.clock.advance(WAIT_S)
    closed = [len(flood.watcher.scan()) for _ in range(5)]
    assert closed == [3, 3, 3, 2, 0]


def test_a_wait_counts_from_the_end_also_where_it_is_seen_late(database: Database) -> None:
    flood = Flood(database, page=2, held=9)
    flood.begin("late")
    flood.image("late", HONEST)
    for _ in range(6):
        flood.watcher.scan()
        flood.clock.advance(1)
    flood.finish("late")
    assert WAIT_S <= flood.scan_until_closed(HONEST, 60) <= WAIT_S + 5


def test_a_study_held_open_by_the_listeners_word_alone_is_quiet_from_when_it_was_not_held(database: Database) -> None:
    flood = Flood(database, page=2, held=9)
    flood.image("nobody", HONEST)
    flood.busy.add(f"1.2.{HONEST}")
    for _ in range(80):
        flood.watcher.scan()
        flood.clock.advance(1)
    flood.busy.clear()
    assert 60 <= flood.scan_until_closed(HONEST, 90) <= 60 + 2 * 5


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_jump_of_the_clock_changes_no_wait_of_a_study_that_is_seen_late(database: Database, jump_s: float) -> None:
    flood = Flood(database, page=2, held=9)
    for _ in range(5):
        flood.watcher.scan()
        flood.clock.advance(1)
    flood.honest(HONEST)
    flood.clock.step(jump_s)
    # It may have come at any time since the last round of five scans began.
    assert WAIT_S - 10 <= flood.scan_until_closed(HONEST, 60) <= WAIT_S + 10


def test_a_page_is_read_by_an_index_in_its_order(database: Database) -> None:
    with database.read() as session:
        if database.dialect != "sqlite":
            return
        plan = session.connection().execute(
            text("EXPLAIN QUERY PLAN SELECT * FROM study WHERE state = 'receiving' AND id > 'a' ORDER BY id LIMIT 5000")
        )
        words = str(plan.all())
    assert "ix_study_state_id" in words and "TEMP B-TREE" not in words
