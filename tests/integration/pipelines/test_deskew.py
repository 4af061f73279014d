"""A tilt is taken out where the site or a person asks for it: models see it upright, everything else the slices."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.retrying import choose_series
from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.series import group
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, provenance_of
from heimdallr_ray.pipelines import steps
from heimdallr_ray.pipelines.study import StudyRunner
from heimdallr_ray.segmentation.engine import Segmentation, SegmentationRequest, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import Plan
from heimdallr_ray.segmentation.tasks import TOTAL_FAST
from heimdallr_ray.volume import LabelMap, ModelRef, Volume
from tests.integration.pipelines.test_study import TwoSeries
from tests.support.dicom import ct_datasets, indexed, set_pixels, to_bytes

TILT_DEG = 18.5
BALL_HU = 0


def tilted(slices: int = 40, tilt_deg: float = TILT_DEG, **overrides: Any) -> list[bytes]:
    """Slices of a ball of 16 mm, each shifted in its plane as a tilted gantry shifts it."""
    rows, columns = 64, 56
    made = ct_datasets(slices, (rows, columns), PixelSpacing=["1.0", "1.0"], **overrides)
    slope = math.tan(math.radians(tilt_deg))
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    for k, dataset in enumerate(made):
        y = -30 + round(k * slope, 6)
        dataset.ImagePositionPatient = [-28.0, round(y, 6), -150.0 + k]
        away = np.sqrt((i - 28) ** 2 + (y + j - 8) ** 2 + (k - slices / 2) ** 2)
        set_pixels(dataset, np.where(away < 16, 1100, 24).astype(np.uint16))
    return [to_bytes(dataset) for dataset in made]


class Threshold:
    """Labels what is denser than the ball's rim, and keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[Volume] = []

    def run(self, request: SegmentationRequest, *, lost: threading.Event | None = None) -> SegmentationRun:
        volume = request.volume
        self.given.append(volume)
        labels = np.where(np.asarray(volume.array) > BALL_HU, 5, 0).astype(np.uint8)
        model = ModelRef("total", "totalsegmentator/297", "0" * 64, synthetic=True)
        made = LabelMap(labels, volume.affine_ras, {5: "liver"}, model, volume.source.manifest_sha256)
        return SegmentationRun(
            {TOTAL_FAST: Segmentation(TOTAL_FAST, made, Timings())}, Plan((TOTAL_FAST,), ()), {}, Timings()
        )


def right_angled(volume: Volume) -> bool:
    axes = volume.affine_ras[:3, :3]
    return bool(np.abs(axes.T @ axes - np.diag(np.array(volume.spacing_mm) ** 2)).max() < 1e-6)


def volume_of(contents: list[bytes]) -> Volume:
    index, read = indexed(contents)
    return assemble(group(index)[0], read, resample=True)


def test_models_see_it_upright_and_everything_else_the_slices_as_they_were_scanned() -> None:
    scanned, segmenter = volume_of(tilted()), Threshold()
    assert scanned.flags == ("tilt:18.5",)
    image = steps.prepared(scanned, take_tilt_out=True)
    run = steps.segment(image, segmenter)
    assert right_angled(segmenter.given[0]) and not right_angled(scanned)
    assert np.array_equal(image.volume.affine_ras, scanned.affine_ras)
    assert image.volume.array is scanned.array
    assert image.volume.flags == ("tilt:18.5", "deskewed")
    (made,) = run.segmentations.values()
    ball = np.asarray(scanned.array) > BALL_HU
    found = made.label_map.array > 0
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.98
    assert np.array_equal(made.label_map.affine_ras, scanned.affine_ras)
    measured = {one.id: one for one in steps.measure(image.volume, run)}
    assert {one.provenance.image_flags for one in measured.values()} == {"tilt:18.5,deskewed"}
    # Values are those of the pixels as they were scanned: no interpolated one lies among them.
    assert set(np.unique(np.asarray(image.volume.array)[found])) <= {-1000, 76}


