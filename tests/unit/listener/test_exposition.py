"""The names of the figures are a contract: what is told is what docs/operations/metrics.md says."""

from __future__ import annotations

import re
from pathlib import Path

from heimdallr_ray.catalog.commitments import CommitmentOutbox
from heimdallr_ray.catalog.states import How
from heimdallr_ray.listener.exposition import IntakeCollector, expose
from heimdallr_ray.listener.figures import IntakeFigures
from heimdallr_ray.listener.overview import IntakeCounts, SpoolState
from heimdallr_ray.listener.room import Room
from heimdallr_ray.listener.snapshots import ProcessState, Snapshot
from tests.support.clock import EPOCH, FakeClock

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operations" / "metrics.md"
ROW = re.compile(r"^\| `(heimdallr_intake_\w+)` \|([a-z, ]*)\|", re.MULTILINE)


def collector() -> IntakeCollector:
    figures = IntakeFigures(FakeClock())
    figures.refused("cut.slow_sender")
    figures.association_closed(How.LOST)
    snapshot = Snapshot("listener-0", 1, EPOCH, EPOCH, ProcessState(), figures.figures())
    counts = IntakeCounts({"receiving": 1}, 5, CommitmentOutbox(0, None, 0, 0), {"used": 1})
    return IntakeCollector([snapshot], counts, SpoolState(0, None, 0), Room(50.0, 1 << 30))


def test_every_figure_is_documented_with_its_labels_and_no_other() -> None:
    told: dict[str, str] = {}
    for family in collector().collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.documentation
        told[name] = ", ".join(sorted(labels))
    written = {
        name: ", ".join(sorted(filter(None, labels.strip().split(", "))))
        for name, labels in ROW.findall(PAGE.read_text(encoding="utf-8"))
    }
    assert told == written


def test_what_is_not_known_is_not_told() -> None:
    _, body = expose(IntakeCollector([], None, SpoolState(0, None, 0), None), "")
    assert b"heimdallr_intake_audit_entries" not in body
    assert b"heimdallr_intake_disk" not in body
    assert b"heimdallr_intake_spool_depth 0.0" in body
