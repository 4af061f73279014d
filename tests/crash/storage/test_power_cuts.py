"""Power cuts on a model disk that forgets everything that was not fsynced: bytes of files and names in folders.

A child process writes blobs for real while every system call that changes the disk is noted. For each prefix of the
notes the model says what a disk that forgot as much as it may would hold; what had been acknowledged must be in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from heimdallr_ray.ids import Sha256
from heimdallr_ray.storage import blobs
from heimdallr_ray.storage.blobs import LocalBlobStore
from tests.support.model_disk import File, Recorder


class BlobCuts(Recorder):
    """After each change: nothing acknowledged is missing, and no blob has other bytes than its name says."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.acknowledged: dict[str, bytes] = {}
        super().__init__(base, patch, self._look)

    def _look(self) -> None:
        survivors = {path.name: content for path, content in self.disk.survivors(self.base).items()}
        for name, content in survivors.items():
            if len(name) == 64:
                assert hashlib.sha256(content).hexdigest() == name, f"cut {self.cuts}: half a blob under a full name"
        for name, content in self.acknowledged.items():
            assert survivors.get(name) == content, f"cut {self.cuts}: an acknowledged blob is lost"


def test_no_power_cut_loses_what_was_acknowledged(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    spooled: list[Path] = []
    for n in range(10):
        path = base / f"spooled{n}"
        path.write_bytes(b"spooled %d" % (n % 8) * 100)
        spooled.append(path)
    with pytest.MonkeyPatch.context() as patch:
        recorder = BlobCuts(base, patch)
        for path in spooled:
            content = path.read_bytes()
            recorder.disk.files[path] = File(content, content)
        # Two stores: each must make sure of folders that the other one made.
        stores = [LocalBlobStore(base / "blobs"), LocalBlobStore(base / "blobs")]
        for n in range(24):
            content = [b"%d" % n * 50, b"tail"]
            ref = stores[n % 2].put(content)
            recorder.acknowledged[ref.sha256] = b"".join(content)
            recorder.cut()
        for store in stores:
            digests = [Sha256(hashlib.sha256(path.read_bytes()).hexdigest()) for path in spooled]
            store.keep(list(zip(spooled, digests, strict=True)))
            store.settle(digests)
            for path, sha256 in zip(spooled, digests, strict=True):
                recorder.acknowledged[sha256] = path.read_bytes()
            recorder.cut()
    assert recorder.cuts >= 200
    assert len(recorder.acknowledged) == 32


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_the_model_disk_finds_a_missing_fsync(tmp_path: Path, forgotten: str) -> None:
    """The test above can fail: without either fsync it does."""
    base = tmp_path.resolve()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match=r"lost|half a blob"):
        recorder = BlobCuts(base, patch)
        if forgotten == "folder":
            patch.setattr(blobs, "sync_folder", lambda folder: None)
        else:
            noted = blobs.os.fsync

            def only_folders(descriptor: int) -> None:
                if Path(f"/proc/self/fd/{descriptor}").is_dir():
                    noted(descriptor)

            patch.setattr(blobs.os, "fsync", only_folders)
        ref = LocalBlobStore(base / "blobs").put(b"content")
        recorder.acknowledged[ref.sha256] = b"content"
        recorder.cut()
