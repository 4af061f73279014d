"""What `heimdallr status` says of the listener and the disk, and what its exit status is made of."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from heimdallr_ray.config import Settings, load, save_effective
from heimdallr_ray.listener.figures import IntakeFigures
from heimdallr_ray.listener.snapshots import FOLDER, LISTENER, FiguresPublisher, ProcessState, Snapshot
from heimdallr_ray.operations import application, doors, status
from heimdallr_ray.operations.lock import DataFolderLock, Holder
from heimdallr_ray.operations.status import disk_words, exit_status, listener_words
from tests.support.clock import FakeClock


def told(state: ProcessState, age_s: float = 0.5) -> tuple[Snapshot, FakeClock]:
    clock = FakeClock()
    publisher = FiguresPublisher(Path(FOLDER), LISTENER, IntakeFigures(clock), clock, lambda: state)
    snapshot = publisher.snapshot("listener-0")
    return replace(snapshot, written_at=snapshot.written_at - timedelta(seconds=age_s)), clock


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (ProcessState(port=11112), "well: port 11112, 0 open"),
        (ProcessState(port=0, draining=True), "draining: the port is closed"),
        (
            ProcessState(port=11112, trouble="a receiving process has not answered for 21 s"),
            "works in part: a receiving process has not answered for 21 s",
        ),
        (
            ProcessState(port=11112, healthy=False, trouble="0 of 2 receiving processes run"),
            "does not work: 0 of 2 receiving processes run",
        ),
        (ProcessState(port=11112, healthy=False), "does not work: one of its parts has ended"),
    ],
)
def test_the_listener_speaks_for_itself(state: ProcessState, words: str) -> None:
    snapshot, clock = told(state)
    # What Ingress heard is older, and says less.
    for answered in ("ready", "no answer"):
        assert listener_words(snapshot, answered, clock.now()) == words


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        ("ready", "well, by its answer; it cannot write of itself"),
        ("draining", "draining: the port is closed"),
        ("unhealthy", "does not work: unhealthy"),
        ("no answer", "does not work: no answer"),
        ("absent", "does not work: absent"),
    ],
)
def test_one_that_writes_nothing_any_more_is_asked(answered: str, words: str) -> None:
    snapshot, clock = told(ProcessState(port=11112), age_s=11)
    assert listener_words(snapshot, answered, clock.now()) == words
    assert listener_words(None, answered, clock.now()) == words


def test_what_the_disk_means_is_said_where_it_means_something(tmp_path: Path) -> None:
    def words(**changes: float) -> dict[str, str]:
        return disk_words(Settings.model_validate({"data_dir": tmp_path / "none yet", **changes}))

    assert words(min_free_mib=0, disk_warn_percent=99.9, disk_refuse_percent=100) == {}
    assert words(min_free_mib=0, disk_warn_percent=0.01, disk_refuse_percent=100)["disk"].startswith("warn: ")
    assert words(min_free_mib=1 << 40)["disk"].endswith("images are refused until there is room")


def test_exit_status() -> None:
    well: dict[str, object] = {"state": "ready", "listener": "well: port 11112, 0 open", "api": {}}
    assert exit_status(well) == 0
    assert exit_status({**well, "disk": "warn: 86 % used"}) == 0
    assert exit_status({"state": "down"}) == 3
    for other in (
        {"state": "degraded"},
        {"listener": "does not work: no answer"},
        {"listener": "works in part: 1 of 2 receiving processes run"},
        {"api": "answers 401"},
        {"disk": "refuse: 93 % used"},
    ):
        assert exit_status({**well, **other}) == 1


def test_a_running_stack_says_what_holds_at_its_dicom_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> httpx.Response:
        raise httpx.ConnectError("nobody")

    monkeypatch.setattr(application, "get", silent)
    monkeypatch.setattr(status, "models_lacking", lambda _: "")
    settings = load({}, data_dir=tmp_path, durability="study")
    lock = DataFolderLock(settings.run_dir)
    try:
        lock.note(Holder(os.getpid(), "2026-01-01T12:00:00+00:00", "http://127.0.0.1:1", "H@127.0.0.1:2", "b", "ready"))
        save_effective(settings, settings.run_dir / "settings.json")
        # The settings in force count, whatever the command itself reads.
        report = status.collect(load({}, data_dir=tmp_path))
    finally:
        lock.release()
    assert report["dicom"] == doors.summary(settings)
    rows = dict(status.flatten(report))
    assert doors.POWER_CUT in rows["dicom.durability"] and rows["dicom.tls"].startswith("off; ")
