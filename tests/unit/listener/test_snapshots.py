"""Figures of several processes, told by files: no half file, no dead process, no port."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.listener import snapshots
from heimdallr_ray.listener.figures import IntakeFigures, OpenNow
from heimdallr_ray.listener.snapshots import (
    HTTP,
    LISTENER,
    FiguresPublisher,
    Place,
    ProcessState,
    read_snapshots,
)
from tests.support.clock import EPOCH, FakeClock


def publisher(folder: Path, clock: FakeClock, kind: str = LISTENER, state: ProcessState | None = None):
    figures = IntakeFigures(clock)
    figures.stored(Door.DICOM, 500, 0.01)
    figures.refused("called_ae")
    return FiguresPublisher(folder, kind, figures, clock, lambda: state or ProcessState(port=11112))


def read(folder: Path, clock: FakeClock) -> list[snapshots.Snapshot]:
    return read_snapshots(folder / snapshots.FOLDER, clock.now())


def test_what_is_told_is_what_is_read(tmp_path: Path) -> None:
    clock = FakeClock()
    state = ProcessState(port=11112, open=(OpenNow("a1", "CT_1", "192.0.2.7", EPOCH, stored=3),), waiting=2)
    one = publisher(tmp_path, clock, state=state)
    one.publish()
    (told,) = read(tmp_path, clock)
    assert told == one.snapshot("listener-0")
    assert (told.kind, told.state.open[0].calling_ae, told.figures.stored["dicom"]) == ("listener", "CT_1", 1)
    folder = tmp_path / snapshots.FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    one.stop()
    assert read(tmp_path, clock) == []


def test_each_process_has_a_place_and_listeners_are_told_first(tmp_path: Path) -> None:
    clock = FakeClock()
    told = [publisher(tmp_path, clock, kind) for kind in (HTTP, LISTENER, LISTENER)]
    for one in told:
        one.publish()
    assert [one.place for one in read(tmp_path, clock)] == ["listener-0", "listener-1", "http-0"]
    told[1].stop()
    again = publisher(tmp_path, clock)
    again.publish()
    assert again.place == "listener-0"
    for one in (*told, again):
        one.stop()


def _tell(folder: str, told: object, end: object) -> None:
    clock = FakeClock()
    publisher(Path(folder), clock).publish()
    told.set()  # pyright: ignore[reportAttributeAccessIssue]
    end.wait(60)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_killed_process_is_told_no_more_and_its_place_is_free(tmp_path: Path) -> None:
    clock = FakeClock()
    context = multiprocessing.get_context("fork")
    told, end = context.Event(), context.Event()
    process = context.Process(target=_tell, args=(str(tmp_path), told, end), daemon=True)
    process.start()
    assert told.wait(30)
    assert [one.pid for one in read(tmp_path, clock)] == [process.pid]
    process.kill()
    process.join(30)
    assert (tmp_path / snapshots.FOLDER / "listener-0.json").exists()
    assert read(tmp_path, clock) == []
    successor = publisher(tmp_path, clock)
    successor.publish()
    assert successor.place == "listener-0"
    successor.stop()


def test_a_process_that_hangs_is_left_out(tmp_path: Path) -> None:
    clock = FakeClock()
    one = publisher(tmp_path, clock)
    one.publish()
    clock.advance(snapshots.STALE_S + 1)
    assert read(tmp_path, clock) == []
    one.publish()
    assert len(read(tmp_path, clock)) == 1
    one.stop()


def test_what_is_no_snapshot_is_passed_over(tmp_path: Path) -> None:
    clock = FakeClock()
    folder = tmp_path / snapshots.FOLDER
    places = [Place.take(folder, LISTENER) for _ in range(3)]
    (folder / "listener-0.json").write_text("{}")
    (folder / "listener-1.json").write_bytes(b"x" * (snapshots.MAX_BYTES + 1))
    (folder / "listener-999.json").write_text("{}")
    (folder / "..json").write_text("{}")
    (folder / "evil.json").write_text("{}")
    assert read(tmp_path, clock) == []
    for place in places:
        place.leave()
        place.leave()


def test_a_thousand_open_associations_are_told_and_no_more(tmp_path: Path) -> None:
    clock = FakeClock()
    crowd = tuple(OpenNow(f"{number:032x}", "X" * 16, "192.0.2.7", EPOCH) for number in range(1500))
    one = publisher(tmp_path, clock, state=ProcessState(open=crowd))
    one.publish()
    (told,) = read(tmp_path, clock)
    assert len(told.state.open) == snapshots.MAX_OPEN
    one.stop()


def test_the_thread_tells_by_itself_and_does_its_chores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(snapshots, "CHORES_EVERY_S", 0.0)
    clock = FakeClock()
    done = multiprocessing.Event()

    def chores() -> None:
        done.set()
        raise OSError("the next round comes")

    one = FiguresPublisher(tmp_path, LISTENER, IntakeFigures(clock), clock, chores=chores)
    one.start()
    assert done.wait(30)
    assert one.alive
    assert [told.place for told in read(tmp_path, clock)] == ["listener-0"]
    one.stop()
    assert not one.alive
