"""When a study is closed: by how its sender ended, by its content, by the clock that nobody sets, by its source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from sqlmodel import Session, col, select

from heimdallr_ray.catalog.ahead import AHEAD_JOB
from heimdallr_ray.catalog.associations import AssociationClosed, AssociationOpened, record_closed, record_opened
from heimdallr_ray.catalog.closing import Change
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts, StudyFacts
from heimdallr_ray.catalog.states import Door, How, StudyState
from heimdallr_ray.catalog.studies import record_instances, study_by_uid, transition
from heimdallr_ray.catalog.tables import JobRow, ResendRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history, jobs_of
from heimdallr_ray.errors import DatabaseBusy
from heimdallr_ray.listener import completion
from heimdallr_ray.listener.completion import LOST_SCAN_S, CompletionWatcher
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, RequiredSeries, SourceRule
from tests.support.clock import FakeClock
from tests.support.receivers import NothingInHand
from tests.support.studies import received

SITE = CompletionRules(idle_s=60, after_release_s=15, after_abort_s=300, max_open_s=7200)
HOUR_S = 3600.0


class Site:
    """A catalog, a watcher over it, and a clock that both of them read."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, FakeClock()
        self.open: set[str] = set()
        self.busy: set[str] = set()
        self.start()

    def start(self, *sources: SourceRule, grace_s: float = 0.0, site: CompletionRules = SITE) -> None:
        """A listener begins, as after a death: what it knew is gone."""
        self.watcher = CompletionWatcher(
            cast(Receiver, NothingInHand()),
            lambda: frozenset(self.busy),
            self.database,
            self.clock,
            policy=CompletionPolicy(site, sources),
            scan_s=1,
            max_attempts=3,
            grace_s=grace_s,
            open_association_ids=lambda: frozenset(self.open),
        )

    def begin(self, id_: str = "a1", ae: str = "CT1", address: str = "10.0.0.1", door: Door = Door.DICOM) -> None:
        self.open.add(id_)
        with self.database.write() as session:
            record_opened(session, [AssociationOpened(id_, door, ae, "HEIMDALLR", address, self.clock.now())])

    def finish(self, id_: str = "a1", how: How = How.RELEASED) -> None:
        self.open.discard(id_)
        with self.database.write() as session:
            record_closed(session, [AssociationClosed(id_, self.clock.now(), how, stored=1)])

    def arrive(self, *items: ReceivedInstance) -> None:
        with self.database.write() as session:
            record_instances(session, items, self.clock.now())

    def image(self, *numbers: int, study: int = 1, association: str | None = "a1", **other: object) -> None:
        at = self.clock.now()
        self.arrive(*(received(n, study=study, at=at, association=association, **other) for n in numbers))  # pyright: ignore[reportArgumentType]

    def scan_for(self, seconds: float, every: float = 1.0) -> dict[str, float]:
        """Scans while time passes; the UID of each study that was closed, and after how long."""
        closed: dict[str, float] = {}
        passed = 0.0
        while passed <= seconds:
            for study_id in self.watcher.scan():
                closed[self.by_id(study_id).study_uid] = passed
            self.clock.advance(every)
            passed += every
        return closed

    def by_id(self, study_id: str) -> StudyRow:
        with self.database.read() as session:
            row = session.get(StudyRow, study_id)
        assert row is not None
        return row

    def study(self, number: int = 1) -> StudyRow:
        with self.database.read() as session:
            row = study_by_uid(session, f"1.2.{number}")
        assert row is not None
        return row


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


@pytest.mark.parametrize(
    ("how", "after_s", "code", "words"),
    [
        (How.RELEASED, 15, "idle_after_release", "15 s without an image after the last sender had ended properly"),
        (How.ABORTED, 300, "idle_after_abort", "5 minutes without an image after the last association was broken off"),
    ],
)
def test_the_wait_depends_on_how_the_sender_ended(site: Site, how: How, after_s: int, code: str, words: str) -> None:
    site.begin()
    site.image(1, 2)
    assert site.scan_for(400, every=5) == {}  # an open association has sent to it
    site.finish(how=how)
    closed = site.scan_for(400)
    assert list(closed) == ["1.2.1"] and after_s <= closed["1.2.1"] <= after_s + 1
    study = site.study()
    assert (study.state, study.close_code, study.close_reason) == ("queued", code, words)
    with site.database.read() as session:
        history = [event for event in event_history(session, study.id) if event.kind == "study.state"]
    assert [(event.old, event.new) for event in history] == [
        (None, "receiving"),
        ("receiving", "settling"),
        ("settling", "queued"),
    ]
    assert (history[-1].reason, history[-1].payload["reason_code"]) == (words, code)


