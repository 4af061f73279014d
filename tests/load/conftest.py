"""Data folders of load tests: on the disk, where fsync costs what it costs, and gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture
def on_disk() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-load-", ignore_cleanup_errors=True) as name:
        yield Path(name)
