"""The disk refuses one image in the middle of a study: that one is refused, the others are stored."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.wirepeer import WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.2"
IMAGES, VICTIM = 100, 50


def fail_once(
    patch: pytest.MonkeyPatch, call: str, is_it: Callable[[Path], bool], code: int, armed: Callable[[], bool]
) -> None:
    """The operating system refuses one `call` on a file or folder for which `is_it` holds, once `armed`."""
    failed: list[Path] = []

    def failing(real: Callable[..., object], fd: int, *arguments: object) -> object:
        target = Path(f"/proc/self/fd/{fd}").readlink()
        if armed() and not failed and is_it(target):
            failed.append(target)
            raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    for name in [call, "writev"] if call == "write" else [call]:
        patch.setattr(os, name, partial(failing, getattr(os, name)))


def is_image(path: Path) -> bool:
    return path.suffix == ".part"


def is_ready_folder(path: Path) -> bool:
    return path.name == "ready"


@pytest.mark.parametrize(
    ("call", "is_it"),
    [("fsync", is_image), ("fsync", is_ready_folder), ("write", is_image)],
    ids=["bytes of the image", "name of the image", "write"],
)
def test_an_error_of_the_disk_at_the_50th_of_100_costs_that_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, is_it: Callable[[Path], bool]
) -> None:
    """Check 2 of the reliability list: EIO at the 50th is 0xA7xx, without file or row; the other 99 are stored."""
    # In this process, where its calls can be refused.
    intake = Intake(tmp_path / "data", listener_processes=0)
    bodies = [dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.7", size=16))) for n in range(1, IMAGES + 1)]
    answers: list[int] = []
    with intake.listening() as service:
        fail_once(monkeypatch, call, is_it, errno.EIO, lambda: len(answers) == VICTIM - 1)
        with WirePeer(service.scp.port) as peer:
            for n, body in enumerate(bodies, 1):
                answers.append(peer.store(body, f"{STUDY}.7.{n}"))
        assert service.receiver.flush(30)
    refused = answers.pop(VICTIM - 1)
    assert refused & 0xFF00 == 0xA700, f"0x{refused:04X}"
    assert set(answers) == {0}
    del bodies[VICTIM - 1]
    assert sorted(intake.stored().values()) == sorted(map(sha256, bodies))
    assert f"{STUDY}.7.{VICTIM}" not in intake.stored()
    assert len(list(intake.settings.blob_dir.glob("??/*"))) == IMAGES - 1
    assert intake.spooled() == []


def test_a_study_that_cannot_be_made_durable_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 2 of the reliability list with durability = study: the disk refuses later, and nothing is made of it."""
    intake = Intake(tmp_path / "data", durability="study", idle_seconds=0.5)
    broken = True
    refusals: list[Path] = []
    real = os.fsync

    def failing(fd: int) -> None:
        target = Path(f"/proc/self/fd/{fd}").readlink()
        if broken and len(target.name) == 64:
            refusals.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with intake.listening() as service:
        with WirePeer(service.scp.port) as peer:
            for n in range(1, 6):
                body = dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.7", size=16)))
                assert peer.store(body, f"{STUDY}.7.{n}") == 0
        wait_for(lambda: len(refusals) >= 3, 60, "three attempts to make it durable")
        assert intake.jobs() == []
        assert {row.durable for row in intake.instances()} == {False}
        broken = False
        wait_for(intake.jobs, 60, "the study to be queued")
        assert {row.durable for row in intake.instances()} == {True}
    assert [study.n_instances for study in intake.studies()] == [5]
