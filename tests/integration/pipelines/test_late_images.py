"""Images that come after the result: nothing runs where nothing that was measured has changed, else a new version."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread

from heimdallr_ray.api import views
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts
from heimdallr_ray.catalog.results import current_result, results_of
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.catalog.studies import record_instances, series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import EventRow, ResultRow, StudyRow
from heimdallr_ray.catalog.worklist import event_history, images_until, newest_results, study_detail
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.queue.lease import LeaseQueue
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support.analysis import CountingEngine
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.dicom import ct_study
from tests.support.studies import received

STUDY = str(Uid.derived("study"))
SLICES = ct_study(34)


class Site:
    """A study of 24 slices with its result, and whatever comes late."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.clock, self.engine = database, FakeClock(), "weights 1"
        self.blobs, self.segmenter = LocalBlobStore(folder / "blobs"), CountingEngine()
        self.queue = LeaseQueue(database, self.clock, 20.0, database_time=False)
        self.runner = StudyRunner(
            database, self.blobs, self.queue, self.segmenter, self.clock, "test", engine=lambda: self.engine
        )
        self._number = 0
        self.arrive(SLICES[:24])
        self.work()

    def arrive(self, contents: Sequence[bytes]) -> None:
        with self.database.write() as session:
            record_instances(session, [self._stored(content) for content in contents], self.clock.now())
        with self.database.write() as session:
            assert close_idle_studies(session, self.clock.advance(31), 30, (), 3, "test")

    def _stored(self, content: bytes) -> ReceivedInstance:
        header = dcmread(io.BytesIO(content), stop_before_pixels=True)
        self._number += 1
        return replace(
            received(self._number, series_facts=SeriesFacts(modality="CT")),
            blob_sha256=self.blobs.put(content).sha256,
            study_uid=Uid(header.StudyInstanceUID),
            series_uid=Uid(header.SeriesInstanceUID),
            sop_uid=Uid(header.SOPInstanceUID),
        )

    def work(self) -> None:
        lease = self.queue.claim("worker", ["study"])
        assert lease is not None
        self.runner.run(lease, threading.Event())

    def study(self) -> StudyRow:
        with self.database.read() as session:
            row = study_by_uid(session, STUDY)
        assert row is not None
        return row

    def results(self) -> list[ResultRow]:
        with self.database.read() as session:
            return results_of(session, self.study().id)

    def history(self) -> list[EventRow]:
        with self.database.read() as session:
            return event_history(session, self.study().id)


@pytest.fixture
def site(database: Database, folder: Path) -> Site:
    return Site(database, folder)


def scout(n_slices: int = 10) -> list[bytes]:
    return ct_study(
        n_slices, seed="scout", StudyInstanceUID=STUDY, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=1
    )


def test_ten_images_of_another_series_run_nothing_and_the_result_stands(site: Site) -> None:
    (before,) = site.results()
    with site.database.read() as session:
        geometry = [row.geometry for row in series_rows_of(session, site.study().id) if row.chosen]
    site.arrive(scout())
    assert (site.study().epoch, site.study().state) == (2, "queued")
    site.work()
    assert site.segmenter.runs == 1
    study, (after,) = site.study(), site.results()
    assert (study.state, study.reason_code, study.reason, study.n_instances) == ("done", None, None, 34)
    assert (after.id, after.version, after.epoch, after.kept_epoch) == (before.id, 1, 1, 2)
    assert (after.superseded_by, after.document) == (None, before.document)
    words = "10 images came after the analysis. Nothing that was measured has changed: the result stands (version 1)."
    kept = next(event for event in site.history() if event.kind == "study.result_kept")
    assert (kept.old, kept.new, kept.reason) == ("1", "2", words)
    assert (kept.payload["code"], kept.payload["late_images"], kept.payload["n_instances"]) == (
        "late_images_unchanged",
        10,
        34,
    )
    done = [event for event in site.history() if event.kind == "study.state"][-1]
    assert (done.new, done.reason, done.payload["reason_code"]) == ("done", words, "late_images_unchanged")
    with site.database.read() as session:
        rows = series_rows_of(session, study.id)
    assert [row.geometry for row in rows if row.chosen] == geometry != [None]
    assert [row.reject_code for row in rows if not row.chosen] == ["localizer"]


