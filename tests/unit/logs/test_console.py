"""What whoever reads the console hears of an event."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from heimdallr_ray import logs
from heimdallr_ray.config import load


def test_a_warning_is_said_with_its_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load({}, data_dir=tmp_path), "supervisor", console=True)
    try:
        logging.getLogger("heimdallr_ray.test").warning("device.unusable", extra={"detail": "no driver", "count": 2})
    finally:
        logs.close()
    assert capsys.readouterr().err == "device.unusable detail=no driver count=2\n"
