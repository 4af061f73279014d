"""Power cuts on a model disk that forgets everything that was not fsynced: bytes of files and names in folders.

A child process writes blobs for real while every system call that changes the disk is noted. For each prefix of the
notes the model says what a disk that forgot as much as it may would hold; what had been acknowledged must be in it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from heimdallr_ray.ids import Sha256
from heimdallr_ray.storage import blobs
from heimdallr_ray.storage.blobs import LocalBlobStore


@dataclass
class File:
    """An inode: bytes written, and bytes of which fsync has returned."""

    content: bytes = b""
    durable: bytes = b""


@dataclass
class ModelDisk:
    """Names by path, as the kernel shows them and as they survive."""

    files: dict[Path, File] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    durable_files: dict[Path, File] = field(default_factory=dict)
    durable_folders: set[Path] = field(default_factory=set)

    def fsync_folder(self, folder: Path) -> None:
        for path in [path for path in self.durable_files if path.parent == folder and path not in self.files]:
            del self.durable_files[path]
        self.durable_files |= {path: file for path, file in self.files.items() if path.parent == folder}
        self.durable_folders |= {path for path in self.folders if path.parent == folder}

    def survivors(self, base: Path) -> dict[str, bytes]:
        """File names and bytes after a power cut, of files whose whole path survives."""

        def reachable(path: Path) -> bool:
            return path == base or (path in self.durable_folders and reachable(path.parent))

        return {path.name: file.durable for path, file in self.durable_files.items() if reachable(path.parent)}


class Recorder:
    """Stands between the blob store and the operating system: does the real thing, and notes it on the model."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.disk = ModelDisk()
        self.base = base
        self.acknowledged: dict[str, bytes] = {}
        self.cuts = 0
        self._open: dict[int, Path] = {}
        real_open, real_write, real_fsync, real_close = os.open, os.write, os.fsync, os.close
        real_mkdir, real_replace, real_link, real_unlink = Path.mkdir, Path.replace, Path.hardlink_to, Path.unlink

        def note_open(path: Path, flags: int, mode: int = 0o777) -> int:
            descriptor = real_open(path, flags, mode)
            self._open[descriptor] = Path(path)
            if flags & os.O_CREAT:
                self.disk.files[Path(path)] = File()
                self.cut()
            return descriptor

        def note_write(descriptor: int, data: bytes) -> int:
            written = real_write(descriptor, data)
            self.disk.files[self._open[descriptor]].content += bytes(data[:written])
            self.cut()
            return written

        def note_fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            path = self._open[descriptor]
            if path in self.disk.files:
                self.disk.files[path].durable = self.disk.files[path].content
            else:
                self.disk.fsync_folder(path)
            self.cut()

        def note_close(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real_close(descriptor)

        def note_mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
            real_mkdir(path, mode, parents, exist_ok)
            self.disk.folders.add(path)
            self.cut()

        def note_replace(path: Path, target: Path) -> Path:
            moved = real_replace(path, target)
            self.disk.files[target] = self.disk.files.pop(path)
            self.cut()
            return moved

        def note_link(path: Path, target: Path) -> None:
            real_link(path, target)
            self.disk.files[path] = self.disk.files[Path(target)]
            self.cut()

        def note_unlink(path: Path, missing_ok: bool = False) -> None:
            real_unlink(path, missing_ok)
            self.disk.files.pop(path, None)
            self.cut()

        for name, function in (
            ("open", note_open),
            ("write", note_write),
            ("fsync", note_fsync),
            ("close", note_close),
        ):
            patch.setattr(blobs.os, name, function)
        for name, function in (
            ("mkdir", note_mkdir),
            ("replace", note_replace),
            ("hardlink_to", note_link),
            ("unlink", note_unlink),
        ):
            patch.setattr(Path, name, function)

    def cut(self) -> None:
        """The power goes now: nothing acknowledged is missing, and no blob has other bytes than its name says."""
        self.cuts += 1
        survivors = self.disk.survivors(self.base)
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
        recorder = Recorder(base, patch)
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
        recorder = Recorder(base, patch)
        if forgotten == "folder":
            patch.setattr(blobs, "_fsync_folder", lambda folder: None)
        else:
            noted = blobs.os.fsync

            def only_folders(descriptor: int) -> None:
                if Path(f"/proc/self/fd/{descriptor}").is_dir():
                    noted(descriptor)

            patch.setattr(blobs.os, "fsync", only_folders)
        ref = LocalBlobStore(base / "blobs").put(b"content")
        recorder.acknowledged[ref.sha256] = b"content"
        recorder.cut()
