from __future__ import annotations

import pytest

from heimdallr_ray.metrics.body_regions import covered_regions, measure
from heimdallr_ray.metrics.result import Status
from tests.unit.metrics.builders import Scene, head, torso


def test_a_torso_and_a_head_are_told_apart():
    (abdomen,) = measure(torso().context())
    (skull,) = measure(head().context())
    assert (abdomen.value, abdomen.evidence["regions"]) == (1.0, "abdomen")
    assert skull.evidence["regions"] == "head"


def test_a_crumb_of_brain_is_not_a_head():
    scene = torso().sphere("total", "brain", (120.0, 150.0, 20.0), 15.0)
    assert measure(scene.context())[0].evidence["regions"] == "abdomen"


def test_an_empty_label_map_covers_nothing_and_a_missing_one_is_unknown():
    (empty,) = measure(Scene.empty((20.0, 20.0, 20.0)).with_task("total").context())
    assert (empty.value, empty.status) == (0.0, Status.OK)
    (missing,) = measure(Scene.empty((20.0, 20.0, 20.0)).context())
    assert (missing.value, missing.status) == (None, Status.NOT_APPLICABLE)


@pytest.mark.parametrize(
    ("volumes", "regions"),
    [
        ({"lung_upper_lobe_left": 300.0, "lung_lower_lobe_right": 300.0, "liver": 300.0}, ("thorax", "abdomen")),
        ({"lung_upper_lobe_left": 300.0}, ()),
        ({"hip_left": 60.0, "hip_right": 60.0, "femur_left": 20.0}, ("pelvis",)),
    ],
)
def test_structures_of_a_region_add_up(volumes: dict[str, float], regions: tuple[str, ...]):
    assert covered_regions(volumes) == regions