def test_a_result_that_stands_is_not_shown_as_older_than_its_study(site: Site) -> None:
    site.arrive(scout())
    with site.database.read() as session:
        waiting = study_detail(session, STUDY)
        assert waiting is not None and waiting.result is not None
    assert views.detail(waiting, (), (), {1: 24}, (), site.clock.now()).study.stale
    site.work()
    with site.database.read() as session:
        found = study_detail(session, STUDY)
        assert found is not None and found.result is not None
        newest = newest_results(session, [found.study.id])
        n_images = {1: images_until(session, found.study.id, found.result.epoch)}
    page = views.detail(found, (), (), n_images, (), site.clock.now())
    assert page.result is not None
    assert (page.study.stale, page.result.stale, page.result.kept_epoch, page.result.n_images) == (False, False, 2, 24)
    row = views.summary(found.study, newest[found.study.id], 0)
    assert (row.stale, row.urgency_older) == (False, False)


def test_a_result_is_kept_for_several_epochs(site: Site) -> None:
    site.arrive(scout(10)[:4])
    site.work()
    site.arrive(scout(10)[4:])
    site.work()
    (only,) = site.results()
    assert (only.kept_epoch, site.study().epoch, site.segmenter.runs) == (3, 3, 1)
    kept = [event.payload["late_images"] for event in site.history() if event.kind == "study.result_kept"]
    assert kept == [4, 6]


def test_ten_images_of_the_measured_series_make_a_new_version_that_supersedes_the_old(site: Site) -> None:
    """Check 8 of the reliability list: a new version, the old one superseded, never one over both."""
    site.arrive(SLICES[24:])
    site.work()
    new, old = site.results()
    assert site.segmenter.runs == 2
    assert (new.version, new.epoch, old.version, old.superseded_by) == (2, 2, 1, new.id)
    assert (old.document["volume"]["shape"][2], new.document["volume"]["shape"][2]) == (24, 34)
    assert new.inputs_sha256 != old.inputs_sha256
    with site.database.read() as session:
        current = current_result(session, site.study().id)
    assert current is not None and current.id == new.id
    assert not [event for event in site.history() if event.kind == "study.result_kept"]


def test_a_better_series_that_comes_late_is_measured(site: Site) -> None:
    longer = ct_study(60, seed="longer", StudyInstanceUID=STUDY, SeriesNumber=9)
    site.arrive(longer)
    site.work()
    new, _ = site.results()
    assert (site.segmenter.runs, new.version) == (2, 2)
    assert new.document["volume"]["series_uid"] == str(Uid.derived("longer", "series"))


def test_what_only_a_late_series_shows_is_said_in_a_new_version(site: Site) -> None:
    head = ct_study(
        12, seed="head", StudyInstanceUID=STUDY, BodyPartExamined="HEAD", SeriesDescription="head bone",
        ConvolutionKernel="BONE", spacing_mm=15.0,
    )  # fmt: skip
    site.arrive(head)
    site.work()
    new, old = site.results()
    assert old.document["selection_facts"]["not_measured"] == []
    assert [one["region"] for one in new.document["selection_facts"]["not_measured"]] == ["head"]


def test_other_weights_or_settings_make_a_new_version(site: Site) -> None:
    site.engine = "weights 2"
    site.arrive(scout())
    site.work()
    assert [row.version for row in site.results()] == [2, 1]


def test_a_person_who_asks_again_gets_a_run(site: Site) -> None:
    site.arrive(scout())
    site.work()
    with site.database.write() as session:
        choose_series(
            session, STUDY, None, reason="look again", chosen_by="Dr. Who", now=site.clock.now(), max_attempts=3,
            actor="api",
        )  # fmt: skip
    site.work()
    new, old = site.results()
    assert (site.segmenter.runs, new.version, new.epoch, old.superseded_by) == (2, 2, 2, new.id)


def test_without_knowledge_of_the_engine_every_epoch_is_run(database: Database, folder: Path) -> None:
    site = Site(database, folder)
    site.runner = StudyRunner(database, site.blobs, site.queue, site.segmenter, site.clock, "test")
    site.arrive(scout())
    site.work()
    new, _ = site.results()
    assert (new.version, new.inputs_sha256) == (2, None)


def test_a_stale_lease_keeps_nothing(site: Site) -> None:
    site.arrive(scout())
    lease = site.queue.claim("first", ["study"])
    assert lease is not None
    site.clock.advance(21)
    assert site.queue.claim("second", ["study"]) is not None
    with pytest.raises(StaleLease):
        site.runner.run(lease, threading.Event())
    (row,) = site.results()
    assert (row.kept_epoch, site.study().state) == (None, "running")
