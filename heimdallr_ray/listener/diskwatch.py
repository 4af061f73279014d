"""Says once when the disk becomes full enough to warn, to refuse, or has room again."""

from __future__ import annotations

import logging

from heimdallr_ray.errors import StorageFailed
from heimdallr_ray.listener.room import RoomLevel
from heimdallr_ray.listener.spool import Spool

logger = logging.getLogger(__name__)

_LOG = {RoomLevel.WELL: logging.INFO, RoomLevel.WARN: logging.WARNING, RoomLevel.REFUSE: logging.ERROR}


class DiskWatch:
    """Remembers the level that was told last. For one thread."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._told = RoomLevel.WELL

    def look(self) -> RoomLevel:
        """The level now; a change has its log line."""
        try:
            level, used_percent = self._spool.room_level()
        except StorageFailed as error:
            logger.warning("disk.not_measured", extra={"reason": error.detail})
            return self._told
        if level is not self._told:
            marks = self._spool.marks
            logger.log(
                _LOG[level],
                "disk.level",
                extra={
                    "level": level.value,
                    "used_percent": round(used_percent, 1),
                    "warn_percent": marks.warn_percent,
                    "refuse_percent": marks.refuse_percent,
                    "min_free_mib": marks.min_free_bytes >> 20,
                },
            )
            self._told = level
        return level
