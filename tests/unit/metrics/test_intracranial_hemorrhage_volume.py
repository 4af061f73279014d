from __future__ import annotations

from dataclasses import replace
from math import pi

import numpy as np
import pytest

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.intracranial_hemorrhage_volume import measure
from heimdallr_ray.metrics.result import Measurement, Status
from tests.unit.metrics.builders import head, torso


def _bleed(context: MetricContext) -> Measurement:
    return measure(context)[0]


def test_components_are_measured_one_by_one_with_their_side():
    found = _bleed(head((19.0, 8.0), (1.0, 1.0, 1.5)).context())
    large, small = 4 / 3 * pi * 1.9**3, 4 / 3 * pi * 0.8**3
    assert found.status is Status.OK
    assert found.value == pytest.approx(large + small, rel=0.02)
    evidence = found.evidence
    assert evidence["n_components"] == 2
    assert evidence["largest_component_ml"] == evidence["component_1_ml"] == pytest.approx(large, rel=0.02)
    assert evidence["component_2_ml"] == pytest.approx(small, rel=0.03)
    assert (evidence["component_1_side"], evidence["component_2_side"]) == ("right", "left")
    assert evidence["component_1_mean_hu"] == 68.0
    assert found.reasons == ()


def test_an_empty_mask_with_the_brain_in_the_field_is_a_measured_zero_that_excludes_nothing():
    found = _bleed(head().context())
    assert (found.value, found.status, found.n_voxels) == (0.0, Status.OK, 0)
    assert "negative_not_excluded" in found.reasons
    assert found.evidence["largest_component_ml"] == 0.0


def test_without_a_brain_in_the_field_it_does_not_apply():
    found = _bleed(torso().context())
    assert (found.value, found.status, found.reasons) == (None, Status.NOT_APPLICABLE, ("brain_not_in_field",))


def test_a_task_left_out_by_the_planner_carries_its_code():
    scene = replace(head(), maps={"total": head().maps["total"]})
    found = _bleed(scene.context(cerebral_bleed="anatomy_absent"))
    assert (found.status, found.reasons) == (Status.NOT_APPLICABLE, ("anatomy_absent",))


def test_what_the_planner_saw_goes_along_with_the_measurement():
    context = replace(head(), maps={"total": head().maps["total"]}).context(cerebral_bleed="anatomy_absent")
    found = _bleed(replace(context, not_run_because={"cerebral_bleed": "brain 2 mL, needs 100 mL"}))
    assert found.evidence == {"not_run": "brain 2 mL, needs 100 mL"}


@pytest.mark.parametrize("code", ["weights_missing", "licence", None])
def test_a_missing_model_matters_only_where_there_is_a_brain(code: str | None):
    not_run = {} if code is None else {"cerebral_bleed": code}
    with_brain = replace(head(), maps={"total": head().maps["total"]}).context(**not_run)
    assert _bleed(with_brain).reasons == (code or "task_not_run",)
    body = torso()
    without = replace(body, maps={"total": body.maps["total"]}).context(**not_run)
    assert _bleed(without).reasons == ("brain_not_in_field",)


def test_an_unverified_brain_keeps_found_blood_but_never_says_zero():
    only_bleed = replace(head((15.0,)), maps={"cerebral_bleed": head((15.0,)).maps["cerebral_bleed"]})
    found = _bleed(only_bleed.context())
    assert found.value == pytest.approx(14.1, rel=0.03)
    assert found.reasons == ("brain_not_verified",)
    empty = replace(only_bleed, maps={"cerebral_bleed": np.zeros_like(only_bleed.maps["cerebral_bleed"])})
    assert (_bleed(empty.context()).value, _bleed(empty.context()).status) == (None, Status.GATED)


def test_blood_cut_by_the_scan_has_no_volume_and_stays_in_the_evidence():
    found = _bleed(head((15.0,)).cropped(2, low=30).context())
    assert (found.value, found.status, found.reasons) == (None, Status.INCOMPLETE_FOV, ("border_inferior",))
    assert found.evidence["largest_component_ml"] > 5.0


def test_a_brain_cut_below_the_bleed_is_noted():
    found = _bleed(head((15.0,)).cropped(2, low=10).context())
    assert found.status is Status.OK
    assert found.reasons == ("brain_border_inferior",)


@pytest.mark.parametrize(("axis", "side"), [(0, "low"), (1, "high"), (2, "high")])
def test_no_blood_in_a_brain_that_the_scan_cuts_is_not_zero(axis: int, side: str):
    whole = head(())
    middle = whole.hu.shape[axis] // 2
    cut = whole.cropped(axis, **{side: middle})
    found = _bleed(cut.context())
    assert (found.value, found.status) == (None, Status.INCOMPLETE_FOV)
    assert any(reason.startswith("brain_border_") for reason in found.reasons)


def test_no_blood_in_a_brain_cut_below_only_is_zero_and_noted():
    found = _bleed(head(()).cropped(2, low=10).context())
    assert (found.value, found.status) == (0.0, Status.OK)
    assert "brain_border_inferior" in found.reasons


@pytest.mark.parametrize(
    ("flag", "reason"), [("missing_slices:3", "missing_slices"), ("variable_spacing:1.08-7.00", "variable_spacing")]
)
def test_no_blood_between_slices_that_leave_gaps_is_not_zero(flag: str, reason: str):
    found = _bleed(replace(head(()), flags=(flag,)).context())
    assert (found.value, found.status, found.reasons) == (None, Status.GATED, (reason,))


def test_no_blood_on_slices_too_far_apart_is_not_zero():
    found = _bleed(head((), (1.0, 1.0, 6.0)).context())
    assert (found.value, found.status, found.reasons) == (None, Status.GATED, ("spacing_too_coarse",))


def test_a_component_that_is_not_as_dense_as_blood_is_noted_not_removed():
    scene = head((15.0,))
    image = scene.hu.copy()
    image[scene.maps["cerebral_bleed"] == 1] = 20
    found = _bleed(replace(scene, hu=image).context())
    assert found.value == pytest.approx(14.1, rel=0.03)
    assert found.reasons == ("outside_blood_range",)


def test_a_mirrored_affine_swaps_the_side_of_the_component():
    scene = head((15.0,))
    affine = scene.affine.copy()
    affine[0] *= -1.0
    assert _bleed(scene.context()).evidence["component_1_side"] == "right"
    assert _bleed(replace(scene, affine=affine).context()).evidence["component_1_side"] == "left"
