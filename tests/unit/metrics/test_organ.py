from __future__ import annotations

from dataclasses import replace
from math import pi

import numpy as np
import pytest

from heimdallr_ray.metrics import (
    kidney_attenuation,
    kidney_volume,
    liver_attenuation,
    liver_volume,
    spleen_attenuation,
    spleen_volume,
)
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, Reading, measured
from heimdallr_ray.metrics.result import Status
from tests.unit.metrics.builders import LABELS, Scene, by_id, model, torso

RADIUS_OF_40_ML = (40_000.0 * 3.0 / 4.0 / pi) ** (1.0 / 3.0)


def _organs(context: MetricContext):
    return by_id(
        tuple(
            one
            for module in (
                liver_volume,
                liver_attenuation,
                spleen_volume,
                spleen_attenuation,
                kidney_volume,
                kidney_attenuation,
            )
            for one in module.measure(context)
        )
    )


def test_boxes_and_spheres_of_known_size_are_measured_with_their_provenance():
    found = _organs(torso().context())
    # 80 x 80 x 90 mm and 40 x 50 x 70 mm, on whole voxels; 24 mm spheres.
    assert found["liver_volume"].value == pytest.approx(576.0, rel=1e-12)
    assert found["spleen_volume"].value == pytest.approx(140.0, rel=1e-12)
    assert found["kidney_right_volume"].value == pytest.approx(57.9, rel=0.02)
    assert found["kidney_left_volume"].value == pytest.approx(57.9, rel=0.02)
    expected_hu = {"liver": 60, "spleen": 50, "kidney_right": 30, "kidney_left": 35}
    for organ, hu in expected_hu.items():
        assert found[f"{organ}_attenuation"].value == hu
        assert found[f"{organ}_attenuation"].unit == "[hnsf'U]"
    provenance = found["liver_volume"].provenance
    assert (provenance.definition_id, provenance.definition_version) == ("liver_volume", 1)
    assert (provenance.task, provenance.model_id, provenance.weights_sha256) == (
        "total",
        "totalsegmentator/total",
        "sha-total",
    )
    assert (provenance.study_uid, provenance.series_uid, provenance.source_manifest_sha256) == ("1.2.3", "1.2.3.4", "m")
    assert provenance.synthetic is False


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (1.5, 1.5, 1.5)])
def test_a_sphere_of_40_ml_measures_40_ml_within_2_percent(spacing_mm: tuple[float, float, float]):
    scene = Scene.empty((60.0, 60.0, 60.0), spacing_mm).sphere(
        "total", "kidney_left", (30.1, 29.8, 30.3), RADIUS_OF_40_ML, 30
    )
    assert _organs(scene.context())["kidney_left_volume"].value == pytest.approx(40.0, rel=0.02)


def test_attenuation_is_read_inside_the_organ_not_at_its_partial_volume_surface():
    scene = torso().box("total", "liver", (140.0, 68.0, 147.5), (224.0, 152.0, 242.5), 0)
    scene = scene.box("total", "liver", (142.0, 70.0, 150.0), (222.0, 150.0, 240.0), 60)
    liver = _organs(scene.context())["liver_attenuation"]
    assert liver.value == 60.0
    assert liver.evidence["whole_label_mean_hu"] < 56.0
    assert liver.evidence["erosion_mm"] == 3.0
    assert [liver.evidence[f"p{p:02d}_hu"] for p in (5, 25, 50, 75, 95)] == [60.0] * 5


def test_the_evidence_names_the_slice_with_the_largest_area():
    scene = torso().box("total", "spleen", (20.0, 60.0, 200.0), (70.0, 110.0, 202.0))
    evidence = _organs(scene.context())["spleen_volume"].evidence
    assert (evidence["slice_axis"], evidence["slice_index"]) == (2, 80)
    assert evidence["slice_area_cm2"] == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("axis", "low", "high", "side"),
    [
        (0, 80, 0, "left"),
        (0, 0, 30, "right"),
        (1, 45, 0, "posterior"),
        (1, 0, 45, "anterior"),
        (2, 70, 0, "inferior"),
        (2, 0, 20, "superior"),
    ],
)
def test_an_organ_cut_by_a_border_has_no_volume_but_the_side_and_its_attenuation(
    axis: int, low: int, high: int, side: str
):
    found = _organs(torso().cropped(axis, low=low, high=high).context())
    volume, attenuation = found["liver_volume"], found["liver_attenuation"]
    assert (volume.value, volume.status, volume.reasons) == (None, Status.INCOMPLETE_FOV, (f"border_{side}",))
    assert volume.evidence["segmented_ml"] > 100.0
    assert (attenuation.value, attenuation.status) == (60.0, Status.OK)
    assert attenuation.reasons == (f"border_{side}",)


def test_a_missing_organ_is_absent_not_zero():
    scene = torso()
    labels = scene.maps["total"].copy()
    labels[labels == 1] = 0
    found = _organs(replace(scene, maps={**scene.maps, "total": labels}).context())
    for name in ("spleen_volume", "spleen_attenuation"):
        assert (found[name].value, found[name].status, found[name].reasons) == (
            None,
            Status.LABEL_ABSENT,
            ("label_absent",),
        )
    assert found["liver_volume"].status is Status.OK


def test_an_mr_has_no_hounsfield_units_and_no_modality_is_not_ct():
    for modality in ("MR", ""):
        for one in _organs(replace(torso(), modality=modality).context()).values():
            assert (one.value, one.status, one.reasons) == (None, Status.NOT_APPLICABLE, ("not_ct",))


