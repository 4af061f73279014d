"""One stored file that the disk does not give back or does not take: it stands in nobody else's way, and is told."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.ids import Sha256
from heimdallr_ray.listener import committer, hardening
from heimdallr_ray.listener.service import ListenerService
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, wait_for
from tests.support.wirepeer import WirePeer

FIRST, SECOND = "1.2.826.0.1.3680043.9.9.61", "1.2.826.0.1.3680043.9.9.62"
HANG_S = 60.0


def sent(service: ListenerService, study: str, *numbers: int) -> None:
    with WirePeer(service.scp.port) as peer:
        for number in numbers:
            body = dataset_bytes(file_bytes(ct_slice(number, study, f"{study}.7", size=32)))
            assert peer.store(body, f"{study}.7.{number}") == 0


def rows(intake: Intake, study: str) -> int:
    return next((one.n_instances for one in intake.studies() if one.study_uid == study), 0)


def queued(intake: Intake) -> int:
    return len(intake.jobs())


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_stored_image_that_cannot_be_read_is_mended_when_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    intake = Intake(tmp_path / "data", idle_seconds=0.5)
    with intake.listening() as service:
        sent(service, FIRST, 1)
        wait_for(lambda: queued(intake) == 1 and not intake.spooled(), HANG_S, "the study to be queued")
        blob = intake.blobs.path(intake.instances()[0].blob_sha256)
        damaged = blob.stat().st_ino
        real = hashlib.file_digest

        def unreadable(file: Any, digest: Any) -> Any:
            if os.fstat(file.fileno()).st_ino == damaged:
                raise OSError(code, os.strerror(code))
            return real(file, digest)

        monkeypatch.setattr(hashlib, "file_digest", unreadable)
        sent(service, FIRST, 1)
        sent(service, SECOND, 1, 2, 3)
        wait_for(lambda: queued(intake) == 2 and not intake.spooled(), HANG_S, "the other study to be queued")
        assert (rows(intake, FIRST), rows(intake, SECOND)) == (1, 3)
        assert service.receiver.counts().duplicates == 1
        assert blob.stat().st_ino != damaged
        assert intake.blobs.verify(intake.instances()[0].blob_sha256)
        assert (service.healthy, service.trouble) == (True, "")


def test_an_image_that_cannot_be_stored_keeps_no_other_from_its_row_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "LATER_S", 1.0)
    intake = Intake(tmp_path / "data", idle_seconds=0.5)
    with intake.listening() as service:
        sent(service, FIRST, 1)
        wait_for(lambda: queued(intake) == 1 and not intake.spooled(), HANG_S, "the study to be queued")
        # In place of a file that nobody can read or replace.
        blob = intake.blobs.path(intake.instances()[0].blob_sha256)
        content = blob.read_bytes()
        blob.unlink()
        blob.mkdir()
        sent(service, FIRST, 1)
        sent(service, SECOND, 1, 2, 3)
        wait_for(lambda: queued(intake) == 2, HANG_S, "the other study to be queued")
        assert rows(intake, SECOND) == 3
        wait_for(lambda: service.trouble, HANG_S, "the listener to say what is wrong")
        assert "1 acknowledged objects cannot be stored (storage_failed)" in service.trouble
        assert FIRST in service.receiver.pending_study_uids()
    # Of those that a killed listener leaves it is the same.
    third = "1.2.826.0.1.3680043.9.9.63"
    with intake.listening() as service:
        sent(service, third, 1, 2)
        wait_for(lambda: queued(intake) == 3, HANG_S, "the third study to be queued")
        wait_for(lambda: service.trouble, HANG_S, "the listener to say what is wrong")
        blob.rmdir()
        wait_for(lambda: not intake.spooled() and not service.trouble, HANG_S, "the image to be stored after all")
        assert blob.read_bytes() == content
        assert service.receiver.pending_study_uids() == frozenset()
    assert [rows(intake, study) for study in (FIRST, SECOND, third)] == [1, 3, 2]


def test_one_image_that_is_not_made_durable_holds_its_own_study_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(tmp_path / "data", durability="study", idle_seconds=0.5)
    refused: set[str] = set()
    real = os.fsync

    def failing(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name in refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", failing)
    body = dataset_bytes(file_bytes(ct_slice(1, FIRST, f"{FIRST}.7", size=32)))
    with intake.listening() as service:
        with WirePeer(service.scp.port) as peer:
            assert peer.store(body, f"{FIRST}.7.1") == 0
            wait_for(intake.instances, HANG_S, "the row")
            refused.add(intake.instances()[0].blob_sha256)
        sent(service, SECOND, 1, 2, 3)
        wait_for(lambda: queued(intake) == 1, HANG_S, "the other study to be queued")
        assert {row.durable for row in intake.instances() if row.blob_sha256 in refused} == {False}
        refused.clear()
        wait_for(lambda: queued(intake) == 2, HANG_S, "the first study to be queued")
    assert {row.durable for row in intake.instances()} == {True}


def test_after_a_power_cut_one_image_that_cannot_be_read_keeps_no_other_from_being_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(tmp_path / "data", durability="study", idle_seconds=3600.0, settle_after_release_seconds=3600.0)
    with intake.listening() as service:
        sent(service, FIRST, 1)
        sent(service, SECOND, 1, 2)
        wait_for(lambda: len(intake.instances()) == 3, HANG_S, "the rows")
    unreadable, whole, damaged = sorted(row.blob_sha256 for row in intake.instances())
    intake.blobs.path(unreadable).unlink()
    intake.blobs.locate(unreadable).mkdir()
    path = intake.blobs.path(damaged)
    path.chmod(0o600)
    path.write_bytes(b"torn")
    monkeypatch.setattr(hardening, "boot_id", lambda: "another boot")
    with intake.listening() as service:
        wait_for(lambda: len(intake.instances()) == 2, HANG_S, "the damaged image to be taken back")
        assert service.receiver.settled(HANG_S)
        durable = {row.blob_sha256: row.durable for row in intake.instances()}
        assert durable == {Sha256(unreadable): False, Sha256(whole): True}