def test_without_a_word_of_the_sender_the_site_waits_longer_than_after_a_release(site: Site) -> None:
    site.image(1)
    closed = site.scan_for(100)
    assert 60 <= closed["1.2.1"] <= 61 and site.study().close_code == "idle"


@pytest.mark.parametrize("door", [Door.UPLOAD, Door.STOW])
def test_an_upload_is_whole_and_waits_as_after_a_release(site: Site, door: Door) -> None:
    site.image(1, association="u1", door=door)
    closed = site.scan_for(100)
    assert 15 <= closed["1.2.1"] <= 16 and site.study().close_code == "idle_after_release"


def test_an_association_that_comes_back_after_an_abort_makes_the_wait_short_again(site: Site) -> None:
    site.begin("a1")
    site.image(1)
    site.finish("a1", How.ABORTED)
    assert site.scan_for(100, every=5) == {}
    site.begin("a2")
    site.image(2, association="a2")
    assert site.scan_for(100, every=5) == {}
    site.finish("a2")
    assert 15 <= site.scan_for(30)["1.2.1"] <= 16


@pytest.mark.parametrize("number", [1, 2])
def test_a_transfer_of_known_images_that_breaks_off_counts_as_one(site: Site, number: int) -> None:
    """Half of a study is there; its sender begins anew, and breaks off before it comes to anything new."""
    site.begin()
    site.image(1, 2)
    site.finish()
    assert site.scan_for(10) == {}
    site.begin("a2")
    site.image(number, association="a2", spool="a2")
    # The listener alone need not know of it: a pause within it closes nothing.
    assert site.scan_for(60) == {}
    site.finish("a2", How.ABORTED)
    assert site.scan_for(299) == {}
    assert site.study().close_code == "idle_after_abort"
    assert site.scan_for(2).keys() == {"1.2.1"}
    assert site.study().last_transfer == How.ABORTED.value
    # To a study that is closed they change nothing.
    site.begin("a3")
    site.image(number, association="a3", spool="a3")
    assert site.study().epoch == 1
    with site.database.read() as session:
        assert [row.association_id for row in session.exec(select(ResendRow)).all()] == ["a2"]


def test_known_images_that_are_sent_again_to_their_end_make_the_wait_short(site: Site) -> None:
    site.begin()
    site.image(1, 2)
    site.finish(how=How.ABORTED)
    assert site.scan_for(30) == {}
    site.begin("a2")
    site.image(1, 2, association="a2", spool="a2")
    site.finish("a2")
    assert site.scan_for(16) == {"1.2.1": 15}


def test_a_second_association_that_is_open_keeps_the_study_open(site: Site) -> None:
    site.begin("a1")
    site.begin("a2")
    site.image(1, association="a1")
    site.image(2, association="a2")
    site.finish("a1")
    assert site.scan_for(600, every=5) == {}
    assert site.study().state == StudyState.RECEIVING
    site.finish("a2")
    assert list(site.scan_for(20)) == ["1.2.1"]


def test_what_the_listener_alone_knows_to_be_open_counts_too(site: Site) -> None:
    site.image(1)
    site.busy.add("1.2.1")
    assert site.scan_for(600, every=5) == {}
    site.busy.clear()
    # Quiet is counted from the last moment that it was open.
    assert 55 <= site.scan_for(100)["1.2.1"] <= 61


