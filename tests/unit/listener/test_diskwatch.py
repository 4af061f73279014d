"""The disk's level is told when it changes, and only then."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdallr_ray.errors import StorageFull
from heimdallr_ray.listener.diskwatch import DiskWatch
from heimdallr_ray.listener.room import RoomLevel, Watermarks, require_room
from heimdallr_ray.listener.spool import Spool

GIB = 1 << 30
MARKS = Watermarks(min_free_bytes=GIB, warn_percent=85, refuse_percent=92)


def disk(patch: pytest.MonkeyPatch, used_percent: float, reserved: int = 50) -> None:
    """A disk of 1,000 blocks of 1 GiB, of which `reserved` are the system's own."""
    used = round((1000 - reserved) * used_percent / 100)
    free = 1000 - reserved - used
    found = SimpleNamespace(f_blocks=1000, f_bfree=free + reserved, f_bavail=free, f_frsize=GIB)
    patch.setattr(os, "statvfs", lambda _: found)


def test_levels_are_told_once_and_the_doors_open_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool", marks=MARKS)
    watch = DiskWatch(spool)
    caplog.set_level(logging.INFO)
    seen: list[RoomLevel] = []
    for percent in (50, 86, 87, 92, 93, 91.5, 50):
        disk(monkeypatch, percent)
        seen.append(watch.look())
        if percent >= 92:
            with pytest.raises(StorageFull, match="disk_refuse_percent"):
                spool.require_room(1)
        else:
            spool.require_room(1)
    assert [level.value for level in seen] == ["well", "warn", "warn", "refuse", "refuse", "warn", "well"]
    told = [record.__dict__["level"] for record in caplog.records if record.message == "disk.level"]
    assert told == ["warn", "refuse", "warn", "well"]
    spool.close()


def test_the_minimum_that_stays_free_counts_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 50)
    require_room(tmp_path, MARKS, 474 * GIB)
    with pytest.raises(StorageFull, match="min_free_mib"):
        require_room(tmp_path, MARKS, 475 * GIB)
