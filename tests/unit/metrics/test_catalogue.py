from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.metrics import liver_volume
from heimdallr_ray.metrics.axes import to_ras_mm
from heimdallr_ray.metrics.catalogue import CATALOGUE, Metric, asked_for, measure_all
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.volume import LabelMap, Volume, VolumeSource
from tests.unit.metrics.builders import Scene, by_id, head, model, orientations, torso

IDS = {
    "intracranial_hemorrhage_volume",
    "liver_volume",
    "liver_attenuation",
    "spleen_volume",
    "spleen_attenuation",
    "kidney_right_volume",
    "kidney_right_attenuation",
    "kidney_left_volume",
    "kidney_left_attenuation",
    "l3_muscle_area",
    "l3_muscle_attenuation",
    "body_regions",
}


def test_every_quantity_is_always_answered_and_nothing_unmeasured_is_zero():
    for scene in (torso(), head(), replace(torso(), maps={}), replace(head(), modality="MR")):
        found = measure_all(scene.context())
        assert [one.id for one in found] == [quantity.id for metric in CATALOGUE for quantity in metric.quantities]
        assert {one.id for one in found} == IDS
        for one in found:
            assert (one.value is None) == (one.status not in (Status.OK, Status.IMPLAUSIBLE))
            assert one.provenance.definition_id == one.id


@pytest.mark.parametrize("scene", [torso((3.0, 2.5, 4.0)), head((15.0, 9.0), (2.0, 2.0, 3.0))], ids=["torso", "head"])
def test_all_48_orientations_give_the_same_answers(scene: Scene):
    expected = by_id(measure_all(scene.context()))
    for order, flips in orientations():
        turned = scene.reoriented(order, flips)
        for one in measure_all(turned.context()):
            same = expected[one.id]
            assert (one.status, one.reasons, one.n_voxels) == (same.status, same.reasons, same.n_voxels), (order, flips)
            assert one.value == (None if same.value is None else pytest.approx(same.value, rel=1e-9)), (order, flips)
            assert _in_mm(turned.affine, one) == pytest.approx(_in_mm(scene.affine, same)), (order, flips, one.id)


def _in_mm(affine: np.ndarray, measurement: Measurement) -> float:
    """Height of the evidence's slice above the patient origin."""
    if "slice_index" not in measurement.evidence:
        return 0.0
    index = [0.0, 0.0, 0.0]
    index[measurement.evidence["slice_axis"]] = float(measurement.evidence["slice_index"])
    return to_ras_mm(affine, (index[0], index[1], index[2]))[2]


