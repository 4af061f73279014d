"""Taking a tilt out and back: exact where nothing has to move, and refused where it cannot be done."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heimdallr_ray.dicom.deskew import deskew
from heimdallr_ray.errors import GeometryMismatch, NotAVolume
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource

MODEL = ModelRef("total", "m", "w", synthetic=True)


def sheared(along_i: float, along_j: float, dtype: type = np.int16, slices: int = 6) -> Volume:
    """A block of noise whose slices move by so many pixels each."""
    array = np.random.default_rng(0).integers(-1000, 1000, (9, 8, slices)).astype(dtype)
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 2.0, 30], [0, 0, 0, 1]])
    affine[:3, 2] += along_i * affine[:3, 0] + along_j * affine[:3, 1]
    return Volume(array, affine, VolumeSource("CT", manifest_sha256="a"), ("tilt",))


def labels(volume: Volume, array: np.ndarray) -> LabelMap:
    return LabelMap(array.astype(np.uint8), volume.affine_ras, {1: "a"}, MODEL, "a")


def test_an_upright_stack_stays_as_it_is() -> None:
    volume = sheared(0, 0)
    upright, way = deskew(volume)
    assert np.array_equal(upright.array, volume.array)
    assert np.array_equal(upright.affine_ras, volume.affine_ras)
    assert np.array_equal(way.back(labels(upright, upright.array > 0)).array, volume.array > 0)


@pytest.mark.parametrize(("along_i", "along_j"), [(2, 0), (-3, 0), (0, 1), (0, -2), (1, -2)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_whole_pixels_are_moved_and_never_changed(along_i: int, along_j: int, dtype: type) -> None:
    volume = sheared(along_i, along_j, dtype)
    upright, way = deskew(volume)
    assert upright.array.dtype == dtype
    assert upright.flags == ("tilt", "deskewed")
    turn = np.linalg.inv(upright.affine_ras) @ volume.affine_ras
    for index in np.ndindex(volume.shape):
        i, j, k, _ = np.rint(turn @ [*index, 1]).astype(int)
        assert upright.array[i, j, k] == volume.array[index]
    assert np.array_equal(way.back(labels(upright, np.asarray(upright.array) > 0)).array, volume.array > 0)


def test_parts_of_a_pixel_are_linear_and_around_lies_the_least_value() -> None:
    volume = sheared(0.5, 0)
    upright, _ = deskew(volume)
    first, second = volume.array[3, 4, 1], volume.array[4, 4, 1]
    assert upright.array[4, 4, 1] == np.rint((int(first) + int(second)) / 2)
    assert upright.array[-1, 0, 0] == volume.array.min()
    assert upright.shape == (9 + math.ceil(0.5 * 5), 8, 6)


def test_labels_of_another_grid_are_refused() -> None:
    volume = sheared(1.5, 0)
    _, way = deskew(volume)
    with pytest.raises(GeometryMismatch):
        way.back(labels(volume, volume.array > 0))


def test_what_cannot_stand_upright_is_refused() -> None:
    with pytest.raises(NotAVolume) as caught:
        deskew(sheared(9, 0))
    assert caught.value.reason == "bad_geometry"
    affine = np.eye(4)
    affine[0, 1] = 0.1
    with pytest.raises(NotAVolume) as caught:
        deskew(Volume(np.zeros((2, 2, 2), np.int16), affine, VolumeSource("CT")))
    assert caught.value.reason == "bad_affine"
