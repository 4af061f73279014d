"""A file that several processes append whole lines to, of bounded size, with its predecessors beside it.

No lock is held but while a line is written, and none of ours can hold up another: a process that is stopped with the
lock costs the others WAIT_S each second, then they write without it, which the kernel keeps whole all the same
(O_APPEND, one write). The kernel frees the lock of one that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

WAIT_S: Final = 0.05
PATIENT_AGAIN_S: Final = 1.0
_POLL_S: Final = 0.001
_TRIES: Final = 5
_MODE: Final = 0o600
_END: Final = b"\n"


class SharedFile:
    """One file of lines. Used by one thread at a time; other processes use the same path with the same bounds."""

    def __init__(self, path: Path, *, max_bytes: int, files: int, now_s: Callable[[], float] = time.monotonic) -> None:
        """Nothing is opened yet.

        Args:
            path: the file; its predecessors are `path`.1 (the youngest), `path`.2 and so on.
            max_bytes: no line makes the file larger than this, unless it is larger by itself.
            files: how many there are at most, the one that is written included.
            now_s: a clock that only goes forward.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._now_s = now_s
        self._fd: int | None = None
        self._patient_from_s = 0.0

    def append(self, line: bytes) -> None:
        """The line is in the file, whole.

        Raises:
            OSError: it is not, and nothing of it is left behind.
        """
        for attempt in range(_TRIES):
            descriptor = self._open()
            locked = self._lock(descriptor)
            try:
                if attempt < _TRIES - 1 and not self._is_current(descriptor):
                    self.close()
                    continue
                size = os.fstat(descriptor).st_size
                if locked and size and size + len(line) > self._max_bytes and attempt < _TRIES - 1:
                    self._rotate()
                    self.close()
                    continue
                _write(descriptor, line, size if locked else None)
                return
            finally:
                if locked and self._fd is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """The descriptor is given back; the next line opens the file again."""
        descriptor, self._fd = self._fd, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(self.path, flags, _MODE)
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                self.close()
                raise OSError(errno.EINVAL, "not a regular file")
        return self._fd

    def _lock(self, descriptor: int) -> bool:
        """True where the file is ours until it is unlocked; False where somebody keeps it: it is written to anyway."""
        began = self._now_s()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._now_s() < self._patient_from_s:
                    return False
                if self._now_s() - began >= WAIT_S:
                    self._patient_from_s = self._now_s() + PATIENT_AGAIN_S
                    return False
                time.sleep(_POLL_S)
            else:
                return True

    def _is_current(self, descriptor: int) -> bool:
        """False where another process has put a new file in its place, or somebody has removed it."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return False
        ours = os.fstat(descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _rotate(self) -> None:
        # A gap, where a process was killed in between, is closed by the next turn.
        for number in range(self._files - 1, 0, -1):
            older = self.path if number == 1 else Path(f"{self.path}.{number - 1}")
            with suppress(FileNotFoundError):
                older.replace(f"{self.path}.{number}")
        if self._files == 1:
            self.path.unlink(missing_ok=True)


def _write(descriptor: int, line: bytes, size: int | None) -> None:
    """`size`: of the file, where nobody else writes meanwhile."""
    # A process that was killed while it wrote, or a disk that was full, leaves a piece of a line; ours starts anew.
    if size and os.pread(descriptor, 1, size - 1) != _END:
        line = _END + line
    written = os.write(descriptor, line)
    if written != len(line):
        if size is not None:
            os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
