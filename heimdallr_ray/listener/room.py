"""How full the device of the data folder may become before the doors close; they open again as soon as there is room.

The share is the one that `df` shows: used / (used + available to us).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from heimdallr_ray.errors import StorageFailed, StorageFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RoomLevel(StrEnum):
    """What the free space means for the doors."""

    WELL = "well"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Watermarks:
    """When to warn, and when to refuse (0xA700, HTTP 507)."""

    min_free_bytes: int = 0
    warn_percent: float = 100.0
    refuse_percent: float = 100.0


@dataclass(frozen=True)
class Room:
    """The device as it is now."""

    used_percent: float
    free_bytes: int

    def level(self, marks: Watermarks, size: int = 0) -> RoomLevel:
        """What `size` more bytes would mean."""
        if self.free_bytes < marks.min_free_bytes + size or self.used_percent >= marks.refuse_percent:
            return RoomLevel.REFUSE
        return RoomLevel.WARN if self.used_percent >= marks.warn_percent else RoomLevel.WELL

    def headroom(self, marks: Watermarks) -> int:
        """Bytes until images are refused."""
        share = (marks.refuse_percent - self.used_percent) / max(100.0 - self.used_percent, 1e-6)
        return min(self.free_bytes - marks.min_free_bytes, int(self.free_bytes * share))


def storage_error(error: OSError) -> StorageFull | StorageFailed:
    """The typed error for a failure of the file system."""
    detail = os.strerror(error.errno) if error.errno else type(error).__name__
    return StorageFull(detail) if error.errno in _FULL else StorageFailed(detail)


def measure(folder: Path) -> Room:
    """The device under `folder`.

    Raises:
        StorageFailed: the file system does not answer.
    """
    try:
        usage = os.statvfs(folder)
    except OSError as error:
        raise storage_error(error) from error
    used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
    free = usage.f_bavail * usage.f_frsize
    return Room(100.0 * used / (used + free) if used + free else 100.0, free)


def require_room(folder: Path, marks: Watermarks | int, size: int = 0) -> Room:
    """The device, while `size` more bytes under `folder` keep to `marks` (a number: bytes that stay free).

    Raises:
        StorageFull: they would not.
        StorageFailed: the file system does not answer.
    """
    limits = Watermarks(min_free_bytes=marks) if isinstance(marks, int) else marks
    room = measure(folder)
    if room.level(limits, size) is RoomLevel.REFUSE:
        if room.used_percent >= limits.refuse_percent:
            raise StorageFull(f"the disk is {room.used_percent:.0f} % full (disk_refuse_percent)")
        raise StorageFull("less than min_free_mib is free")
    return room
