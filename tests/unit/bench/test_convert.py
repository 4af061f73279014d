from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import convert, convert_worker

AFFINE = np.array([[-0.7, 0.0, 0.0, 90.0], [0.0, -0.7, 0.0, 80.0], [0.0, 0.0, 1.25, -40.0], [0.0, 0.0, 0.0, 1.0]])


def _values() -> np.ndarray:
    return np.random.default_rng(3).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


def test_the_same_image_in_other_axes_is_the_same_image():
    values = _values()
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = values.shape[0] - 1
    found = convert_worker.compare((values[::-1], AFFINE @ turned), (values, AFFINE))
    assert convert.is_right(found)


@pytest.mark.parametrize(
    ("change", "voxels_wrong"),
    [
        (lambda values, affine: (values[::-1], affine), True),
        (lambda values, affine: (values + 1, affine), True),
        (lambda values, affine: (values[:, :, :-1], affine), True),
        (lambda values, affine: (values, affine + np.eye(4, k=3) * 0.02), False),
        (lambda values, affine: (values, affine * np.array([1.0, 1.0, 1.01, 1.0])), False),
    ],
    ids=["mirrored", "one HU more", "a slice less", "moved by 0.02 mm", "1 % longer"],
)
def test_a_converter_that_gets_voxels_or_geometry_wrong_is_not_right(change: Any, voxels_wrong: bool):
    values = _values()
    found = convert_worker.compare(change(values, AFFINE), (values, AFFINE))
    assert not convert.is_right(found)
    assert (found["voxels_wrong"] > 0) is voxels_wrong