def test_the_page_can_say_when_and_why_it_will_close(site: Site) -> None:
    site.begin()
    site.image(1)
    site.watcher.scan()
    receiving = site.study()
    assert (receiving.closes_at, receiving.close_code, receiving.epoch_opened_at) == (None, "sending", site.clock.now())
    assert receiving.close_reason == (
        "an association is open that has sent to it; it will be closed at the latest 2 hours after the first image"
    )
    site.finish()
    site.scan_for(3)
    settling = site.study()
    assert (settling.state, settling.close_code) == ("settling", "idle_after_release")
    assert settling.closes_at is not None
    assert abs((settling.closes_at - site.clock.now()).total_seconds() - 11) <= 2
    # Another image: nobody knows any more when it will end.
    site.begin("a2")
    site.image(2, association="a2")
    again = site.study()
    assert (again.state, again.closes_at, again.close_code, again.close_reason) == ("receiving", None, None, None)
    site.watcher.scan()
    assert (site.study().closes_at, site.study().close_code) == (None, "sending")


def test_the_end_of_the_sender_is_planned_from_at_once(site: Site) -> None:
    site.begin()
    site.image(1)
    site.watcher.scan()
    site.finish()
    site.watcher.scan()
    ended = site.study()
    assert (ended.state, ended.close_code) == ("receiving", "idle_after_release")
    assert ended.closes_at is not None


def test_an_open_upload_says_so_and_when_it_is_given_up(site: Site) -> None:
    site.begin("u1", door=Door.UPLOAD)
    site.image(1, association="u1", door=Door.UPLOAD)
    site.watcher.scan()
    coming = site.study()
    assert (coming.close_code, coming.closes_at) == ("upload_open", None)
    assert coming.close_reason == (
        "its upload has not been ended; it is given up 5 minutes after its last image, at the latest 2 hours after "
        "the first image"
    )
    site.scan_for(10)
    quiet = site.study()
    assert (quiet.state, quiet.close_code) == ("receiving", "upload_open") and quiet.closes_at is not None
    assert abs((quiet.closes_at - site.clock.now()).total_seconds() - 290) <= 2
    site.scan_for(400)
    closed = site.study()
    assert (closed.close_code, closed.last_transfer) == ("idle_after_abort", "open")
    assert closed.close_reason == "5 minutes without an image after the last upload was left open"


def test_the_maximum_of_an_upload_speaks_of_an_upload(site: Site) -> None:
    site.start(SourceRule(name="U", doors=("upload",), max_open_seconds=100))
    site.begin("u1", door=Door.UPLOAD)
    site.image(1, association="u1", door=Door.UPLOAD)
    site.scan_for(150)
    assert site.study().close_reason == (
        "100 s after the first image, the longest that a study may stay open, while an upload was still open"
    )


def test_a_plan_that_stands_is_not_written_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.begin()
    site.image(1)
    site.finish()
    site.scan_for(4)
    monkeypatch.setattr(site.database, "write", lambda *_: pytest.fail("nothing has changed"))
    site.scan_for(5)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("how", [How.RELEASED, How.ABORTED])
def test_a_jump_of_the_clock_changes_no_wait(site: Site, jump_s: float, how: How) -> None:
    limit_s = 15 if how is How.RELEASED else 300
    site.begin()
    site.image(1)
    site.watcher.scan()
    site.finish(how=how)
    assert site.scan_for(5) == {}
    site.clock.step(jump_s)
    closed = site.scan_for(limit_s + 10)
    assert limit_s - 7 <= closed["1.2.1"] <= limit_s - 4


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_images_on_both_sides_of_a_jump_are_one_epoch(site: Site, jump_s: float) -> None:
    site.begin()
    for number in range(1, 30):
        if number == 10:
            site.clock.step(jump_s)
        site.image(number)
        assert site.watcher.scan() == []
        site.clock.advance(1)
    site.finish()
    closed = site.scan_for(100)
    assert 14 <= closed["1.2.1"] <= 16
    study = site.study()
    assert (study.epoch, study.n_instances) == (1, 29)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_does_not_bring_the_hard_maximum(site: Site, jump_s: float) -> None:
    site.begin()
    site.image(1)
    assert site.scan_for(HOUR_S, every=60) == {}
    site.clock.step(jump_s)
    closed = site.scan_for(2 * HOUR_S, every=60)
    assert abs(closed["1.2.1"] - HOUR_S) <= 120
    assert site.study().close_code == "hard_maximum"


