"""The application behind a real HTTP server in this process, on a free loopback port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from heimdallr_ray.api.app import create_app
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.listener.receive import Receiver
from tests.support.intake import Intake

START_S = 20.0


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Generator[str]:
    """The base URL while it is served; open streams are cut at the end, as at a restart."""
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        assert time.monotonic() < deadline, "the HTTP server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listener.close()


def services_of(intake: Intake) -> ApiServices:
    """An installation's HTTP door, without pages."""
    return ApiServices(
        settings=intake.settings,
        database=intake.database,
        blobs=intake.blobs,
        receiver=Receiver(intake.settings, intake.database, intake.blobs, intake.clock),
        clock=intake.clock,
        static_dir=None,
        build="test",
    )


@contextmanager
def serving_intake(intake: Intake) -> Generator[str]:
    """The base URL of an installation's HTTP door, without pages, while it is served."""
    services = services_of(intake)
    with serving(create_app(services)) as base:
        yield base
