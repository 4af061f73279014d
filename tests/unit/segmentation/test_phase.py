from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import GeometryMismatch, WeightsMissing, WeightsTampered
from heimdallr_ray.segmentation import phase
from heimdallr_ray.segmentation.phase import (
    ContrastPhase,
    PhaseFeatures,
    PhaseModel,
    PhaseReading,
    features_of,
    phase_at,
)
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource

MODEL = ModelRef("total", "totalsegmentator/297", "0" * 64, synthetic=True)
BIG: dict[str, float] = {name: 100.0 for name in phase.TELLING}  # noqa: C420 - fromkeys would keep the literal types


def volume(hu: float = 30.0) -> Volume:
    array = np.full((20, 20, 20), hu, np.float32)
    return Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), VolumeSource("CT", manifest_sha256="m", synthetic=True))


@pytest.mark.parametrize(
    ("seconds", "expected", "probability"),
    [
        (-1.0, ContrastPhase.NATIVE, 1.0),
        (9.9, ContrastPhase.NATIVE, 0.7),
        (10.0, ContrastPhase.ARTERIAL_EARLY, 0.7),
        (59.9, ContrastPhase.ARTERIAL_LATE, 0.7),
        (60.0, ContrastPhase.PORTAL_VENOUS, 1.0),
        (120.0, ContrastPhase.PORTAL_VENOUS, 0.3),
    ],
)
def test_the_phase_at_a_time(seconds: float, expected: ContrastPhase, probability: float) -> None:
    assert phase_at(seconds) == (expected, probability)


@pytest.mark.parametrize(
    ("folds", "probability", "decided"),
    [
        ((70.0, 72.0), 1.0, ContrastPhase.PORTAL_VENOUS),
        ((55.0, 75.0), 1.0, None),
        ((110.0, 112.0), 0.3, None),
    ],
    ids=["agreed", "folds of two families", "not trusted upstream"],
)
def test_a_reading_decides_only_what_is_trusted_and_agreed(
    folds: tuple[float, ...], probability: float, decided: ContrastPhase | None
) -> None:
    assert PhaseReading(65.0, folds, ContrastPhase.PORTAL_VENOUS, probability).decided is decided


def test_early_and_late_arterial_folds_agree() -> None:
    reading = PhaseReading(31.0, (28.0, 34.0), ContrastPhase.ARTERIAL_LATE, 1.0)
    assert reading.decided is ContrastPhase.ARTERIAL_LATE
    assert reading.decided.family == "arterial"


def test_medians_are_of_each_organs_own_voxels() -> None:
    image = volume()
    labels = np.zeros(image.array.shape, np.uint8)
    labels[:5], labels[5:8] = 5, 52
    image.array[:5] = 110.0
    image.array[0, 0, 0] = 3000.0
    image.array[5:8] = 160.0
    found = features_of(image, LabelMap(labels, image.affine_ras, {5: "liver", 52: "aorta"}, MODEL, "m"))
    assert found.median_hu == {"liver": 110.0, "aorta": 160.0}
    assert found.volume_ml["liver"] == pytest.approx(5 * 20 * 20 * 0.008)
    assert found.vector[0] == 110.0 and found.vector[5] == 160.0
    assert len(found.vector) == 20 and sum(found.vector) == 270.0


def test_labels_of_another_image_are_refused() -> None:
    image = volume()
    labels = LabelMap(np.zeros(image.array.shape, np.uint8), image.affine_ras, {5: "liver"}, MODEL, "another")
    with pytest.raises(GeometryMismatch):
        PhaseModel().read(image, labels)


def test_without_enough_that_tells_a_phase_nothing_is_read() -> None:
    image = volume()
    empty = LabelMap(np.zeros(image.array.shape, np.uint8), image.affine_ras, {5: "liver"}, MODEL, "m")
    assert PhaseModel().read(image, empty) is None
    assert not PhaseFeatures({}, {"liver": 900.0}).telling
    assert PhaseFeatures({}, BIG).telling
    assert not PhaseFeatures({}, {**BIG, "brain": 0.2}).telling


def test_a_changed_file_is_refused_before_it_is_interpreted(tmp_path: Path) -> None:
    changed = tmp_path / "model.pkl"
    # A pickle that would make a file.
    changed.write_bytes(b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V" + str(tmp_path / "ran").encode() + b"\ntRtR.")
    with pytest.raises(WeightsTampered):
        PhaseModel(changed).predict(PhaseFeatures({}, BIG))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(WeightsMissing):
        PhaseModel(tmp_path / "none.pkl").predict(PhaseFeatures({}, BIG))
