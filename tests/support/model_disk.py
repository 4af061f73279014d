"""A model disk that forgets everything that was not fsynced: bytes of files and names in folders.

Code under test writes for real while every system call of Python that changes the disk is noted. After each of them
the power may go; the model says what a disk that forgot as much as it may would hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest

TORN_BYTES = 16


class Kept(Enum):
    """What a disk remembers of which it was not told by fsync to do so."""

    NOTHING = "nothing"
    NAMES = "names"
    """And no bytes."""
    BEGINNINGS = "beginnings"
    """Names, lengths, and all bytes but the last: headers can be read, and the images are wrong."""


@dataclass
class File:
    """An inode: bytes written, and bytes of which fsync has returned."""

    content: bytes = b""
    durable: bytes = b""

    @property
    def torn(self) -> bytes:
        """Of its full length, with zeros for the last bytes that no fsync covers."""
        lost = min(TORN_BYTES, max(0, len(self.content) - len(self.durable)))
        return self.content[: len(self.content) - lost] + bytes(lost)


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

    def survivors(self, base: Path, kept: Kept = Kept.NOTHING) -> dict[Path, bytes]:
        """Files and bytes below `base` after a power cut, of files whose whole path survives; `kept` beside fsync."""
        folders = self.durable_folders | (set() if kept is Kept.NOTHING else self.folders)
        files = self.durable_files if kept is Kept.NOTHING else self.files

        def reachable(path: Path) -> bool:
            return path == base or (path in folders and reachable(path.parent))

        return {
            path.relative_to(base): file.torn if kept is Kept.BEGINNINGS else file.durable
            for path, file in files.items()
            if reachable(path.parent)
        }


class Recorder:
    """Stands between the code and the operating system: does the real thing, and notes it on the model.

    What happens outside `base` is not noted. Not for several threads at once.
    """

    def __init__(self, base: Path, patch: pytest.MonkeyPatch, on_cut: Callable[[], None]) -> None:
        """`on_cut` is called after each change: the power may go now."""
        self.disk = ModelDisk()
        self.base = base
        self.cuts = 0
        self._on_cut = on_cut
        self._open: dict[int, Path] = {}
        self._patch_descriptors(patch)
        self._patch_names(patch)

    def cut(self) -> None:
        """The power may go now."""
        self.cuts += 1
        self._on_cut()

    def _ours(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and self.base in (Path(path), *Path(path).parents)

    def _patch_descriptors(self, patch: pytest.MonkeyPatch) -> None:
        real_open, real_write, real_writev, real_pwrite = os.open, os.write, os.writev, os.pwrite
        real_fsync, real_close = os.fsync, os.close

        def note_open(path: Path, flags: int, mode: int = 0o777, **options: int) -> int:
            descriptor = real_open(path, flags, mode, **options)
            if self._ours(path):
                self._open[descriptor] = Path(path)
                if flags & os.O_CREAT and Path(path) not in self.disk.files:
                    self.disk.files[Path(path)] = File()
                    self.cut()
            return descriptor

        def written(descriptor: int, at: int | None, data: bytes) -> None:
            file = self.disk.files.get(self._open.get(descriptor, Path()))
            if file is not None:
                start = len(file.content) if at is None else at
                file.content = file.content[:start] + bytes(data) + file.content[start + len(data) :]
                self.cut()

        def note_write(descriptor: int, data: bytes) -> int:
            count = real_write(descriptor, data)
            written(descriptor, None, bytes(data[:count]))
            return count

        def note_writev(descriptor: int, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
            data = b"".join(bytes(part) for part in buffers)
            count = real_writev(descriptor, buffers)
            written(descriptor, None, data[:count])
            return count

        def note_pwrite(descriptor: int, data: bytes, at: int) -> int:
            count = real_pwrite(descriptor, data, at)
            written(descriptor, at, bytes(data[:count]))
            return count

        def note_fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            path = self._open.get(descriptor)
            if path is None:
                return
            if path in self.disk.files:
                self.disk.files[path].durable = self.disk.files[path].content
            else:
                self.disk.fsync_folder(path)
            self.cut()

        def note_close(descriptor: int) -> None:
            self._open.pop(descriptor, None)
            real_close(descriptor)

        for name, function in (
            ("open", note_open),
            ("write", note_write),
            ("writev", note_writev),
            ("pwrite", note_pwrite),
            ("fsync", note_fsync),
            ("close", note_close),
        ):
            patch.setattr(os, name, function)

    def _patch_names(self, patch: pytest.MonkeyPatch) -> None:
        real_mkdir, real_link, real_unlink = os.mkdir, os.link, os.unlink
        real_move = {"replace": os.replace, "rename": os.rename}

        def note_mkdir(path: Path, mode: int = 0o777) -> None:
            real_mkdir(path, mode)
            if self._ours(path):
                self.disk.folders.add(Path(path))
                self.cut()

        def note_move(name: str) -> Callable[[Path, Path], None]:
            def note(path: Path, target: Path) -> None:
                real_move[name](path, target)
                if self._ours(path):
                    self.disk.files[Path(target)] = self.disk.files.pop(Path(path))
                    for descriptor, known in self._open.items():
                        if known == Path(path):
                            self._open[descriptor] = Path(target)
                    self.cut()

            return note

        def note_link(path: Path, target: Path) -> None:
            real_link(path, target)
            if self._ours(target):
                self.disk.files[Path(target)] = self.disk.files[Path(path)]
                self.cut()

        def note_unlink(path: Path, *, dir_fd: int | None = None) -> None:
            real_unlink(path, dir_fd=dir_fd)
            # With a folder's descriptor only temporary folders elsewhere are taken away.
            if dir_fd is None and self._ours(path) and self.disk.files.pop(Path(path), None) is not None:
                self.cut()

        # pathlib ends in these, too.
        for name, function in (
            ("mkdir", note_mkdir),
            ("replace", note_move("replace")),
            ("rename", note_move("rename")),
            ("link", note_link),
            ("unlink", note_unlink),
        ):
            patch.setattr(os, name, function)
