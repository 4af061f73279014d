"""Counts of one process: cheap, bounded, and what they say is what was done."""

from __future__ import annotations

import re
import threading
import timeit
from pathlib import Path

from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.listener import figures as figures_module
from heimdallr_ray.listener.figures import (
    GATE_REASONS,
    MINUTES,
    REASONS,
    STORE_BOUNDS_S,
    Figures,
    IntakeFigures,
    refusals_last_hour,
)
from tests.support.clock import FakeClock


def test_objects_bytes_and_times_are_counted_by_door() -> None:
    figures = IntakeFigures(FakeClock())
    figures.stored(Door.DICOM, 500, 0.001)
    figures.stored(Door.DICOM, 700, 0.0011)
    figures.stored(Door.STOW, 9, 99.0)
    told = figures.figures()
    assert told.stored == {"dicom": 2, "upload": 0, "stow": 1}
    assert told.stored_bytes["dicom"] == 1200
    # A bound belongs to its class: 1 ms is within "up to 1 ms".
    assert told.store_seconds["dicom"].counts[:3] == (1, 1, 0)
    assert told.store_seconds["stow"].counts[-1] == 1
    assert len(told.store_seconds["stow"].counts) == len(STORE_BOUNDS_S) + 1
    assert told.store_seconds["stow"].seconds == 99.0


def test_associations_and_the_disk_are_counted() -> None:
    figures = IntakeFigures(FakeClock())
    figures.association_opened()
    figures.association_closed(How.ABORTED)
    figures.synced(0.004)
    told = figures.figures()
    assert (told.associations_opened, told.associations_closed) == (1, {"aborted": 1})
    assert sum(told.sync_seconds.counts) == 1


def test_no_peer_decides_how_many_reasons_there_are() -> None:
    figures = IntakeFigures(FakeClock())
    for number in range(1000):
        figures.refused(f"invented_{number}")
        figures.refused(f"cut.invented_{number}")
        figures.refused(f"{number}.called_ae")
    figures.refused("calling_ae")
    figures.refused("storage_full", Door.UPLOAD)
    assert figures.figures().refused == {
        "dicom": {"other": 1000, "cut.other": 1000, "other.called_ae": 1000, "calling_ae": 1},
        "upload": {"storage_full": 1},
    }
    assert {"unauthorized", "too_large", "not_dicom", "called_ae", "slow_sender"} <= REASONS


def test_every_reason_of_the_doors_is_known() -> None:
    package = Path(figures_module.__file__).parent
    pattern = re.compile(r"""(?:Cut|Refusal|refuse_connection|_cut|return)\(?\s*"([a-z_]+)\"""")
    sources = [package / name for name in ("gate.py", "guarded.py", "registry.py", "scp.py")]
    sources += sorted((package / "wire").glob("*.py"))
    found = {reason for path in sources for reason in pattern.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 20
    assert found <= GATE_REASONS


def test_refusals_of_the_last_hour_are_forgotten_after_it() -> None:
    clock = FakeClock()
    figures = IntakeFigures(clock)
    figures.refused("calling_ae")
    clock.advance(60.0 * (MINUTES - 1))
    figures.refused("address")
    figures.refused("address")
    assert figures.figures().refused_last_hour == {"calling_ae": 1, "address": 2}
    clock.advance(60.0)
    assert figures.figures().refused_last_hour == {"address": 2}
    clock.advance(7200)
    assert figures.figures().refused_last_hour == {}
    assert figures.figures().refused["dicom"] == {"calling_ae": 1, "address": 2}


def test_several_processes_are_told_together_most_first() -> None:
    one, two = Figures(refused_last_hour={"a": 1, "b": 5}), Figures(refused_last_hour={"a": 7})
    assert list(refusals_last_hour([one, two]).items()) == [("a", 8), ("b", 5)]


def test_no_count_is_lost_between_threads() -> None:
    figures = IntakeFigures(FakeClock())

    def work() -> None:
        for _ in range(2000):
            figures.stored(Door.DICOM, 1, 0.002)
            figures.refused("address")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    told = figures.figures()
    assert told.stored["dicom"] == told.refused["dicom"]["address"] == sum(told.store_seconds["dicom"].counts) == 8000


def test_a_count_costs_little() -> None:
    figures = IntakeFigures(SystemClock())
    cheapest = min(timeit.repeat(lambda: figures.stored(Door.DICOM, 525_000, 0.013), number=2000, repeat=20)) / 2000
    # Two microseconds on a quiet machine; ten leave room for one that is not.
    assert cheapest < 10e-6
