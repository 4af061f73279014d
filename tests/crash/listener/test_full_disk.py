"""A disk of 64 MiB is full in the middle of a send: images are refused, none is lost, and it goes on by itself."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import create_app
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.listeners import running
from tests.support.seeded import services
from tests.support.wirepeer import NotAccepted, WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.13"
DISK_BYTES = 64 << 20
OFFERED_BYTES = 100_000_000
BALLAST_BYTES = 24 << 20
"""Taken by somebody else, who frees it later."""
SUCCESS, FULL = 0x0000, 0xA700


def may_mount() -> bool:
    """True where this process may mount file systems."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Generator[Path]:
    """A file system of 64 MiB."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs"]
    subprocess.run(["mount", *options, str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


class InjectedDisk:
    """The same for this process alone: writes of files under `folder` fail, and statvfs tells, as on a full disk."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        real_write, real_writev, real_statvfs = os.write, os.writev, os.statvfs

        def require_room(fd: int, size: int) -> None:
            target = Path(f"/proc/self/fd/{fd}").readlink()
            if folder in target.parents and self.used() + size > DISK_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def write(fd: int, data: bytes) -> int:
            require_room(fd, len(data))
            return real_write(fd, data)

        def writev(fd: int, buffers: Sequence[bytes]) -> int:
            require_room(fd, sum(map(len, buffers)))
            return real_writev(fd, buffers)

        def statvfs(path: Path) -> os.statvfs_result:
            told = real_statvfs(path)
            blocks, free = DISK_BYTES // 4096, max(0, DISK_BYTES - self.used()) // 4096
            return os.statvfs_result((4096, 4096, blocks, free, free, *told[5:10]))

        patch.setattr(os, "write", write)
        patch.setattr(os, "writev", writev)
        patch.setattr(os, "statvfs", statvfs)

    def used(self) -> int:
        sizes: dict[int, int] = {}
        for path in self._folder.rglob("*"):
            try:
                known = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                sizes[known.st_ino] = known.st_size
        return sum(sizes.values())


@dataclass
class Images:
    """Images of 525 kB, made as they are needed."""

    next_number: int = 0
    acknowledged: dict[str, str] | None = None

    def make(self) -> tuple[str, bytes]:
        self.next_number += 1
        sop = f"{STUDY}.7.{self.next_number}"
        return sop, dataset_bytes(file_bytes(ct_slice(self.next_number, STUDY, f"{STUDY}.7", size=512)))

    def offer(self, peer: WirePeer, count: int) -> list[int]:
        """The answers to so many images."""
        answers: list[int] = []
        self.acknowledged = self.acknowledged or {}
        for _ in range(count):
            sop, body = self.make()
            answers.append(peer.store(body, sop))
            if answers[-1] == SUCCESS:
                self.acknowledged[sop] = sha256(body)
        return answers


def send_until_full_and_on(intake: Intake, port: int, refuse_percent: float) -> None:
    """100 MB on one association; then room is made, and more is sent."""
    root = intake.settings.data_dir
    ballast = root / "somebody_elses"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    images = Images()
    with WirePeer(port) as peer:
        answers = images.offer(peer, 1)
        count = OFFERED_BYTES // 526_000
        answers += images.offer(peer, count)
        stored = answers.count(SUCCESS)
        assert set(answers) == {SUCCESS, FULL}, answers
        assert 20 < stored < 80, stored
        assert answers[-1] == FULL
    room = os.statvfs(root)
    used = 100 * (1 - room.f_bavail / room.f_blocks)
    if refuse_percent < 100:
        # The door closes before the disk is full, and says so before anything is sent.
        assert refuse_percent - 1 <= used < 98
        with pytest.raises(NotAccepted) as refusal:
            WirePeer(port)
        assert (refusal.value.result, refusal.value.source) == (2, 3)
        assert upload(root, refuse_percent) == 507
    else:
        assert used > 98
    ballast.unlink()
    wait_for(lambda: association_is_possible(port), 30, "the door to open by itself")
    with WirePeer(port) as peer:
        assert set(images.offer(peer, 10)) == {SUCCESS}
    wait_for(lambda: intake.spooled() == [], 60, "all acknowledged to be rows")
    assert intake.stored() == images.acknowledged
    assert len(intake.instances()) == stored + 10
    assert len([path for path in intake.settings.blob_dir.glob("??/*") if len(path.name) == 64]) == stored + 10
    if refuse_percent < 100:
        assert upload(root, refuse_percent) == 200
    intake.database.check(integrity=True)


def association_is_possible(port: int) -> bool:
    try:
        WirePeer(port).release()
    except NotAccepted:
        return False
    return True


def upload(root: Path, refuse_percent: float) -> int:
    """The HTTP status of an upload to the same installation."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.dcm", file_bytes(ct_slice(1, f"{STUDY}.1", f"{STUDY}.1.7", size=16)))
    app = create_app(services(root, disk_refuse_percent=refuse_percent))
    client = TestClient(app, base_url="http://localhost:8001", client=("127.0.0.1", 50000))
    return client.post("/api/v1/upload", files={"file": ("a.zip", packed.getvalue(), "application/zip")}).status_code


@pytest.mark.parametrize("refuse_percent", [100.0, 92.0], ids=["no watermark", "watermark"])
def test_a_disk_of_64_mib_refuses_what_does_not_fit_and_loses_nothing(tmp_path: Path, refuse_percent: float) -> None:
    """Check 13 of the reliability list: 0xA700 and 507, rows = files, on again after freeing without a restart.

    A real file system where one may be mounted; elsewhere the same is injected (see the next test).
    """
    if not may_mount():
        injected(tmp_path, refuse_percent)
        return
    with small_disk(tmp_path / "disk") as disk:
        root = disk / "data"
        with running(root, idle_s=60, disk_warn_percent=80.0, disk_refuse_percent=refuse_percent) as listener:
            send_until_full_and_on(Intake(root), listener.port, refuse_percent)
            assert listener.alive


def injected(tmp_path: Path, refuse_percent: float) -> None:
    intake = Intake(
        tmp_path / "data",
        idle_seconds=60,
        disk_warn_percent=80.0,
        disk_refuse_percent=refuse_percent,
        listener_processes=0,
    )
    with pytest.MonkeyPatch.context() as patch, intake.listening() as service:
        InjectedDisk(intake.settings.data_dir, patch)
        send_until_full_and_on(intake, service.scp.port, refuse_percent)


@pytest.mark.slow
def test_enospc_as_the_operating_system_tells_it(tmp_path: Path) -> None:
    """Check 13 of the reliability list, with the refusal injected into this process."""
    injected(tmp_path, 100.0)
