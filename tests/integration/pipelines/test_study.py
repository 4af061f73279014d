"""The chain of one study writes under its fence: whoever was overtaken changes nothing, at whichever step it wakes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.results import current_result
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.catalog.studies import record_instances, series_rows_of, study_by_uid
from heimdallr_ray.catalog.worklist import event_history, steps_of
from heimdallr_ray.errors import StaleLease
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import Plan
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support.clock import FakeClock
from tests.support.closing import close_idle_studies
from tests.support.dicom import ct_study
from tests.support.studies import received

LEASE_S = 20.0
NOTHING = SegmentationRun({}, Plan((), ()), {}, Timings())


def _no_hook() -> None:
    """Nothing happens."""


class BlobsWithHook(LocalBlobStore):
    """Real blobs; `hook` runs before one is found, that is in the middle of the selection."""

    hook: Callable[[], None] = staticmethod(_no_hook)

    def path(self, sha256: str) -> Path:
        self.hook()
        return super().path(sha256)


class SegmenterWithHook:
    """Labels nothing; `hook` runs meanwhile."""

    def __init__(self) -> None:
        self.hook: Callable[[], None] = _no_hook
        self.lost: threading.Event | None = None

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        self.lost = lost
        self.hook()
        return NOTHING


class Site:
    """One closed study of real slices, a queue and a runner."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.clock = database, FakeClock()
        self.blobs, self.segmenter = BlobsWithHook(folder / "blobs"), SegmenterWithHook()
        self.queue = LeaseQueue(database, self.clock, LEASE_S, database_time=False)
        self.runner = StudyRunner(database, self.blobs, self.queue, self.segmenter, self.clock, "test")
        batch = [self._stored(number, content) for number, content in enumerate(self._batch(), start=1)]
        with database.write() as session:
            record_instances(session, batch, self.clock.now())
        with database.write() as session:
            close_idle_studies(session, self.clock.advance(31), 30, (), 3, "test")
        self.study_uid = str(batch[0].study_uid)

    def _batch(self) -> list[bytes]:
        return ct_study(24)

    def _stored(self, number: int, content: bytes) -> Any:
        header = dcmread(io.BytesIO(content), stop_before_pixels=True)
        return replace(
            received(number),
            blob_sha256=self.blobs.put(content).sha256,
            study_uid=Uid(header.StudyInstanceUID),
            series_uid=Uid(header.SeriesInstanceUID),
            sop_uid=Uid(header.SOPInstanceUID),
        )

    def claim(self, owner: str = "first") -> Lease:
        lease = self.queue.claim(owner, ["study"])
        assert lease is not None
        return lease

    def overtake(self) -> None:
        """The lease runs out and somebody else takes the job, once."""
        self.blobs.hook = self.segmenter.hook = _no_hook
        self.clock.advance(LEASE_S)
        self.claim("second")
        self.before = self.content()

    def content(self) -> tuple[Any, ...]:
        """Everything that a chain writes: study, series, steps, history."""
        with self.database.read() as session:
            study = study_by_uid(session, self.study_uid)
            assert study is not None
            series = [row.model_dump() for row in series_rows_of(session, study.id)]
            steps = [row.model_dump() for row in steps_of(session, 1)]
            events = [row.model_dump() for row in event_history(session, study.id)]
            return study.model_dump(), series, steps, events


@pytest.fixture
def site(database: Database, folder: Path) -> Site:
    return Site(database, folder)


def test_a_runner_with_a_stale_lease_changes_nothing(site: Site) -> None:
    lease = site.claim()
    site.overtake()
    with pytest.raises(StaleLease):
        site.runner.run(lease, threading.Event())
    assert site.content() == site.before


def test_a_runner_overtaken_during_the_selection_records_no_choice(site: Site) -> None:
    lease = site.claim()
    site.blobs.hook = site.overtake
    with pytest.raises(StaleLease):
        site.runner.run(lease, threading.Event())
    assert site.content() == site.before
    assert [row["chosen"] for row in site.before[1]] == [None]


def test_a_runner_overtaken_during_the_segmentation_records_no_step(site: Site) -> None:
    lease = site.claim()
    site.segmenter.hook = site.overtake
    with pytest.raises(StaleLease):
        site.runner.run(lease, threading.Event())
    assert site.content() == site.before
    assert [row["step"] for row in site.before[2]] == ["select", "prepare"]


def test_the_segmenter_is_told_when_the_lease_is_lost(site: Site) -> None:
    lost = threading.Event()
    site.segmenter.hook = lost.set
    with pytest.raises(StaleLease, match="measure"):
        site.runner.run(site.claim(), lost)
    assert site.segmenter.lost is lost


