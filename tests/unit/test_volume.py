"""Volumes and labels keep what they promise, or are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.errors import GeometryMismatch, NotAVolume
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource, labels_on_slices, shear_of

MODEL = ModelRef("total", "m", "w", synthetic=True)


def label_map(array: np.ndarray, affine: np.ndarray | None = None) -> LabelMap:
    return LabelMap(array, np.eye(4) if affine is None else affine, {1: "a", 2: "b", 7: "c"}, MODEL)


@pytest.mark.parametrize("value", [3, 8, 255])
def test_a_mask_with_a_label_outside_the_map_is_refused(value: int) -> None:
    array = np.zeros((5, 6, 7), np.uint8)
    label_map(array)
    array[4, 5, 6] = 7
    label_map(array)
    array[1, 1, 1] = value
    with pytest.raises(NotAVolume) as caught:
        label_map(array)
    assert caught.value.reason == "unknown_label"


@pytest.mark.parametrize("places", [(0.0, 1.5), (0.5, 3.0), (0.0, 2.0, 1.0, 3.0), (0.0, float("nan"), 3.0)])
def test_places_that_are_not_those_of_the_planes_are_refused(places: tuple[float, ...]) -> None:
    with pytest.raises(NotAVolume) as caught:
        Volume(np.zeros((2, 2, 4), np.int16), np.eye(4), VolumeSource("CT"), slice_places=places)
    assert caught.value.reason == "bad_geometry"


def test_labels_go_to_the_slices_that_lie_nearest_and_straight_along_the_normal() -> None:
    affine = np.eye(4)
    affine[0, 2] = 2.0
    assert shear_of(affine) == (2.0, 0.0)
    volume = Volume(np.zeros((9, 3, 5), np.int16), affine, VolumeSource("CT"), slice_places=(0.0, 1.6, 4.0))
    array = np.zeros((9, 3, 5), np.uint8)
    array[4, 1, 2] = 1
    on_slices = labels_on_slices(label_map(array, affine), volume)
    assert on_slices.shape == (9, 3, 3)
    # The slice lies 0.4 steps before the plane, so the grid there stands 0.8 voxels, rounded one, further back.
    assert np.argwhere(on_slices).tolist() == [[5, 1, 1]]


def test_labels_of_another_grid_are_refused_and_regular_ones_are_not_copied() -> None:
    volume = Volume(np.zeros((2, 2, 4), np.int16), np.eye(4), VolumeSource("CT"))
    labels = label_map(np.zeros((2, 2, 4), np.uint8))
    assert labels_on_slices(labels, volume) is labels.array
    with pytest.raises(GeometryMismatch):
        labels_on_slices(label_map(np.zeros((2, 2, 3), np.uint8)), volume)