def test_a_wait_goes_on_where_it_was_after_a_restart(site: Site) -> None:
    site.begin()
    site.image(1)
    site.finish(how=How.ABORTED)
    assert site.scan_for(100) == {}
    site.clock.advance(50)
    site.start()
    assert 145 <= site.scan_for(400)["1.2.1"] <= 152


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_clock_that_was_set_while_nobody_ran_costs_one_wait_at_most(site: Site, jump_s: float) -> None:
    site.begin()
    site.image(1)
    site.finish()
    site.scan_for(3)
    site.clock.step(jump_s)
    site.start(grace_s=SITE.after_release_s)
    closed = site.scan_for(200)
    assert 15 <= closed["1.2.1"] <= 16


def test_associations_of_a_dead_listener_are_lost_and_count_as_broken_off(site: Site) -> None:
    site.begin()
    site.image(1)
    site.watcher.scan()
    site.open.clear()
    site.start()
    closed = site.scan_for(400)
    assert 300 <= closed["1.2.1"] <= 301
    assert site.study().close_reason == "5 minutes without an image after the last association was lost"


def test_an_end_that_nobody_recorded_holds_no_study_for_hours(site: Site) -> None:
    site.begin()
    site.image(1)
    site.watcher.scan()
    site.open.clear()
    closed = site.scan_for(600)
    assert LOST_SCAN_S + 300 - 2 <= closed["1.2.1"] <= LOST_SCAN_S + 302


def test_a_late_word_takes_the_place_of_the_guess(site: Site) -> None:
    site.begin()
    site.image(1)
    site.watcher.scan()
    site.open.clear()
    assert site.scan_for(60) == {}
    site.finish()  # its word had only waited for the database
    assert 15 <= site.scan_for(60)["1.2.1"] <= 22


def test_an_upload_in_several_requests_holds_its_study_until_it_is_given_up(site: Site) -> None:
    site.begin("u1", door=Door.UPLOAD)
    site.image(1, association="u1", door=Door.UPLOAD)
    assert site.scan_for(250, every=5) == {}
    site.image(2, association="u1", door=Door.UPLOAD)
    closed = site.scan_for(400)
    assert 299 <= closed["1.2.1"] <= 302 and site.study().close_code == "idle_after_abort"


def test_two_scanners_have_their_own_rules(site: Site) -> None:
    fast = SourceRule(name="CT", calling_aes=("CT1",), settle_after_release_seconds=5)
    slow = SourceRule(name="MR", addresses=("10.1.0.0/16",), idle_seconds=600, settle_after_release_seconds=120)
    site.start(fast, slow)
    for number, (ae, address) in enumerate([("CT1", "10.0.0.1"), ("MR7", "10.1.2.3"), ("X", "10.0.0.9")], start=1):
        site.begin(f"a{number}", ae, address)
        site.image(1, study=number, association=f"a{number}")
        site.finish(f"a{number}")
    closed = site.scan_for(200)
    assert {uid: round(after) for uid, after in closed.items()} == {"1.2.1": 5, "1.2.2": 120, "1.2.3": 15}


def test_the_hard_maximum_ends_a_study_whose_association_never_does(site: Site) -> None:
    site.begin()
    site.image(1)
    site.busy.add("1.2.1")
    closed = site.scan_for(8000, every=20)
    assert 7200 <= closed["1.2.1"] <= 7220
    study = site.study()
    assert (study.state, study.close_code) == ("queued", "hard_maximum")
    assert study.close_reason is not None and "while an association was still sending" in study.close_reason
    # What comes then opens the next epoch, with a maximum of its own.
    site.image(2)
    assert site.study().epoch == 2
    assert 7180 <= site.scan_for(8000, every=20)["1.2.1"] <= 7220


def test_a_source_may_want_a_study_that_never_ends_to_fail(site: Site) -> None:
    site.start(SourceRule(name="CT", calling_aes=("CT1",), max_open_seconds=100, at_max_open="fail"))
    site.begin()
    site.image(1)
    closed = site.scan_for(150)
    assert 100 <= closed["1.2.1"] <= 101
    study = site.study()
    assert (study.state, study.reason_code) == ("failed", "hard_maximum")
    assert (
        study.reason
        == "100 s after the first image, the longest that a study may stay open, while an association was still sending"
    )
    with site.database.read() as session:
        assert jobs_of(session, study.id) == []