def test_a_takeover_measures_its_own_steps(site: Site) -> None:
    site.segmenter.hook = site.overtake
    with pytest.raises(StaleLease):
        site.runner.run(site.claim(), threading.Event())
    site.clock.advance(LEASE_S)
    lost = threading.Event()
    site.segmenter.hook = lost.set
    with pytest.raises(StaleLease):
        site.runner.run(site.claim("third"), lost)
    steps = [(row["step"], row["fence"], row["attempt"]) for row in site.content()[2]]
    assert steps == [("select", 1, 1), ("prepare", 1, 1), ("select", 3, 1), ("prepare", 3, 1), ("segment", 3, 1)]


class TwoSeries(Site):
    """A study with a soft and a bone reconstruction, done with the soft one."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._more = ct_study(
            24,
            seed="bone",
            ConvolutionKernel="BONE",
            SeriesDescription="bone",
            StudyInstanceUID=str(Uid.derived("study")),
        )
        super().__init__(database, folder)

    def _batch(self) -> list[bytes]:
        return [*super()._batch(), *self._more]

    def choose(self, series_uid: str | None, reason: str = "the other one moved") -> None:
        with self.database.write() as session:
            choose_series(
                session,
                self.study_uid,
                series_uid,
                reason=reason,
                chosen_by="Dr. Who",
                now=self.clock.now(),
                max_attempts=3,
                actor="api",
            )

    def work(self) -> dict[str, Any]:
        self.runner.run(self.claim(), threading.Event())
        with self.database.read() as session:
            study = study_by_uid(session, self.study_uid)
            assert study is not None
            assert study.state == "done", study.reason
            found = current_result(session, study.id)
            assert found is not None
            return {"version": found.version, **found.document}


@pytest.mark.parametrize(
    ("readable", "code"),
    [({"MR"}, "modality_not_supported"), ({"CT", "MR"}, "no_usable_series"), (None, "no_usable_series")],
)
def test_no_series_is_blamed_where_no_model_reads_the_images(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, readable: set[str] | None, code: str
) -> None:
    monkeypatch.setattr(Site, "_batch", lambda self: ct_study(2))
    site = Site(database, folder)
    runner = StudyRunner(
        database, site.blobs, site.queue, site.segmenter, site.clock, "test", readable=lambda: readable
    )
    runner.run(site.claim(), threading.Event())
    with database.read() as session:
        study = study_by_uid(session, site.study_uid)
        assert study is not None
        assert (study.state, study.reason_code) == ("not_applicable", code)
        assert [row.reject_code for row in series_rows_of(session, study.id)] == ["too_few_slices"]
        if code == "modality_not_supported":
            assert study.reason == "no model that reads CT is installed here"


def test_a_persons_choice_is_followed_and_shown_in_a_new_version_of_the_result(
    database: Database, folder: Path
) -> None:
    site = TwoSeries(database, folder)
    soft, bone = (str(Uid.derived(seed, "series")) for seed in ("study", "bone"))
    first = site.work()
    facts = first["selection_facts"]
    assert (first["version"], facts["chosen_by"], facts["override"]) == (1, "rules", None)
    assert (facts["rules"]["rules_id"], facts["rules"]["purpose"]) == ("heimdallr-series", "volume")
    assert first["volume"]["series_uid"] == soft
    assert {one["reject_code"] for one in first["selection"]} == {None, "sharp_kernel"}
    assert all(one["details"]["lines"] for one in first["selection"])

    site.choose(bone)
    second = site.work()
    facts = second["selection_facts"]
    assert (second["version"], facts["chosen_by"], second["volume"]["series_uid"]) == (2, "person", bone)
    override = facts["override"]
    assert (override["chosen_by"], override["reason"], override["series_uid"]) == (
        "Dr. Who",
        "the other one moved",
        bone,
    )
    with site.database.read() as session:
        study = study_by_uid(session, site.study_uid)
        assert study is not None
        rows = {row.series_uid: row for row in series_rows_of(session, study.id)}
    assert (rows[bone].chosen, rows[soft].chosen, rows[soft].reject_code) == (True, False, "other_chosen")
    assert (rows[bone].reason or "").startswith("chosen by a person: Dr. Who")
    kept = rows[bone].selection
    assert kept is not None
    assert kept["rules"]["sha256"] == facts["rules"]["sha256"]
    assert [line["rule"] for line in kept["parts"][0]["lines"] if line["effect"] == "overruled"] == ["sharp_kernel"]

    site.choose(None, "as it was")
    assert site.work()["volume"]["series_uid"] == soft
