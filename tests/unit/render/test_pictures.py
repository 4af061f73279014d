from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image

from heimdallr_ray.metrics.catalogue import measure_all
from heimdallr_ray.render.pictures import Picture, key_images
from tests.unit.metrics.builders import Scene, head, model, torso

TORSO = torso((3.0, 2.5, 4.0))
HEAD = head((15.0,), (2.0, 2.0, 3.0))


def _pictures(scene: Scene, *, synthetic: bool = False) -> dict[str, Picture]:
    made = key_images(scene.volume, scene.label_maps, measure_all(scene.context()), synthetic=synthetic)
    return {picture.name: picture for picture in made}


@cache
def _torso_pictures() -> dict[str, Picture]:
    return _pictures(TORSO)


def _pixels(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)


def test_a_torso_has_an_overview_and_a_pair_per_measured_structure():
    found = _torso_pictures()
    subjects = ("overview", "liver", "spleen", "kidney_right", "kidney_left", "l3_muscle")
    assert set(found) == {f"{subject}_{kind}.png" for subject in subjects for kind in ("key_image", "overlay")}
    assert {picture.kind for picture in found.values()} == {"key_image", "overlay"}
    for picture in found.values():
        json.dumps(picture.meta, allow_nan=False)
        assert _pixels(picture).shape == (picture.meta["height"], picture.meta["width"], 3)


def test_the_slice_is_the_one_that_was_measured():
    measured = {one.id: one for one in measure_all(HEAD.context())}
    found = _pictures(HEAD)["hemorrhage_overlay.png"]
    assert found.meta["slice_index"] == measured["intracranial_hemorrhage_volume"].evidence["slice_index"]
    assert found.meta["structures"] == {"intracerebral_hemorrhage": "#ff4848"}


def test_the_key_image_is_grey_and_the_overlay_coloured_only_where_the_organ_is():
    found = _torso_pictures()
    grey, overlay = _pixels(found["liver_key_image.png"]), _pixels(found["liver_overlay.png"])
    changed = np.argwhere((grey != overlay).any(axis=2))
    height, width, _ = grey.shape
    # The liver box: x 142 to 222 of 240 mm, shown from the left; y 70 to 150 of 200 mm, shown from the top.
    low, high = changed.min(axis=0), changed.max(axis=0)
    assert low[1] == pytest.approx((240 - 222) / 240 * width, abs=8)
    assert high[1] == pytest.approx((240 - 142) / 240 * width, abs=8)
    assert low[0] == pytest.approx((200 - 150) / 200 * height, abs=8)
    assert high[0] == pytest.approx((200 - 70) / 200 * height, abs=8)
    assert high[1] < width / 2, "the liver is on the left half of the picture"


def test_the_same_input_gives_the_same_bytes():
    first, second = _torso_pictures(), _pictures(TORSO)
    assert {name: one.png for name, one in first.items()} == {name: one.png for name, one in second.items()}


@pytest.mark.parametrize(
    ("order", "flips"),
    [((2, 1, 0), (True, False, True)), ((1, 2, 0), (False, True, True)), ((0, 1, 2), (True, True, False))],
)
def test_the_order_of_the_array_changes_no_pixel(order: tuple[int, ...], flips: tuple[bool, ...]):
    turned = _pictures(TORSO.reoriented(order, flips))
    for name, picture in _torso_pictures().items():
        assert picture.png == turned[name].png, name


def test_synthetic_is_burned_in_wherever_it_comes_from():
    plain = _pictures(HEAD)["overview_key_image.png"]
    asked = _pictures(HEAD, synthetic=True)["overview_key_image.png"]
    from_image = _pictures(replace(HEAD, synthetic=True))["overview_key_image.png"]
    maps = {task: replace(one, model=model(task, synthetic=True)) for task, one in HEAD.label_maps.items()}
    from_weights = key_images(HEAD.volume, maps, measure_all(HEAD.context()), synthetic=False)[0]
    assert plain.meta["synthetic"] is False
    assert asked.meta["synthetic"] is True
    assert plain.png != asked.png
    assert asked.png == from_image.png == from_weights.png
    red = (_pixels(asked) == (255, 96, 64)).all(axis=2)
    assert red.sum() > 50
    assert not (_pixels(plain) == (255, 96, 64)).all(axis=2).any()


def test_the_side_letters_and_the_warning_are_burned_in():
    picture = _pixels(_pictures(HEAD)["hemorrhage_key_image.png"])
    yellow = (picture == (255, 214, 64)).all(axis=2)
    height, width, _ = picture.shape
    middle = slice(height // 2 - 20, height // 2 + 20)
    assert yellow[middle, :30].any()
    assert yellow[middle, -30:].any()
    white = (picture == (235, 235, 235)).all(axis=2)
    assert white[-30:, : width // 2].any()


def test_labels_of_another_grid_are_not_drawn():
    scene = TORSO
    maps = scene.cropped(2, low=1).label_maps
    assert key_images(scene.volume, maps, measure_all(scene.context()), synthetic=False) == ()


def test_evidence_outside_the_image_draws_nothing():
    measurements = measure_all(TORSO.context())
    small = TORSO.cropped(2, high=50)
    names = {one.name for one in key_images(small.volume, small.label_maps, measurements, synthetic=False)}
    assert "liver_overlay.png" not in names
    assert "overview_overlay.png" in names
