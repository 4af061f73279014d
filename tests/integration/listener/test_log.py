"""The log of a listener with receiving processes: what is in it, what is not, and what becomes of images without it."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray import logs
from heimdallr_ray.clients.send import send_folder
from tests.support.intake import Intake, wait_for, write_study

IMAGES = 60


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    logs.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_an_image_is_no_line_of_the_log(tmp_path: Path, level: str) -> None:
    write_study(tmp_path / "study", IMAGES)
    intake = Intake(tmp_path / "data", listener_processes=1, log_level=level)
    logs.configure(intake.settings, "listener")
    path = intake.settings.log_dir / "listener.log"
    with intake.listening() as service:
        assert send_folder(tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR").sent == IMAGES
        with socket.create_connection(("127.0.0.1", service.scp.port), timeout=10):
            pass
        wait_for(intake.jobs, 60, "the study to be queued")
        wait_for(lambda: b"no_request" in path.read_bytes(), 30, "the line of the receiving process")
    events = Counter((line["process"], line["event"]) for line in lines(path))
    assert events["receiver", "process.started"] == events["receiver", "connection.closed"] == 1
    assert events["listener", "association.opened"] == events["listener", "association.closed"] == 1
    assert events.total() < IMAGES / 2, events


def test_images_are_received_where_no_line_can_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "study", 3)
    intake = Intake(tmp_path / "data", listener_processes=1)
    (intake.settings.log_dir / "listener.log").mkdir(parents=True)
    logs.configure(intake.settings, "listener")
    with intake.listening() as service:
        assert send_folder(tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR").sent == 3
        wait_for(intake.jobs, 60, "the study to be queued")
    said = [line for line in capfd.readouterr().err.splitlines() if "cannot be written" in line]
    # Once by the listener, once by the receiving process.
    assert said == [f"the log {intake.settings.log_dir / 'listener.log'} cannot be written: EISDIR"] * 2
