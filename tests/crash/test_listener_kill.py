"""kill -9 of what receives while images are on their way: every image answered Success is there after the restart."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread

from heimdallr_ray.clients.send import SendReport, send_folder
from tests.support.freeport import free_port
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.kills import DuringSend
from tests.support.listeners import ListenerProcess, prepared

IMAGES = 60
IMAGES_OF_25_MOMENTS = 500
SMALL, LARGE = 64, 512
"""Edge in pixels: 8 kB, and 525 kB, so that a kill falls inside a write."""
LARGE_EVERY = 3
IDLE_S = 4.0
AFTER_ABORT_S = 30.0
"""Longer than a receiving process takes to be there again: the study may not be closed meanwhile."""
STUDY = "1.2.826.0.1.3680043.9.9.1"
LISTENER, RECEIVER = "listener", "receiver"


def write_mixed(folder: Path, count: int) -> dict[str, str]:
    """A study of `count` images as files, every third of 525 kB; returns SOP Instance UID to sha256 of the data set."""
    folder.mkdir(parents=True)
    digests: dict[str, str] = {}
    for index in range(1, count + 1):
        size = LARGE if index % LARGE_EVERY == 0 else SMALL
        path = folder / f"{index:04d}.dcm"
        path.write_bytes(file_bytes(ct_slice(index, STUDY, f"{STUDY}.7", size=size)))
        header = dcmread(path, stop_before_pixels=True)
        digests[str(header.SOPInstanceUID)] = sha256(dataset_bytes(path.read_bytes()))
    return digests


def half_written(root: Path) -> list[int]:
    """Sizes of the spool's files that a process had not finished."""
    sizes: list[int] = []
    for path in (root / "spool" / "incoming").rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sorted(sizes)


def kill_one_that_receives(listener: ListenerProcess, chance: random.Random) -> None:
    """SIGKILL to one of its receiving processes; the listener stays."""
    os.kill(chance.choice(listener.receiving()), signal.SIGKILL)
    assert listener.alive


def replace_listener(first: ListenerProcess, second: ListenerProcess, root: Path) -> None:
    """SIGKILL to the first, and the second begins at once, while receiving processes of the first may still answer."""
    receiving = first.receiving()
    first.kill()
    print(f"left unfinished in the spool: {half_written(root)} bytes")
    second.begin()
    for pid in receiving:
        wait_for(lambda pid=pid: has_ended(pid), 30, "the end of a receiving process without its listener")


def has_ended(pid: int) -> bool:
    """Gone, or waiting for nobody but whoever asks for its end."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_during_send(
    tmp_path: Path,
    seed: int,
    victim: str,
    *,
    images: int = IMAGES,
    durability: str = "instance",
    processes: int = 1,
) -> None:
    """Each receiving process has an association of the sender, so that the one that is killed is at work."""
    moment, chance = DuringSend(seed, images, processes), random.Random(seed)
    folder, root, port = tmp_path / "study", tmp_path / "data", free_port()
    digests = write_mixed(folder, images)
    reports: list[SendReport] = []

    def send() -> None:
        reports.append(
            send_folder(
                folder, "127.0.0.1", port, "HEIMDALLR",
                on_progress=moment.on_progress, attempts=100, associations=processes,
            )
        )  # fmt: skip

    def ready() -> contextlib.AbstractContextManager[ListenerProcess]:
        return prepared(
            root, port, IDLE_S,
            settle_after_abort_seconds=AFTER_ABORT_S, durability=durability, dicom_backend="wire",
            listener_processes=processes,
        )  # fmt: skip

    sender = threading.Thread(target=send)
    with contextlib.ExitStack() as started:
        first = started.enter_context(ready())
        # It is ready before the first is killed: the time between them counts as idle.
        second = started.enter_context(ready()) if victim == LISTENER else None
        first.begin()
        before = first.receiving()
        assert len(before) == processes
        kill: Callable[[], None] = (
            (lambda: replace_listener(first, second, root))
            if second is not None
            else lambda: kill_one_that_receives(first, chance)
        )
        sender.start()
        moment.kill(kill)
        sender.join(240)
        assert not sender.is_alive()
        intake = Intake(root)
        assert set(reports[0].acknowledged) == set(digests)
        if victim == LISTENER or processes == 1:
            assert reports[0].associations > processes
        wait_for(intake.jobs, 60 + AFTER_ABORT_S, "the study to be queued")
        # Longer than the idle time: a second closing would show.
        time.sleep(IDLE_S)
        assert intake.stored() == digests
        assert len(intake.instances()) == images
        assert [(study.state, study.epoch, study.n_instances) for study in intake.studies()] == [("queued", 1, images)]
        assert len(intake.jobs()) == 1
        wait_for(lambda: not intake.spooled(), 30, "the spool to be empty")
        if victim == RECEIVER:
            wait_for(lambda: len(set(first.receiving()) - set(before)) == 1, 60, "another process in its place")
            assert len(first.receiving()) == processes
            assert first.alive and first.status()["healthy"]


@pytest.mark.parametrize(
    ("seed", "victim", "durability"),
    [
        (11, LISTENER, "instance"),
        (12, RECEIVER, "instance"),
        pytest.param(47, LISTENER, "study", marks=pytest.mark.slow),
        pytest.param(48, RECEIVER, "study", marks=pytest.mark.slow),
    ],
)
def test_killed_during_a_send(tmp_path: Path, seed: int, victim: str, durability: str) -> None:
    """Check 1 of the reliability list, two moments: no answered image is missing, each has the bytes that were sent.

    The kernel keeps what a killed process has written, so nothing is lost where an image need not reach the disk first.
    """
    kill_during_send(tmp_path, seed, victim, durability=durability)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("seed", "victim", "processes"),
    [(seed, (LISTENER, RECEIVER)[seed % 2], 1 + seed // 2 % 2) for seed in range(100, 125)],
)
def test_killed_at_25_moments(tmp_path: Path, seed: int, victim: str, processes: int) -> None:
    """Check 1 of the reliability list: 25 random moments of a send of 500 images, 0 missing, sha256 as sent.

    Killed are by turns the listener, which knows, and a process that receives, which answers.
    """
    kill_during_send(tmp_path, seed, victim, images=IMAGES_OF_25_MOMENTS, processes=processes)
