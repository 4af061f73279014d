"""StudyConsumer: claims leases and runs studies; the queue row, not this process, is the truth."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from heimdallr_ray import logs
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.remote import Ledger, RemoteSegmenter
from heimdallr_ray.errors import Broken
from heimdallr_ray.queue.lease import Lease

STOP_S = 2.0


@serve.deployment(name="StudyConsumer")
class StudyConsumer:
    """A worker on the lease table whose segmentation runs on the Segmenter replicas."""

    def __init__(self, args: AppArgs, segmenter: DeploymentHandle[Any]) -> None:
        """Open database and blobs, start the worker threads."""
        from heimdallr_ray.catalog.database import Database
        from heimdallr_ray.dicom import isolated
        from heimdallr_ray.dicom.rules import load_rules
        from heimdallr_ray.metrics import kernels
        from heimdallr_ray.pipelines.ahead import LabelsAhead
        from heimdallr_ray.pipelines.idle_worker import IdleWorker
        from heimdallr_ray.pipelines.inputs import engine_text
        from heimdallr_ray.pipelines.speculation import Speculator
        from heimdallr_ray.pipelines.study import StudyRunner
        from heimdallr_ray.pipelines.worker import StudyWorker
        from heimdallr_ray.queue.engine_calls import EngineCalls
        from heimdallr_ray.queue.idle import IdleQueue
        from heimdallr_ray.queue.lease import LeaseQueue
        from heimdallr_ray.queue.owners import owner_name
        from heimdallr_ray.segmentation.demo import weights_dir
        from heimdallr_ray.segmentation.registry import modalities_read
        from heimdallr_ray.storage.blobs import LocalBlobStore

        settings, clock = args.settings(), SystemClock()
        logs.configure(settings, "consumer")
        database = Database(settings.resolved_database_url)
        queue = LeaseQueue(database, clock, settings.lease_seconds)
        blobs = LocalBlobStore(settings.blob_dir)
        rules = load_rules(settings.series_rules)
        readable = partial(modalities_read, settings.resolved_weights_dir or weights_dir())
        ahead = LabelsAhead(database, blobs, clock)
        remote = RemoteSegmenter(segmenter, Ledger(database, queue, EngineCalls(database, clock)))
        runner = StudyRunner(
            database,
            blobs,
            queue,
            remote,
            clock,
            args.build,
            rules,
            readable,
            settings.measurements,
            segmentations=settings.segmentations,
            deskew=settings.deskew,
            engine=partial(engine_text, settings, settings.resolved_weights_dir or weights_dir()),
            ahead=ahead if settings.completion.speculates else None,
        )

        def run(lease: Lease, lost: threading.Event) -> None:
            runner.with_segmenter(remote.for_job(lease)).run(lease, lost)

        owner = owner_name()
        self._worker = StudyWorker(database, queue, run, settings, owner)
        self._idle = None
        if settings.completion.speculates:
            speculator = Speculator(runner.preparing, ahead, database, queue, clock)
            self._idle = IdleWorker(
                IdleQueue(database, queue),
                queue,
                lambda lease, end: speculator.run(lease, remote.for_job(lease), end),
                owner,
                renew_s=settings.renew_seconds,
                chores=ahead.remove_outdated,
            )
        kernels.warm_up()
        isolated.configure(settings.decoder_processes)
        isolated.warm_up()
        self._worker.start()
        if self._idle is not None:
            self._idle.start()
        else:
            ahead.forget_all()

    def stop(self, grace_s: float = STOP_S) -> int:
        """For an orderly stop of the stack: nothing more is claimed, studies that do not end in time are given back.

        Returns how many were given back. May be called again.
        """
        if self._idle is not None:
            self._idle.stop()
        return self._worker.stop(grace_s)

    def working(self) -> bool:
        """True while its threads claim studies."""
        return self._worker.working

    def check_health(self) -> None:
        """Raises where a worker thread has ended."""
        if not self._worker.alive:
            raise Broken("a worker thread has ended")

    def __del__(self) -> None:
        """Serve calls this on an orderly stop: claim nothing more, give back what runs."""
        for worker in (getattr(self, "_idle", None), getattr(self, "_worker", None)):
            if worker is not None:
                worker.stop(STOP_S)
