"""What the writers of a registry need of the file system: durable folders, and its failures as typed errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from heimdallr_ray.errors import StorageFailed, StorageFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def fsync_folder(folder: Path) -> None:
    """The names in `folder` are on the disk.

    Raises:
        OSError: they could not be written.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """The bytes of `path` are on the disk.

    Raises:
        OSError: they could not be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error: OSError) -> StorageFull | StorageFailed:
    """The typed error for a failure of the file system."""
    detail = os.strerror(error.errno) if error.errno else type(error).__name__
    return StorageFull(detail) if error.errno in _FULL else StorageFailed(detail)
