from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from heimdallr_ray.metrics import l3_muscle_area, l3_muscle_attenuation
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.result import Measurement, Status
from tests.unit.metrics.builders import Scene, torso

# Body of L3: 106 to 134 mm; slices at 107.5, 110, ..., 132.5 mm, so its centre is the slice at 120 mm.
L3_SLICE = 48


def _area(context: MetricContext) -> Measurement:
    return l3_muscle_area.measure(context)[0]


def _without(scene: Scene, *values: int) -> Scene:
    labels = scene.maps["total"].copy()
    labels[np.isin(labels, values)] = 0
    return replace(scene, maps={**scene.maps, "total": labels})


def test_area_counts_muscle_inside_the_window_at_the_centre_of_the_vertebral_body():
    scene = torso()
    muscle = scene.maps["tissue_types"][:, :, L3_SLICE] == 3
    image = scene.hu[:, :, L3_SLICE]
    lean = muscle & (image >= -29) & (image <= 150)
    area, attenuation = _area(scene.context()), l3_muscle_attenuation.measure(scene.context())[0]
    assert (area.status, area.reasons) == (Status.OK, ())
    assert (area.evidence["slice_axis"], area.evidence["slice_index"]) == (2, L3_SLICE)
    assert area.value == pytest.approx(np.count_nonzero(lean) * 0.04)
    assert area.evidence["segmented_cm2"] == pytest.approx(np.count_nonzero(muscle) * 0.04)
    assert area.value < area.evidence["segmented_cm2"] - 1.0, "the phantom has fat inside the muscle label"
    assert attenuation.value == pytest.approx(image[lean].mean())
    assert attenuation.value > image[muscle].mean() + 1.0
    assert attenuation.n_voxels == area.n_voxels == np.count_nonzero(lean)
    assert area.provenance.task == "tissue_types+total"
    assert area.provenance.model_id == "totalsegmentator/tissue_types+totalsegmentator/total"


def test_the_slice_is_not_the_middle_of_all_l3_voxels():
    scene = torso()
    planes = np.flatnonzero((scene.maps["total"] == 29).any(axis=(0, 1)))
    assert abs(int(planes.mean()) - L3_SLICE) >= 2, "the phantom must tell the two apart"
    assert _area(scene.context()).evidence["slice_index"] == L3_SLICE


def test_without_licence_for_tissue_types_there_is_no_area():
    scene = replace(torso(), maps={"total": torso().maps["total"]})
    found = _area(scene.context(tissue_types="licence"))
    assert (found.value, found.status, found.reasons) == (None, Status.NOT_APPLICABLE, ("licence",))


def test_without_l3_there_is_no_level():
    assert _area(_without(torso(), 29).context()).status is Status.LABEL_ABSENT


def test_without_neighbours_the_level_is_measured_and_called_unverified():
    found = _area(_without(torso(), 28, 30).context())
    assert (found.status, found.reasons) == (Status.OK, ("level_unverified",))


def test_vertebrae_in_the_wrong_order_make_the_level_uncertain():
    scene = torso()
    labels = scene.maps["total"].copy()
    labels[scene.maps["total"] == 30] = 28
    labels[scene.maps["total"] == 28] = 30
    found = _area(replace(scene, maps={**scene.maps, "total": labels}).context())
    assert (found.value, found.status, found.reasons) == (None, Status.LEVEL_UNCERTAIN, ("vertebrae_out_of_order",))


def test_a_skipped_vertebra_makes_the_level_uncertain():
    scene = torso()
    labels = scene.maps["total"].copy()
    labels[labels == 30] = 0
    labels[labels == 31] = 30
    found = _area(replace(scene, maps={**scene.maps, "total": labels}).context())
    assert found.reasons == ("vertebrae_unevenly_spaced",)


def test_l3_cut_by_the_scan_has_no_slice():
    found = _area(torso().cropped(2, low=44).context())
    assert (found.status, found.reasons) == (Status.INCOMPLETE_FOV, ("border_inferior",))


def test_muscle_cut_in_the_slice_names_the_side():
    found = _area(torso().cropped(0, low=15).context())
    assert (found.value, found.status, found.reasons) == (None, Status.INCOMPLETE_FOV, ("border_left",))


def test_a_tiny_rest_of_muscle_is_not_an_area():
    scene = torso()
    tissue = np.zeros_like(scene.maps["tissue_types"])
    tissue[50:55, 50:55, L3_SLICE] = 3
    found = _area(replace(scene, maps={**scene.maps, "tissue_types": tissue}).context())
    assert found.status in (Status.INSUFFICIENT_ROI, Status.LABEL_ABSENT)
    assert found.value is None


def test_slices_far_from_axial_are_refused():
    scene = torso()
    angle = np.radians(40.0)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = _area(replace(scene, affine=turn @ scene.affine).context())
    assert (found.value, found.reasons) == (None, ("oblique_slices",))
