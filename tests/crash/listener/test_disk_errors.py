"""The disk refuses one image in the middle of a study: that one is refused, the others are stored."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast

import pytest

from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.listener.wire.pool import ReceivingProcesses
from heimdallr_ray.listener.wire.server import WireScp
from tests.support.disk_errors import refuse_once, refuse_once_in_children
from tests.support.intake import Intake, all_committed, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.wirepeer import WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.2"
IMAGES, VICTIM = 100, 50


@pytest.mark.parametrize("processes", [0, 1], ids=["in the listener", "in a receiving process"])
@pytest.mark.parametrize(
    ("call", "place"),
    [("fsync", "image"), ("fsync", "ready folder"), ("write", "image")],
    ids=["bytes of the image", "name of the image", "write"],
)
def test_an_error_of_the_disk_at_the_50th_of_100_costs_that_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, place: str, processes: int
) -> None:
    """Check 2 of the reliability list: EIO at the 50th is 0xA7xx, without file or row; the other 99 are stored."""
    intake = Intake(tmp_path / "data", listener_processes=processes)
    bodies = [dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.7", size=16))) for n in range(1, IMAGES + 1)]
    answers: list[int] = []
    armed = tmp_path / "armed"
    if processes:
        refuse_once_in_children(tmp_path / "site", call, place, errno.EIO, armed, monkeypatch.setenv)
    with intake.listening() as service:
        if not processes:
            refuse_once(call, place, errno.EIO, armed, monkeypatch.setattr)
        served_by = receiving(service)
        assert len(served_by) == processes
        with WirePeer(service.scp.port) as peer:
            for n, body in enumerate(bodies, 1):
                if n == VICTIM:
                    armed.touch()
                answers.append(peer.store(body, f"{STUDY}.7.{n}"))
        assert not armed.exists(), "nothing was refused"
        assert all_committed(service)
        assert (service.trouble, receiving(service)) == ("", served_by)
    refused = answers.pop(VICTIM - 1)
    assert refused & 0xFF00 == 0xA700, f"0x{refused:04X}"
    assert set(answers) == {0}
    del bodies[VICTIM - 1]
    assert sorted(intake.stored().values()) == sorted(map(sha256, bodies))
    assert f"{STUDY}.7.{VICTIM}" not in intake.stored()
    assert len(list(intake.settings.blob_dir.glob("??/*"))) == IMAGES - 1
    assert intake.spooled() == []


def receiving(service: ListenerService) -> list[int]:
    """The processes that receive; none where the listener does it itself."""
    serving = cast(WireScp, service.scp)._serving
    return list(serving.pids) if isinstance(serving, ReceivingProcesses) else []


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
