"""What fails while the stack is stopped is told, and the rest is stopped all the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.errors import StorageFull
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.operations.supervisor import Supervisor


class Head:
    """A Ray head that can be stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def remember(self) -> None:
        """Nothing to remember."""

    def stop(self, timeout_s: float) -> list[int]:
        self.stopped += 1
        assert timeout_s > 5
        return []


class Listener:
    """A listener that answers a stop, or a drain, with an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.is_drained = False

    def stop(self, timeout_s: float) -> None:
        if self.error is not None:
            raise self.error

    def drained(self) -> bool:
        return self.is_drained


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Supervisor:
    settings = load({}, data_dir=tmp_path, server_port=0, dicom_port=0)
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    made = Supervisor(settings, SystemClock(), said.append)
    parts = cast(Any, made)
    parts._started, parts._head = True, Head()
    return made


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (ConnectionError("no route\nTraceback: ..."), "ConnectionError", "no route"),
        (StorageFull("4 MiB left"), "storage_full", "4 MiB left"),
        (RuntimeError(), "RuntimeError", "no reason given"),
    ],
)
def test_a_part_that_cannot_be_stopped_is_told_and_the_rest_is_stopped(
    supervisor: Supervisor,
    said: list[str],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
    detail: str,
) -> None:
    parts = cast(Any, supervisor)
    parts._listener = Listener(error)
    DrainMark(supervisor.settings.run_dir).set()
    with caplog.at_level(logging.WARNING, logger="heimdallr_ray.operations.supervisor"):
        assert supervisor.stop() == []
    assert f"the DICOM listener's own end failed: {code}: {detail}" in said
    (record,) = caplog.records
    assert (record.__dict__["code"], record.__dict__["detail"]) == (code, detail)
    assert parts._head.stopped == 1
    assert not DrainMark(supervisor.settings.run_dir).is_set()


def test_a_stack_is_not_drained_before_port_and_uploads_are_quiet(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heimdallr_ray.operations.application.unfinished", lambda _: 0)
    parts, listener = cast(Any, supervisor), Listener()
    parts._listener = listener
    mark = DrainMark(supervisor.settings.run_dir)
    with mark.storing():
        assert not parts._drained()
        assert mark.is_set()
        listener.is_drained = True
        assert not parts._drained()
    assert parts._drained()
    monkeypatch.setattr("heimdallr_ray.operations.application.unfinished", lambda _: None)
    assert not parts._drained(), "an API that does not answer is no proof"
