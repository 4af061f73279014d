"""The disk begins with an object that is still being received: the fsync at its end waits for the last bytes only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): start writing dirty pages, wait for nothing."""


def _find() -> Callable[[int, int, int, int], int] | None:
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        # Linux alone has it; elsewhere fsync waits a little longer.
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast("Callable[[int, int, int, int], int]", found)


_sync_file_range = _find()


def start_writeback(fd: int, offset: int, size: int) -> None:
    """The kernel has begun to write these bytes. A hint: what it could not begin, fsync does and reports."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, size, _WRITE)
