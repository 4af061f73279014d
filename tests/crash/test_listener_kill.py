"""kill -9 of the listener while images are on their way: every image answered Success is there after the restart."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from heimdallr_ray.clients.send import SendReport, send_folder
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for, write_study
from tests.support.kills import DuringSend
from tests.support.listeners import prepared

IMAGES = 60
IMAGES_OF_25_MOMENTS = 500
IDLE_S = 4.0


def free_port() -> int:
    """A port that nobody's outgoing connection can take while the listener is down: below the ephemeral ones."""
    for port in random.sample(range(20_000, 30_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def kill_during_send(tmp_path: Path, seed: int, images: int = IMAGES, durability: str = "instance") -> None:
    moment = DuringSend(seed, images)
    folder = tmp_path / "study"
    paths = write_study(folder, images)
    digests = {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes()))
        for path in paths
    }
    root, port = tmp_path / "data", free_port()
    reports: list[SendReport] = []

    def send() -> None:
        reports.append(
            send_folder(folder, "127.0.0.1", port, "HEIMDALLR", on_progress=moment.on_progress, attempts=100)
        )

    sender = threading.Thread(target=send)
    # The second is ready before the first is killed: the time between them counts as idle.
    started = (
        prepared(root, port, IDLE_S, durability=durability, dicom_backend="wire"),
        prepared(root, port, IDLE_S, durability=durability, dicom_backend="wire"),
    )
    with started[0] as first, started[1] as second:
        first.begin()
        sender.start()
        moment.kill(first.kill)
        second.begin()
        sender.join(240)
        assert not sender.is_alive()
        intake = Intake(root)
        assert set(reports[0].acknowledged) == set(digests)
        assert reports[0].associations > 1
        wait_for(intake.jobs, 60 + IDLE_S, "the study to be queued")
        # Longer than the idle time: a second closing would show.
        time.sleep(IDLE_S)
        assert intake.stored() == digests
        assert len(intake.instances()) == images
        assert [(study.state, study.epoch, study.n_instances) for study in intake.studies()] == [("queued", 1, images)]
        assert len(intake.jobs()) == 1
        wait_for(lambda: not intake.spooled(), 30, "the spool to be empty")


@pytest.mark.parametrize(("seed", "durability"), [(11, "instance"), pytest.param(47, "study", marks=pytest.mark.slow)])
def test_listener_killed_during_a_send(tmp_path: Path, seed: int, durability: str) -> None:
    """Check 1 of the reliability list, two moments: no answered image is missing, each has the bytes that were sent.

    The kernel keeps what a killed process has written, so nothing is lost where an image need not reach the disk first.
    """
    kill_during_send(tmp_path, seed, durability=durability)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [23, *range(100, 124)])
def test_listener_killed_at_25_moments(tmp_path: Path, seed: int) -> None:
    """Check 1 of the reliability list: 25 random moments of a send of 500 instances, 0 missing, sha256 as sent."""
    kill_during_send(tmp_path, seed, IMAGES_OF_25_MOMENTS)
