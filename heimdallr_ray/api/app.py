"""The FastAPI application, from its services; whoever serves it (Ray Serve's ingress, a test) builds those."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI

from heimdallr_ray import __version__
from heimdallr_ray.api import (
    choose,
    complete,
    dicomweb,
    events,
    explain,
    failures,
    health,
    intake,
    pages,
    retry,
    studies,
    uploads,
)
from heimdallr_ray.api.access import ANYONE
from heimdallr_ray.api.flow import SayingWhatIsTaken
from heimdallr_ray.api.guard import Guard
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.events.reader import CatalogEvents
from heimdallr_ray.events.stream import Feed
from heimdallr_ray.security.grants import TokenBook

__all__ = ["ApiServices", "create_app"]

DESCRIPTION = (
    "Studies, their measurements with units, status and provenance, and the files behind them. "
    'Decision support, not for diagnosis. Every error is {"error": {"code", "detail"}}.'
)


def create_app(services: ApiServices) -> FastAPI:
    """The application over `services`. Starts no thread and opens no file before the first request."""
    app = FastAPI(
        title="Heimdallr",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.services = services
    app.state.tokens = TokenBook(services.settings, services.database, services.clock)
    failures.install(app, pages.unknown_page(services.static_dir))
    feed = Feed(CatalogEvents(services.database), services.clock, asyncio.to_thread)
    for router in (
        studies.build_router(),
        retry.build_router(),
        choose.build_router(),
        complete.build_router(),
        explain.build_router(),
        events.build_router(feed),
        uploads.build_router(),
        dicomweb.build_router(),
        health.build_router(),
        intake.build_router(),
        pages.build_router(services.static_dir),
    ):
        app.include_router(router)

    @app.get("/openapi.json", dependencies=[ANYONE], include_in_schema=False)
    def openapi_document() -> dict[str, object]:
        """The description of the API; says nothing of this installation."""
        return app.openapi()

    app.add_middleware(Guard, settings=services.settings)
    app.add_middleware(SayingWhatIsTaken)
    return app
