"""The worker's part of a study's road in a test: every job is done as a worker does it, by an engine that counts."""

from __future__ import annotations

import threading
from collections.abc import Callable

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.queue.lease import LeaseQueue
from heimdallr_ray.segmentation.engine import SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import Plan
from heimdallr_ray.storage.blobs import LocalBlobStore


class CountingEngine:
    """Labels nothing, and counts; `meanwhile` is called within each run, with its number."""

    def __init__(self, meanwhile: Callable[[int], None] = lambda _run: None) -> None:
        self.runs = 0
        self._meanwhile = meanwhile

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        self.runs += 1
        self._meanwhile(self.runs)
        return SegmentationRun({}, Plan((), ()), {}, Timings())


def work_off(database: Database, blobs: LocalBlobStore, engine: CountingEngine) -> int:
    """Every job that is there is done; returns how many there were."""
    clock = SystemClock()
    queue = LeaseQueue(database, clock, 60.0)
    runner = StudyRunner(database, blobs, queue, engine, clock, "test", engine=lambda: "weights 1")
    done = 0
    while (lease := queue.claim("worker", ["study"])) is not None:
        runner.run(lease, threading.Event())
        done += 1
    return done
