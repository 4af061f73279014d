"""One stack for all tests of this folder, in which studies can be marked to kill their engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack

HOOK = Path(__file__).parents[2] / "support" / "killing_engine"
IDLE_S = 8.0
"""Longer than a listener needs to come back, so that its outage does not close a study early."""


@pytest.fixture(scope="package")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files named like studies; what they say is done in the engine (tests/support/killing_engine)."""
    return Path(tmp_path_factory.mktemp("marked"))


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, marked: Path) -> Iterator[Stack]:
    """`heimdallr up` with two studies at a time in its engine, started anew by whoever kills it."""
    overrides = {
        "PYTHONPATH": str(HOOK),
        "TEST_MARKED_STUDIES": str(marked),
        "HEIMDALLR_MAX_PARALLEL_CASES": "2",
        "HEIMDALLR_IDLE_SECONDS": str(IDLE_S),
        "HEIMDALLR_SETTLE_AFTER_RELEASE_SECONDS": "2",
    }
    running = Stack(Path(tmp_path_factory.mktemp("crash")) / "data", overrides).start()
    try:
        yield running
    finally:
        running.clean_up()
