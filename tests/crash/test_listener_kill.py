"""kill -9 of the listener while images are on their way: every image answered Success is there after the restart."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread

from heimdallr_ray.clients.send import SendReport, send_folder
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for, write_study
from tests.support.kills import DuringSend

ROOT = Path(__file__).parents[2]
IMAGES = 60
IDLE_S = 6.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listener(root: Path, port: int) -> Generator[subprocess.Popen[str]]:
    """A process with everything imported and nothing opened; `begin` starts it. Killed at the end if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.listener_runner", str(root), str(port), str(IDLE_S)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def begin(process: subprocess.Popen[str]) -> None:
    """The listener answers on its port."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline().strip().isdigit()


def kill_during_send(tmp_path: Path, seed: int) -> None:
    moment = DuringSend(seed, IMAGES)
    folder = tmp_path / "study"
    paths = write_study(folder, IMAGES)
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
    with listener(root, port) as first, listener(root, port) as second:

        def kill() -> None:
            first.kill()
            first.wait(10)

        begin(first)
        sender.start()
        moment.kill(kill)
        begin(second)
        sender.join(120)
        assert not sender.is_alive()
        intake = Intake(root)
        assert set(reports[0].acknowledged) == set(digests)
        assert reports[0].associations > 1
        wait_for(intake.jobs, 60 + IDLE_S, "the study to be queued")
        # Longer than the idle time: a second closing would show.
        time.sleep(IDLE_S)
        assert intake.stored() == digests
        assert len(intake.instances()) == IMAGES
        assert [(study.state, study.epoch, study.n_instances) for study in intake.studies()] == [("queued", 1, IMAGES)]
        assert len(intake.jobs()) == 1
        assert intake.spooled() == []


@pytest.mark.parametrize("seed", [11, 23, 47])
def test_listener_killed_during_a_send(tmp_path: Path, seed: int) -> None:
    kill_during_send(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 125))
def test_listener_killed_at_25_moments(tmp_path: Path, seed: int) -> None:
    kill_during_send(tmp_path, seed)