def test_an_oblique_rotation_changes_no_number():
    scene = torso()
    angle = np.radians(12.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    expected = measure_all(scene.context())
    for one, same in zip(measure_all(replace(scene, affine=turn @ scene.affine).context()), expected, strict=True):
        assert (one.status, one.n_voxels) == (same.status, same.n_voxels)
        assert one.value == (None if same.value is None else pytest.approx(same.value, rel=1e-9))


def test_a_defect_in_one_measurement_leaves_the_others(caplog: pytest.LogCaptureFixture):
    def broken(context: MetricContext) -> tuple[Measurement, ...]:
        raise ZeroDivisionError

    caplog.set_level(logging.CRITICAL)
    catalogue = (Metric(broken, CATALOGUE[0].quantities), Metric(liver_volume.measure, liver_volume.QUANTITIES))
    failed, liver = measure_all(torso().context(), catalogue)
    assert (failed.value, failed.status, failed.reasons) == (None, Status.ERROR, ("measurement_failed",))
    assert failed.id == "intracranial_hemorrhage_volume"
    assert liver.status is Status.OK


def test_a_float_image_with_nan_is_an_error_with_its_code_not_a_number(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL)
    scene = torso()
    image = scene.hu.astype(np.float32)
    image[scene.maps["total"] == 5] = np.nan
    volume = Volume(image, scene.affine, scene.volume.source)
    found = by_id(measure_all(MetricContext(volume, scene.label_maps)))
    assert (found["liver_volume"].status, found["liver_volume"].reasons) == (
        Status.ERROR,
        ("not_a_volume", "not_finite"),
    )


def test_a_float_image_measures_as_the_integer_one():
    scene = torso()
    volume = Volume(scene.hu.astype(np.float32), scene.affine, scene.volume.source)
    floats = measure_all(MetricContext(volume, scene.label_maps))
    for one, same in zip(floats, measure_all(scene.context()), strict=True):
        assert (one.status, one.reasons, one.n_voxels) == (same.status, same.reasons, same.n_voxels)
        assert one.value == (None if same.value is None else pytest.approx(same.value, rel=1e-9))


GOLDEN = {
    # name: n, mL, mean, SD, percentiles 5 25 50 75 95, min, max, centroid, borders touched
    "liver": (41692, 1125.684, 44.4596, 16.2128, (18, 37, 46, 54, 67), -275, 121, (81.509, 57.992, 99.344), 1),
    "spleen": (9668, 261.036, 32.7701, 16.5450, (4, 25, 35, 43, 56), -80, 100, (21.694, 37.120, 100.165), 1),
    "kidney_right": (7134, 192.618, 10.7293, 25.8301, (-24, 0, 12, 22, 37), -104, 704, (82.522, 40.258, 83.785), 0),
    "kidney_left": (5090, 137.430, 18.3900, 56.0177, (-21, 5, 17, 27, 43), -119, 1288, (33.286, 38.101, 87.691), 0),
    "pancreas": (695, 18.765, -6.3540, 27.4971, (-51, -25.5, -6, 13, 38.3), -97, 67, (52.449, 59.255, 91.578), 0),
    "aorta": (1839, 49.653, 42.0837, 33.8287, (7, 30, 41, 51, 67), -61, 713, (53.676, 49.979, 89.715), 1),
    "vertebrae_L3": (
        2446,
        66.042,
        220.0732,
        148.6456,
        (74.25, 119.25, 184, 274, 510.75),
        -85,
        1120,
        (58.099, 39.945, 73.522),
        0,
    ),
}


@pytest.mark.data
def test_real_ct_gives_the_golden_table_to_the_digit():
    folder = Path(os.environ["HEIMDALLR_TEST_DATA"]) / "totalsegmentator"
    image = cast(Any, nib.load(folder / "example_ct.nii.gz"))
    labels = cast(Any, nib.load(folder / "example_seg_fast_force_split.nii.gz"))
    names = {
        5: "liver",
        1: "spleen",
        2: "kidney_right",
        3: "kidney_left",
        7: "pancreas",
        52: "aorta",
        29: "vertebrae_L3",
    }
    volume = Volume(np.asarray(image.dataobj).astype(np.int16), image.affine, VolumeSource("CT"))
    found = np.asarray(labels.dataobj).astype(np.uint8)
    named = np.where(np.isin(found, list(names)), found, np.uint8(0))
    label_map = LabelMap(named, labels.affine, names, model("total"))
    context = MetricContext(volume, {"total": label_map})
    statistics = context.statistics("total")
    assert set(statistics) == set(GOLDEN)
    for name, (n, ml, mean, sd, percentiles, low, high, centroid, n_borders) in GOLDEN.items():
        found = statistics[name]
        assert found.n_voxels == n
        assert (round(found.volume_ml, 3), round(found.mean, 4), round(found.sd, 4)) == (ml, mean, sd), name
        assert [found.percentile(p) for p in (5, 25, 50, 75, 95)] == pytest.approx(percentiles)
        assert (found.minimum, found.maximum) == (low, high)
        assert found.centroid_ijk == pytest.approx(centroid, abs=6e-4)
        assert context.borders_touched(found) == ("border_superior",) * n_borders
    measured = by_id(measure_all(context))
    for organ in ("liver", "spleen"):
        volume_of = measured[f"{organ}_volume"]
        assert (volume_of.value, volume_of.status) == (None, Status.INCOMPLETE_FOV)
        assert volume_of.reasons == ("border_superior",)
    assert measured["liver_attenuation"].value == pytest.approx(46.58, abs=0.01)
    assert measured["spleen_attenuation"].value == pytest.approx(35.24, abs=0.01)
    assert measured["kidney_right_volume"].value == pytest.approx(192.618)


def test_what_is_asked_for_by_any_of_its_quantities() -> None:
    assert asked_for(()) == CATALOGUE
    first, second = asked_for(["kidney_left_volume", "liver_volume"])
    assert first.name == "liver_volume"
    assert "kidney_left_volume" in [one.id for one in second.quantities]
    with pytest.raises(BadSetting):
        asked_for(["liver_volum"])


def test_each_measurement_needs_the_label_maps_of_its_quantities() -> None:
    for metric in CATALOGUE:
        assert {task for quantity in metric.quantities for task in quantity.tasks} == set(metric.needs[0])
