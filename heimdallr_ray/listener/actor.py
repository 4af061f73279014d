"""The listener as a detached, named Ray actor: survives its driver, comes back after kill -9, one per cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import ray

from heimdallr_ray import logs
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load_effective
from heimdallr_ray.folders import make_private
from heimdallr_ray.listener.heap import keep_for_good
from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.storage.blobs import LocalBlobStore

ACTOR_NAME = "dicom_scp"
NAMESPACE = "heimdallr"
RESOURCE = "dicom_scp"


_detached_actor = cast(
    "Callable[[type], Any]",
    cast(Any, ray).remote(num_cpus=0, resources={RESOURCE: 1}, max_restarts=-1, max_task_retries=0, max_concurrency=8),
)


@_detached_actor
class DicomScp:
    """A shell around ListenerService. All state is in arguments, on the disk and in the database.

    Create with `DicomScp.options(name=ACTOR_NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True)`.
    """

    def __init__(self, settings_file: str, build: str) -> None:
        """The port answers. A restart of the actor calls this again with the same arguments.

        Args:
            settings_file: what `config.save_effective` wrote. A path and not the values, because arguments of a
                detached actor are kept by Ray, and settings hold tokens.
            build: what `status` reports, so that a supervisor can replace an actor that runs older code.

        Raises:
            BadSetting: the settings, or the port is not free within 30 s.
        """
        settings = load_effective(Path(settings_file))
        self._build = build
        logs.configure(settings, "listener")
        make_private(settings.data_dir)
        self._database = Database(settings.resolved_database_url)
        self._database.migrate()
        self._service = ListenerService(settings, self._database, LocalBlobStore(settings.blob_dir), SystemClock())
        self._service.start()
        keep_for_good()

    def status(self) -> dict[str, Any]:
        """Process id, build, whether this is a restarted actor, and the listener's own status. JSON."""
        restarted = bool(cast(Any, ray.get_runtime_context()).was_current_actor_reconstructed)
        return {"pid": os.getpid(), "build": self._build, "restarted": restarted, **asdict(self._service.status())}

    def drain(self) -> bool:
        """Nothing new comes in by DICOM; studies that came in still close. Open associations had 5 s to end."""
        self._service.drain()
        return True

    def stop(self) -> bool:
        """The port is free and associations have ended; the actor can be killed."""
        self._service.stop()
        self._database.close()
        return True
