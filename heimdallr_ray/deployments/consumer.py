"""StudyConsumer: claims leases and runs studies; the queue row, not this process, is the truth."""

from __future__ import annotations

import os
import socket
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.remote import RemoteSegmenter
from heimdallr_ray.errors import Broken
from heimdallr_ray.ids import new_id

STOP_S = 2.0


@serve.deployment(name="StudyConsumer")
class StudyConsumer:
    """A worker on the lease table whose segmentation runs on the Segmenter replicas."""

    def __init__(self, args: AppArgs, segmenter: DeploymentHandle[Any]) -> None:
        """Open database and blobs, start the worker threads."""
        from heimdallr_ray.catalog.database import Database
        from heimdallr_ray.metrics import kernels
        from heimdallr_ray.pipelines.study import StudyRunner
        from heimdallr_ray.pipelines.worker import StudyWorker
        from heimdallr_ray.queue.lease import LeaseQueue
        from heimdallr_ray.storage.blobs import LocalBlobStore

        settings, clock = args.settings(), SystemClock()
        database = Database(settings.resolved_database_url)
        queue = LeaseQueue(database, clock, settings.lease_seconds)
        blobs = LocalBlobStore(settings.blob_dir)
        runner = StudyRunner(database, blobs, queue, RemoteSegmenter(segmenter), clock, args.build)
        owner = f"{socket.gethostname()}/{os.getpid()}/{new_id()[:8]}"
        self._worker = StudyWorker(database, queue, runner.run, settings, owner)
        kernels.warm_up()
        self._worker.start()

    def pid(self) -> int:
        """The process that holds the leases."""
        return os.getpid()

    def check_health(self) -> None:
        """Raises where a worker thread has ended."""
        if not self._worker.alive:
            raise Broken("a worker thread has ended")

    def __del__(self) -> None:
        """Serve calls this on an orderly stop: claim nothing more."""
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop(STOP_S)
