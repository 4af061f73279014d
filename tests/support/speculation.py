"""A site that makes labels ahead: the real watcher, queue, idle worker and runner over one catalog and one clock."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydicom import dcmread
from sqlmodel import col, select

from heimdallr_ray.catalog import ahead
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts
from heimdallr_ray.catalog.results import current_result
from heimdallr_ray.catalog.studies import record_instances, series_rows_of, study_by_uid
from heimdallr_ray.catalog.tables import ArtifactRow, EventRow, JobRow, LabelsAheadRow, StudyRow
from heimdallr_ray.catalog.worklist import artifacts_of, event_history
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener.completion import CompletionWatcher
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.pipelines.ahead import LabelsAhead
from heimdallr_ray.pipelines.idle_worker import IdleWorker
from heimdallr_ray.pipelines.speculation import Speculator
from heimdallr_ray.pipelines.steps import StudySegmenter
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.queue.idle import IdleQueue
from heimdallr_ray.queue.lease import Lease, LeaseQueue
from heimdallr_ray.queue.owners import owner_name
from heimdallr_ray.segmentation.engine import Segmentation, SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import LeftOut, LeftOutCode, Plan
from heimdallr_ray.segmentation.tasks import TOTAL_FAST
from heimdallr_ray.sources import CompletionPolicy, CompletionRules
from heimdallr_ray.storage.blobs import LocalBlobStore
from heimdallr_ray.volume import LabelMap, ModelRef
from tests.support.clock import FakeClock
from tests.support.dicom import ct_study
from tests.support.receivers import NothingInHand
from tests.support.studies import received

STUDY = str(Uid.derived("study"))
SOFT = str(Uid.derived("study", "series"))
AVERAGE = str(Uid.derived("average", "series"))
SETTLES_S = 60.0
LEASE_S = 20.0
SLICES = ct_study(34)


def average(slices: int = 24, words: str = "average") -> list[bytes]:
    """A series that the rules choose only where there is no better one; without `words` as good as the others."""
    return ct_study(slices, seed="average", SeriesDescription=words, StudyInstanceUID=STUDY, SeriesNumber=9)


def bone(slices: int = 24) -> list[bytes]:
    """A reconstruction that the rules never choose."""
    return ct_study(
        slices, seed="bone", ConvolutionKernel="BONE", SeriesDescription="bone", StudyInstanceUID=STUDY, SeriesNumber=9
    )


class Thresholds:
    """Labels what is dense, and counts; what is in `hook` happens meanwhile."""

    def __init__(self) -> None:
        self.runs = 0
        self.hook: Callable[[threading.Event | None], None] = lambda lost: None
        self.left_out: tuple[LeftOut, ...] = (
            LeftOut("cerebral_bleed", LeftOutCode.ANATOMY_ABSENT, "there is no brain in the image"),
        )

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        self.runs += 1
        self.hook(lost)
        volume = request.volume
        array = np.asarray(volume.array)
        labels = np.where(array > np.median(array), 5, 0).astype(np.uint8)
        labels[array > np.percentile(array, 80)] = 1
        model = ModelRef("total", "totalsegmentator/297", "0" * 64, synthetic=True, spacing_mm=3.0)
        made = LabelMap(labels, volume.affine_ras, {1: "spleen", 5: "liver"}, model, volume.source.manifest_sha256)
        return SegmentationRun(
            {TOTAL_FAST: Segmentation(TOTAL_FAST, made, Timings(forward_s=2.0))},
            Plan((TOTAL_FAST,), self.left_out),
            {"liver": 12.5},
            Timings(forward_s=2.0, total_s=3.0),
        )


class Site:
    """Images come in, the watcher looks, one worker does studies and one what nobody waits for."""

    def __init__(self, database: Database, folder: Path, *, speculate: bool = True, study_uid: str = STUDY) -> None:
        self.database, self.clock, self.engine, self.study_uid = database, FakeClock(), "weights 1", study_uid
        self.blobs, self.thresholds = LocalBlobStore(folder / "blobs"), Thresholds()
        self.segmenter_of: Callable[[Lease], StudySegmenter] = lambda lease: self.thresholds
        self.busy: set[str] = set()
        self.queue = LeaseQueue(database, self.clock, LEASE_S, database_time=False)
        self.idle = IdleQueue(database, self.queue)
        self.ahead = LabelsAhead(database, self.blobs, self.clock)
        self.runner = self.make_runner()
        self.worker = self.make_worker()
        rules = CompletionRules(SETTLES_S, SETTLES_S, SETTLES_S, 7200.0, speculate=speculate)
        self.watcher = CompletionWatcher(
            cast(Receiver, NothingInHand()),
            lambda: frozenset(self.busy),
            database,
            self.clock,
            policy=CompletionPolicy(rules),
            scan_s=1,
            max_attempts=3,
            grace_s=0.0,
        )
        self._number = 0

    def make_runner(self) -> StudyRunner:
        return StudyRunner(
            self.database,
            self.blobs,
            self.queue,
            self.thresholds,
            self.clock,
            "test",
            engine=lambda: self.engine,
            ahead=self.ahead,
        )

    def make_worker(self, owner: str = "host/1/a") -> IdleWorker:
        """Another consumer's."""
        speculator = Speculator(self.runner.preparing, self.ahead, self.database, self.queue, self.clock)
        return IdleWorker(
            self.idle,
            self.queue,
            lambda lease, end: speculator.run(lease, self.segmenter_of(lease), end),
            owner,
            renew_s=LEASE_S / 4,
            chores=self.ahead.remove_outdated,
        )

    # What comes in and what time does ------------------------------------------------------------------------------

    def arrive(self, contents: Sequence[bytes]) -> None:
        with self.database.write() as session:
            record_instances(session, [self._stored(content) for content in contents], self.clock.now())

    def _stored(self, content: bytes) -> ReceivedInstance:
        header = dcmread(io.BytesIO(content), stop_before_pixels=True)
        self._number += 1
        facts = SeriesFacts(modality=str(header.Modality))
        return replace(
            received(self._number, spool=self.study_uid[-20:], series_facts=facts, association=None),
            blob_sha256=self.blobs.put(content).sha256,
            study_uid=Uid(header.StudyInstanceUID),
            series_uid=Uid(header.SeriesInstanceUID),
            sop_uid=Uid(header.SOPInstanceUID),
            received_at=self.clock.now(),
        )

    def scan_for(self, seconds: int) -> list[str]:
        """The watcher looks every second."""
        closed: list[str] = []
        for _ in range(seconds):
            closed += self.watcher.scan()
            self.clock.advance(1)
        return closed

    def settle(self) -> None:
        """Nothing comes until the study is closed."""
        assert self.scan_for(int(SETTLES_S) + 5), "not closed"

    def make_ahead(self) -> bool:
        """What nobody waits for is done, as far as that is possible now."""
        return self.worker.work_once()

    def other_work(self, key: str = "other") -> None:
        """Another job waits."""
        with self.database.write() as session:
            self.queue.enqueue(session, "study", key)

    def claim(self) -> Lease:
        lease = self.queue.claim("worker", ["study"])
        assert lease is not None
        return lease

    def finish(self, lease: Lease) -> None:
        with self.database.write() as session:
            self.queue.finish(session, lease)

    def work(self) -> dict[str, Any]:
        """The study's own run; its document."""
        lease = self.claim()
        self.runner.with_segmenter(self.segmenter_of(lease)).run(lease, threading.Event())
        return self.document()

    # What there is --------------------------------------------------------------------------------------------------

    def study(self) -> StudyRow:
        with self.database.read() as session:
            row = study_by_uid(session, self.study_uid)
        assert row is not None
        return row

    def document(self) -> dict[str, Any]:
        study = self.study()
        assert study.state == "done", study.reason
        with self.database.read() as session:
            found = current_result(session, study.id)
        assert found is not None
        return found.document

    def artifacts(self) -> dict[str, ArtifactRow]:
        with self.database.read() as session:
            found = current_result(session, self.study().id)
            assert found is not None
            return {row.name: row for row in artifacts_of(session, found.id)}

    def jobs(self) -> list[JobRow]:
        """To make labels ahead of this study."""
        with self.database.read() as session:
            of_kind = select(JobRow).where(JobRow.kind == ahead.AHEAD_JOB).order_by(col(JobRow.id))
            rows = session.exec(of_kind).all()
        return [row for row in rows if row.payload["study_id"] == self.study().id]

    def rows(self) -> list[LabelsAheadRow]:
        with self.database.read() as session:
            rows = session.exec(select(LabelsAheadRow)).all()
        return [row for row in rows if row.study_id == self.study().id]

    def told(self) -> list[EventRow]:
        """What the study's history says of labels made ahead."""
        with self.database.read() as session:
            return [row for row in event_history(session, self.study().id) if row.kind == ahead.EVENT]

    def counts(self) -> dict[str, int]:
        """Outcomes that have come about."""
        with self.database.read() as session:
            return {name: number for name, number in ahead.counts(session).items() if number}

    def untouched(self) -> tuple[Any, ...]:
        """Everything of the study that its page shows."""
        with self.database.read() as session:
            study = study_by_uid(session, self.study_uid)
            assert study is not None
            series = [row.model_dump() for row in series_rows_of(session, study.id)]
            return study.model_dump(), series, [row.model_dump() for row in event_history(session, study.id)]


def speculate_until_killed(url: str, folder: str, now: datetime, point: str, pipe: Connection) -> None:
    """Makes labels ahead as a process of its own, says so once it has come to `point`, and stays there."""
    database = Database(url)
    site = Site(database, Path(folder))
    site.clock = FakeClock(now)
    site.queue = LeaseQueue(database, site.clock, LEASE_S, database_time=False)
    site.idle = IdleQueue(database, site.queue)
    site.ahead = LabelsAhead(database, site.blobs, site.clock)

    def stay(*_: object) -> None:
        pipe.send(point)
        time.sleep(600)

    if point == "segment":
        site.thresholds.hook = stay
    elif point == "prepare":
        path = site.blobs.path
        site.blobs.path = lambda sha256: (stay() if site.counts() else None, path(sha256))[1]  # type: ignore[method-assign]
    else:
        keep = site.ahead.keep
        site.ahead.keep = lambda run, inputs: (keep(run, inputs), stay())[0]  # type: ignore[method-assign]
    site.make_worker(owner_name()).work_once()
