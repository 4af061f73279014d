"""One running stack for all tests of this folder: starting it is the expensive part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack


@pytest.fixture(scope="package")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(Path(tmp_path_factory.mktemp("stack")) / "data").start()
    try:
        yield running
    finally:
        running.clean_up()


@pytest.fixture(scope="module")
def stack(started: Stack) -> Stack:
    """`heimdallr up` with the demo profile on a folder of its own; started again where the last module ended it."""
    return started if started.state() == "ready" else started.start()
