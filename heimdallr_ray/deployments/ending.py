"""A replica whose device is lost ends at once, while it is still known which study was on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from heimdallr_ray.errors import DeviceLost, HeimdallrError

log = logging.getLogger(__name__)

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits(3)."""


@contextmanager
def ending_with(device: str) -> Generator[None]:
    """An error of the block that has cost the process its device ends the process; every other one passes through.

    Each later study would meet the same error here, and use up its attempts, until Serve finds the replica ill.

    Args:
        device: torch's name of it.
    """
    try:
        yield
    except DeviceLost as error:
        _end(error)
        raise
    except HeimdallrError:
        raise
    except Exception:
        _end_without(device)
        raise


def _end_without(device: str) -> None:
    from heimdallr_ray.segmentation.totalseg.device import require_device

    try:
        require_device(device)
    except DeviceLost as error:
        _end(error)


def _end(error: DeviceLost) -> None:
    log.critical("device.lost", extra={"code": error.code, "detail": error.detail})
    os._exit(EXIT_STATUS)
