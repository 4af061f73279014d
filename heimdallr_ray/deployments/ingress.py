"""Ingress: the FastAPI application behind Serve's proxy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from heimdallr_ray import logs
from heimdallr_ray.api.services import DRAINING, READY
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.readiness import (
    ABSENT,
    ANSWER_S,
    LISTENER,
    UNHEALTHY,
    Components,
    word_of,
)
from heimdallr_ray.listener.actor import ACTOR_NAME, NAMESPACE
from heimdallr_ray.listener.draining import DrainMark

MAY_SLEEP = frozenset({"MedGemma", "ReportBuilder"})
"""Deployments that may have no replica (min_replicas: 0 in serve_config.yaml)."""
CONSUMER = "StudyConsumer"


def ask_serve(names: Iterable[str]) -> dict[str, str]:
    """Each deployment of `names` in one word, as Serve's controller knows it."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    words: dict[str, str] = {}
    for name in names:
        found = application.deployments.get(name)
        words[name] = (
            word_of(
                str(found.status.value),
                {str(getattr(state, "value", state)): count for state, count in found.replica_states.items()},
                may_sleep=name in MAY_SLEEP,
            )
            if found
            else ABSENT
        )
    return words


def ask_consumer(handle: DeploymentHandle[Any]) -> dict[str, str]:
    """Whether the consumer's threads claim studies, told by itself."""
    return {CONSUMER: READY if handle.working.remote().result(timeout_s=ANSWER_S) else UNHEALTHY}


def ask_listener() -> dict[str, str]:
    """What the DICOM listener tells of itself; it is an actor beside Serve."""
    try:
        actor = cast(Any, ray).get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return {LISTENER: ABSENT}
    status = cast("dict[str, Any]", ray.get(actor.status.remote(), timeout=ANSWER_S))
    return {LISTENER: UNHEALTHY if not status["healthy"] else DRAINING if status["draining"] else READY}


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
        logs.configure(args.settings(), "ingress")
        self._handles = {
            CONSUMER: consumer,
            "Segmenter": segmenter,
            "MedGemma": medgemma,
            "ReportBuilder": report_builder,
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application over this installation's database, blobs and receiver."""
        from heimdallr_ray.api.app import ApiServices, create_app
        from heimdallr_ray.api.told import telling_of
        from heimdallr_ray.catalog.database import Database
        from heimdallr_ray.dashboard import static_dir
        from heimdallr_ray.listener.receive import Receiver
        from heimdallr_ray.storage.blobs import LocalBlobStore

        settings, clock = self._args.settings(), SystemClock()
        names = tuple(self._handles)
        components = Components(
            {
                names: lambda: ask_serve(names),
                (CONSUMER,): lambda: ask_consumer(self._handles[CONSUMER]),
                (LISTENER,): ask_listener,
            },
            clock,
        )
        database = Database(settings.resolved_database_url)
        blobs = LocalBlobStore(settings.blob_dir)
        services = ApiServices(
            settings=settings,
            database=database,
            blobs=blobs,
            receiver=Receiver(settings, database, blobs, clock),
            clock=clock,
            static_dir=static_dir(),
            build=self._args.build,
            # Made by whoever is about to stop the stack: a file, because it must hold across processes.
            draining=DrainMark(settings.run_dir).is_set,
            components=components,
        )
        # Ends with the process, which frees its place.
        telling_of(services).start()
        return create_app(services)