def test_a_label_map_of_another_shape_gates_and_says_so():
    scene = torso()
    context = MetricContext(scene.volume, scene.cropped(2, low=1).label_maps)
    for one in _organs(context).values():
        assert (one.value, one.status, one.reasons) == (None, Status.GATED, ("geometry_mismatch",))


def test_a_crumb_of_a_label_is_not_an_organ():
    scene = Scene.empty((60.0, 60.0, 60.0)).sphere("total", "liver", (30.0, 30.0, 30.0), 15.0, 50)
    found = _organs(scene.context())
    assert found["liver_volume"].status is Status.INSUFFICIENT_ROI
    assert found["liver_volume"].reasons == ("below_minimum_volume",)
    assert found["liver_attenuation"].reasons == ("insufficient_roi",)


def test_an_organ_in_pieces_has_no_volume_and_the_attenuation_of_its_main_piece():
    scene = torso().box("total", "liver", (20.0, 80.0, 20.0), (60.0, 120.0, 100.0), -20)
    found = _organs(scene.context())
    assert found["liver_volume"].reasons == ("fragmented",)
    assert found["liver_attenuation"].value == 60.0
    assert "fragmented" in found["liver_attenuation"].reasons


def test_thick_or_missing_slices_cannot_carry_a_volume():
    thick = _organs(torso((2.0, 2.0, 6.5)).context())["liver_volume"]
    gap = _organs(replace(torso(), flags=("missing_slices:2",)).context())["liver_volume"]
    assert (thick.status, thick.reasons) == (Status.GATED, ("spacing_too_coarse",))
    assert (gap.status, gap.reasons) == (Status.GATED, ("missing_slices",))


def test_a_mirrored_affine_takes_the_sides_away():
    scene = torso()
    mirrored = scene.affine.copy()
    mirrored[0] *= -1.0
    found = _organs(replace(scene, affine=mirrored).context())
    for name in ("kidney_right_volume", "kidney_left_volume", "kidney_right_attenuation", "kidney_left_attenuation"):
        assert (found[name].value, found[name].reasons) == (None, ("orientation_suspect",))
    assert found["liver_volume"].value == pytest.approx(576.0)
    assert "orientation_suspect" in found["liver_volume"].reasons


def test_metal_in_the_organ_is_noted():
    scene = torso().box("total", "liver", (160.0, 100.0, 180.0), (170.0, 110.0, 190.0), 3500)
    assert "metal" in _organs(scene.context())["liver_attenuation"].reasons


def test_an_impossible_volume_is_shown_and_called_implausible():
    scene = Scene.empty((240.0, 240.0, 240.0), (4.0, 4.0, 4.0)).box(
        "total", "liver", (8.0, 8.0, 8.0), (232.0, 232.0, 232.0), 50
    )
    volume = _organs(scene.context())["liver_volume"]
    assert volume.status is Status.IMPLAUSIBLE
    assert volume.value == pytest.approx(224.0**3 / 1000.0)


def seen_at(spacing_mm: float | None) -> MetricContext:
    scene = torso()
    label_map = scene.label_maps["total"]
    model = replace(label_map.model, spacing_mm=spacing_mm)
    return MetricContext(scene.volume, {"total": replace(label_map, model=model)})


@pytest.mark.parametrize("spacing_mm", [None, 1.5, 3.0])
def test_a_model_that_sees_finely_enough_serves(spacing_mm: float | None):
    volume = _organs(seen_at(spacing_mm))["liver_volume"]
    assert volume.value == pytest.approx(576.0)
    assert volume.provenance.task == "total"


def test_a_model_that_sees_too_coarsely_gives_no_number_and_says_why():
    for measurement in _organs(seen_at(6.0)).values():
        assert (measurement.value, measurement.status) == (None, Status.GATED)
        assert measurement.reasons == ("resolution_too_low",)
        assert measurement.evidence == {"label_map": "total", "model_spacing_mm": 6.0, "coarsest_mm": 3.0}
        assert measurement.provenance.model_id == "totalsegmentator/total"


def test_a_quantity_that_needs_a_finer_model_refuses_what_stands_in_for_it():
    fine = Quantity("fine", 1, "mL", ("total",), coarsest_mm=1.5)
    assert measured(seen_at(1.5), fine, lambda: Reading(1.0, 1)).value == 1.0
    stood_in = measured(seen_at(3.0), fine, lambda: Reading(1.0, 1))
    assert stood_in.reasons == ("resolution_too_low",)
    assert stood_in.evidence["coarsest_mm"] == 1.5


def test_a_task_that_did_not_run_carries_the_planners_code():
    scene = replace(torso(), maps={})
    assert _organs(scene.context(total="weights_missing"))["liver_volume"].reasons == ("weights_missing",)
    assert _organs(scene.context())["liver_volume"].reasons == ("task_not_run",)


def test_synthetic_weights_mark_every_number():
    scene = torso()
    label_map = replace(scene.label_maps["total"], model=model("total", synthetic=True))
    found = _organs(MetricContext(scene.volume, {"total": label_map}))
    assert all(one.provenance.synthetic for one in found.values())
    assert LABELS["total"] == label_map.labels


def test_measuring_changes_neither_image_nor_labels():
    scene = torso()
    before = scene.hu.copy(), scene.maps["total"].copy()
    _organs(scene.context())
    assert np.array_equal(scene.hu, before[0])
    assert np.array_equal(scene.maps["total"], before[1])