def test_an_expected_number_closes_at_once_when_the_sender_has_ended(site: Site) -> None:
    site.start(SourceRule(name="CT", calling_aes=("CT1",), expected_instances=3))
    site.begin()
    site.image(1, 2)
    assert site.scan_for(20) == {}
    site.image(3)
    assert site.scan_for(20) == {}  # it is still sending
    site.finish()
    assert site.scan_for(20) == {"1.2.1": 0.0}
    assert site.study().close_reason == "all 3 images that the rule CT expects are here"
    # A late one is no sign of completeness: the next epoch closes by its quiet.
    site.begin("a2")
    site.image(4, association="a2")
    site.finish("a2")
    assert 15 <= site.scan_for(30)["1.2.1"] <= 16


def test_the_number_that_a_header_announces_closes_too(site: Site) -> None:
    site.begin()
    site.image(1, 2, facts=StudyFacts(n_expected=2))
    assert site.scan_for(5) == {}
    site.finish()
    assert site.scan_for(20) == {"1.2.1": 0.0}
    assert site.study().close_reason == "all 2 images that the headers announce are here"


def test_required_series_close_early(site: Site) -> None:
    wanted = (RequiredSeries(description="*soft*", modality="CT", min_images=2), RequiredSeries(description="lung?"))
    site.start(SourceRule(name="CT", calling_aes=("CT1",), required_series=wanted))
    site.begin()
    site.image(1, 2, series_facts=SeriesFacts(modality="CT", series_description="Thorax SOFT 1.0"))
    site.finish()
    assert site.scan_for(10) == {}
    site.begin("a2")
    site.image(1, series=2, association="a2", series_facts=SeriesFacts(modality="CT", series_description="Lung1"))
    assert site.scan_for(10) == {}
    site.finish("a2")
    assert 2 <= site.scan_for(20)["1.2.1"] <= 3
    assert (site.study().close_code, site.study().close_reason) == (
        "required_series",
        "every series that the rule CT requires is here",
    )


def test_ten_late_images_are_one_new_epoch_with_one_new_job(site: Site) -> None:
    site.begin()
    site.image(*range(1, 51))
    site.finish()
    assert list(site.scan_for(20)) == ["1.2.1"]
    study = site.study()
    with site.database.write() as session:
        transition(session, study.id, StudyState.RUNNING, now=site.clock.now(), actor="test")
    site.begin("a2")
    for number in range(51, 61):
        site.image(number, association="a2", spool="a2")
        assert site.scan_for(3) == {}
    site.finish("a2")
    assert list(site.scan_for(20)) == ["1.2.1"]
    late = site.study()
    assert (late.epoch, late.n_instances, late.close_code) == (2, 60, "idle_after_release")
    with site.database.read() as session:
        jobs = jobs_of(session, study.id)
    assert [(job.epoch, job.state) for job in jobs] == [(2, "queued"), (1, "cancelled")]
    assert jobs[0].payload["manifest_sha256"] != jobs[1].payload["manifest_sha256"]


def test_a_study_may_be_kept_from_closing_until_its_images_are_on_the_disk(site: Site) -> None:
    asked: list[Sequence[str]] = []

    def nothing_is_ready(ids: Collection[str]) -> Collection[str]:
        asked.append(sorted(ids))
        return ()

    site.image(1, association="u1", door=Door.UPLOAD)
    site.watcher._before_closing = nothing_is_ready  # pyright: ignore[reportPrivateUsage]
    assert site.scan_for(20) == {}
    assert asked and set(map(tuple, asked)) == {(site.study().id,)}
    site.watcher._before_closing = lambda ids: ids  # pyright: ignore[reportPrivateUsage]
    assert list(site.scan_for(2)) == ["1.2.1"]


