"""Folders of the spool, held by a lock while whoever made them lives."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Final

from heimdallr_ray.errors import StorageFailed
from heimdallr_ray.listener.room import storage_error

TRIES: Final = 20
AGAIN_S: Final = 0.05


def locked_folder(folder: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock.

    Whoever sweeps may look at it, or take it away, before it is locked; then it is made again.

    Args:
        folder: of a name that nobody else uses.

    Raises:
        StorageFull: no room to create it.
        StorageFailed: the operating system refused, or it was swept TRIES times.
    """
    for _ in range(TRIES):
        try:
            fd = _locked(folder)
        except OSError as error:
            raise storage_error(error) from error
        if fd is not None:
            return folder, fd
        time.sleep(AGAIN_S)
    raise StorageFailed("a new folder of the spool was swept as often as it was made")


def _locked(folder: Path) -> int | None:
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), folder.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def is_held(folder: Path) -> bool:
    """True while whoever made the folder lives.

    Raises:
        StorageFull, StorageFailed: it cannot be looked at.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise storage_error(error) from error
    finally:
        os.close(fd)
    return False


def remove_unlocked(path: Path) -> bool:
    """True where `path`, a file or a folder of files, was held by nobody and is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
