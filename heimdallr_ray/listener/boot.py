"""Which start of the machine this is: only a power cut takes what the kernel has and the disk has not."""

from __future__ import annotations

from pathlib import Path

from heimdallr_ray.listener.room import storage_error

SOURCE = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Another one after each start of the machine: 32 hexadecimal digits in groups (random(4)).

    Raises:
        StorageFailed: it cannot be read.
    """
    try:
        return SOURCE.read_text(encoding="ascii").strip()
    except OSError as error:
        raise storage_error(error) from error
