"""A study whose series only the contrast phase model could part is segmented once, whichever of them wins."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines.steps import TIE_TASKS
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.segmentation.engine import Segmentation, SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.phase import PhaseFeatures, PhaseModel, PhaseReading, phase_at
from heimdallr_ray.segmentation.planner import Plan
from heimdallr_ray.segmentation.tasks import TOTAL_FAST
from heimdallr_ray.volume import LabelMap, ModelRef
from tests.integration.pipelines.test_study import TwoSeries
from tests.support.dicom import ct_study

STUDY = str(Uid.derived("study"))
NAMES = ("one", "two")


class TwoOrgans:
    """Labels a liver and an aorta in every image, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[SegmentationRequest] = []
        self.runs: list[SegmentationRun] = []

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        labels = np.zeros(request.volume.array.shape, np.uint8)
        labels[:4], labels[4:8] = 5, 52
        model = ModelRef("total", "totalsegmentator/297", "0" * 64, synthetic=True)
        manifest = request.volume.source.manifest_sha256
        made = LabelMap(labels, request.volume.affine_ras, {5: "liver", 52: "aorta"}, model, manifest)
        found = {TOTAL_FAST: Segmentation(TOTAL_FAST, made, Timings())}
        self.requests.append(request)
        self.runs.append(SegmentationRun(found, Plan((TOTAL_FAST,), ()), {}, Timings()))
        return self.runs[-1]


class Tied(TwoSeries):
    """Two series after contrast whose phase no header tells."""

    def __init__(self, database: Database, folder: Path) -> None:
        super().__init__(database, folder)
        self.organs = TwoOrgans()
        self.runner = StudyRunner(database, self.blobs, self.queue, self.organs, self.clock, "test")

    def _batch(self) -> list[bytes]:
        shared: dict[str, Any] = {"StudyInstanceUID": STUDY, "ContrastBolusAgent": "Iomeron"}
        return [
            content
            for number, name in enumerate(NAMES, start=1)
            for content in ct_study(24, seed=name, SeriesDescription=name, SeriesNumber=number, **shared)
        ]


@pytest.mark.parametrize(("seconds", "winner"), [((40.0, 70.0), 1), ((70.0, 40.0), 0)])
def test_the_winner_is_neither_read_nor_segmented_again(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], winner: int
) -> None:
    left = list(seconds)

    def predict(self: PhaseModel, features: PhaseFeatures) -> PhaseReading:
        at = left.pop(0)
        return PhaseReading(at, (at,), *phase_at(at))

    monkeypatch.setattr(PhaseModel, "predict", predict)
    site = Tied(database, folder)
    opened: Counter[str] = Counter()
    read = StudyRunner._read

    def counted(self: StudyRunner, locator: str) -> bytes:
        opened[locator] += 1
        return read(self, locator)

    monkeypatch.setattr(StudyRunner, "_read", counted)
    done = site.work()
    assert done["volume"]["series_uid"] == str(Uid.derived(NAMES[winner], "series"))
    first, second, study = site.organs.requests
    assert (first.wanted, second.wanted) == (TIE_TASKS, TIE_TASKS)
    assert study.volume is (first, second)[winner].volume
    assert study.earlier is site.organs.runs[winner]
    assert set(opened.values()) == {1}
    assert len(opened) == 48
