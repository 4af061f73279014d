"""Ingress: the FastAPI application behind Serve's proxy."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments.app import AppArgs


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """API, uploads, live events and the web app. Holds no state: everything is in the database and the blob store."""

    def __init__(
        self,
        args: AppArgs,
        consumer: DeploymentHandle[Any],
        segmenter: DeploymentHandle[Any],
        medgemma: DeploymentHandle[Any],
        report_builder: DeploymentHandle[Any],
    ) -> None:
        """The other deployments are reachable from here, which makes them part of the application."""
        self._args = args
        self._handles = {
            "StudyConsumer": consumer,
            "Segmenter": segmenter,
            "MedGemma": medgemma,
            "ReportBuilder": report_builder,
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application over this installation's database, blobs and receiver."""
        from heimdallr_ray.api.app import ApiServices, create_app
        from heimdallr_ray.catalog.database import Database
        from heimdallr_ray.dashboard import static_dir
        from heimdallr_ray.listener.receive import Receiver
        from heimdallr_ray.storage.blobs import LocalBlobStore

        settings, clock = self._args.settings(), SystemClock()
        database = Database(settings.resolved_database_url)
        blobs = LocalBlobStore(settings.blob_dir)
        return create_app(
            ApiServices(
                settings=settings,
                database=database,
                blobs=blobs,
                receiver=Receiver(settings, database, blobs, clock),
                clock=clock,
                static_dir=static_dir(),
                build=self._args.build,
                # Made by whoever is about to stop the stack: a file, because it must hold across processes.
                draining=(settings.run_dir / "draining").exists,
            )
        )