@pytest.mark.parametrize(("tilt_deg", "asked"), [(TILT_DEG, False), (0.0, True)], ids=["not asked", "no tilt"])
def test_otherwise_models_get_the_image_as_it_is(tilt_deg: float, asked: bool) -> None:
    scanned, segmenter = volume_of(tilted(tilt_deg=tilt_deg)), Threshold()
    image = steps.prepared(scanned, take_tilt_out=asked)
    steps.segment(image, segmenter)
    assert segmenter.given == [scanned]
    assert image.volume is scanned
    assert "deskewed" not in scanned.flags


def test_numbers_of_an_image_without_anything_unusual_name_no_flag() -> None:
    plain = volume_of(tilted(tilt_deg=0.0))
    assert provenance_of(MetricContext(plain, {}), Quantity("x", 1, "1", ())).image_flags == ""


def test_slices_that_are_uneven_too_are_resampled_upright_and_labels_find_back() -> None:
    contents = tilted(60)
    scanned = volume_of([content for k, content in enumerate(contents) if k < 30 or k % 2 == 0])
    assert scanned.flags == ("tilt:18.5", "variable_spacing:1.00-2.00")
    image, segmenter = steps.prepared(scanned, take_tilt_out=True), Threshold()
    run = steps.segment(image, segmenter)
    assert right_angled(segmenter.given[0])
    assert segmenter.given[0].flags == image.volume.flags == (*scanned.flags, "deskewed")
    ball = np.asarray(scanned.array) > BALL_HU
    found = run.segmentations[TOTAL_FAST].label_map.array > 0
    assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.98


class Tilted(TwoSeries):
    """One tilted series."""

    def __init__(self, database: Database, folder: Path, *, deskew: bool) -> None:
        super().__init__(database, folder)
        self.seen = Threshold()
        self.runner = StudyRunner(database, self.blobs, self.queue, self.seen, self.clock, "test", deskew=deskew)

    def _batch(self) -> list[bytes]:
        return tilted()

    def ask(self, deskew: bool | None, series_uid: str | None = None) -> None:
        with self.database.write() as session:
            choose_series(
                session,
                self.study_uid,
                series_uid,
                deskew=deskew,
                reason="the brain stands askew",
                chosen_by="Dr. Who",
                now=self.clock.now(),
                max_attempts=3,
                actor="api",
            )


def told(document: dict[str, Any]) -> tuple[bool, set[bool], Any]:
    """Whether the image, and every number, says that a tilt was taken out, and who asked for that."""
    in_numbers = {"deskewed" in one["provenance"]["image_flags"] for one in document["measurements"]}
    return "deskewed" in document["volume"]["flags"], in_numbers, document["selection_facts"]["deskew"]


def test_a_site_asks_and_a_person_decides_otherwise_until_the_setting_counts_again(
    database: Database, folder: Path
) -> None:
    site = Tilted(database, folder, deskew=True)
    assert told(site.work()) == (True, {True}, None)
    site.ask(deskew=False)
    done = site.work()
    deskewed, in_numbers, asked = told(done)
    assert (deskewed, in_numbers) == (False, {False})
    assert (asked["deskew"], asked["chosen_by"], asked["reason"]) == (False, "Dr. Who", "the brain stands askew")
    # The series is still the rules' choice.
    assert (done["selection_facts"]["chosen_by"], done["selection_facts"]["override"]) == ("rules", None)
    site.ask(deskew=None)
    assert told(site.work()) == (True, {True}, None)
    assert [right_angled(one) for one in site.seen.given] == [True, False, True]


def test_a_person_asks_for_one_study_and_names_a_series_besides(database: Database, folder: Path) -> None:
    site = Tilted(database, folder, deskew=False)
    first = site.work()
    assert told(first) == (False, {False}, None)
    site.ask(deskew=True, series_uid=first["volume"]["series_uid"])
    done = site.work()
    assert told(done)[:2] == (True, {True})
    assert (done["selection_facts"]["chosen_by"], done["selection_facts"]["deskew"]["deskew"]) == ("person", True)
