"""Folders of the spool, held by a lock while whoever made them lives."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from heimdallr_ray.listener.room import storage_error


def locked_folder(folder: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock.

    Raises:
        StorageFull: no room to create it.
        StorageFailed: the operating system refused.
    """
    try:
        folder.mkdir(mode=0o700)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise storage_error(error) from error
    return folder, fd


def is_held(folder: Path) -> bool:
    """True while whoever made the folder lives."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
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