def test_an_image_between_the_look_and_the_closing_is_not_closed_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.begin()
    site.image(1)
    site.finish()
    assert site.scan_for(14) == {}
    write = site.database.write

    def late(*_: object) -> object:
        monkeypatch.setattr(site.database, "write", write)
        site.clock.advance(0.5)
        site.image(2, association=None)
        return write()

    monkeypatch.setattr(site.database, "write", late)
    assert site.watcher.scan() == []
    assert (site.study().state, site.study().epoch) == ("receiving", 1)


@pytest.mark.parametrize(("apply_s", "closed"), [(0.0, [50, 50, 20, 0]), (2.0, [120, 0, 0, 0])])
def test_many_studies_close_in_bounded_transactions_the_due_ones_first(
    site: Site, monkeypatch: pytest.MonkeyPatch, apply_s: float, closed: list[int]
) -> None:
    monkeypatch.setattr(completion, "APPLY_S", apply_s)
    transactions: list[int] = []
    apply = completion.apply_changes

    def counted(session: Session, changes: Sequence[Change], **named: Any) -> list[str]:
        transactions.append(len(changes))
        return apply(session, changes, **named)

    monkeypatch.setattr(completion, "apply_changes", counted)
    for number in range(1, 121):
        site.image(1, study=number, association=f"u{number}", door=Door.UPLOAD)
    sizes = []
    site.watcher.scan()
    site.clock.advance(16)
    for _ in range(4):
        sizes.append(len(site.watcher.scan()))
    assert sizes == closed
    assert max(transactions) == 50


def _at(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def test_a_study_that_was_received_before_this_version_is_closed_too(site: Site) -> None:
    site.arrive(received(1, association=None, at=site.clock.now() - _at(500)))
    assert isinstance(site.study().first_received_at, datetime)
    assert 60 <= site.scan_for(100)["1.2.1"] <= 61


def wished(site: Site) -> list[str]:
    """The series of which labels are wanted ahead, in the order of their jobs."""
    with site.database.read() as session:
        of_kind = select(JobRow).where(JobRow.kind == AHEAD_JOB).order_by(col(JobRow.id))
        return [str(row.payload["series_uid"]) for row in session.exec(of_kind).all()]


AHEAD = SourceRule(name="ahead", calling_aes=("CT1",), speculate=True)


def test_a_series_at_rest_is_wished_for_while_its_association_still_sends_others(site: Site) -> None:
    site.start(AHEAD)
    site.begin()
    site.busy = {"1.2.1"}
    site.image(1, 2, 3, ae="CT1")
    for number in range(4, 12):
        assert site.scan_for(0) == {}
        site.image(number, series=2, ae="CT1")
    assert wished(site) == ["1.2.1.1"]
    assert site.study().state == "receiving"
    site.busy = set()
    site.finish()
    assert list(site.scan_for(20)) == ["1.2.1"]
    assert wished(site) == ["1.2.1.1", "1.2.1.2"]
    with site.database.read() as session:
        assert [job.kind for job in jobs_of(session, site.study().id)] == ["study"]


@pytest.mark.parametrize("sources", [(), (SourceRule(name="other", calling_aes=("CT2",), speculate=True),)])
def test_nothing_is_wished_for_where_nobody_asked_for_it(site: Site, sources: tuple[SourceRule, ...]) -> None:
    site.start(*sources)
    site.image(1, 2, 3, association=None, ae="CT1")
    assert list(site.scan_for(70)) == ["1.2.1"]
    assert wished(site) == []


def test_nothing_is_wished_for_while_the_stack_drains(site: Site) -> None:
    site.start(AHEAD)
    site.watcher.hurry()
    site.image(1, 2, 3, association=None, ae="CT1")
    assert site.scan_for(70)
    assert wished(site) == []


def test_a_wish_that_cannot_be_written_delays_no_closing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.start(AHEAD)

    def refuses(*_: object, **__: object) -> bool:
        raise DatabaseBusy

    monkeypatch.setattr("heimdallr_ray.listener.completion.wish_for", refuses)
    site.image(1, 2, 3, association=None, ae="CT1")
    closed = site.scan_for(70)
    assert 60 <= closed["1.2.1"] <= 61
    assert wished(site) == []
