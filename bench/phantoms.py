"""Images for the benchmarks: a trunk as a scanner sends it, and one long enough for the largest case."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Image = tuple[NDArray[np.int16], NDArray[np.float64]]
"""Hounsfield units `[i, j, k]` in Fortran order, and the affine to RAS mm."""

MATRIX = 512
NOISE_HU = 14.0
"""Of an abdomen at 1.25 mm with a soft kernel; neighbouring pixels are correlated as such a kernel leaves them."""


def chest_and_abdomen(slices: int = 300) -> Image:
    """A trunk with lungs, spine and organs on a table, 512 x 512 pixels of 0.70 mm, slices of 1.25 mm, with noise."""
    rng = np.random.default_rng(300)
    y, x = _grid()
    hu = np.empty((slices, MATRIX, MATRIX), np.int16)
    for k in range(slices):
        hu[k] = _plane(k / slices, k % 24 < 19, y, x, rng)
    affine = np.diag([-0.703125, -0.703125, 1.25, 1.0])
    affine[:3, 3] = (179.6484375, 163.1484375, -287.5)
    return hu.transpose(2, 1, 0), affine


def long_trunk(slices: int = 750) -> Image:
    """A whole body's length: 512 x 512 pixels of 1.5 mm, slices of 2 mm, which is 512 x 512 x 1000 at 1.5 mm."""
    rng = np.random.default_rng(750)
    y, x = _grid()
    hu = np.empty((slices, MATRIX, MATRIX), np.int16)
    distinct = 30
    for k in range(distinct):
        hu[k] = _plane(k / distinct, k % 6 < 5, y, x, rng)
    for k in range(distinct, slices):
        hu[k] = hu[k % distinct]
    return hu.transpose(2, 1, 0), np.diag([-1.5, -1.5, 2.0, 1.0])


def _grid() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    y, x = np.mgrid[:MATRIX, :MATRIX].astype(np.float32) - MATRIX / 2
    return y, x


def _plane(
    share: float, in_vertebra: bool, y: NDArray[np.float32], x: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """One slice; `share` goes from the pelvis (0) to the neck (1)."""
    from scipy import ndimage

    smooth = cast(Any, ndimage).gaussian_filter
    plane = np.full((MATRIX, MATRIX), -1000.0, np.float32)
    plane[(np.abs(y - 190) < 6) & (np.abs(x) < 210)] = -150
    plane[(x / 225) ** 2 + (y / 165) ** 2 < 1] = -100
    plane[(x / 205) ** 2 + (y / 147) ** 2 < 1] = 50
    if share > 0.45:
        for side in (-1, 1):
            plane[((x + side * 100) / (75 + 10 * share)) ** 2 + ((y + 10) / 110) ** 2 < 1] = -850
    else:
        plane[((x + 90) / 85) ** 2 + ((y + 25) / 90) ** 2 < 1] = 60 + 50 * share
        plane[((x - 110) / 55) ** 2 + ((y - 20) / 50) ** 2 < 1] = 110
    plane[(x / 30) ** 2 + ((y - 95) / 24) ** 2 < 1] = 250 if in_vertebra else 80
    # Filtered back projection leaves noise of short range; its strength grows towards the centre of the body.
    noise = smooth(rng.standard_normal((MATRIX, MATRIX), dtype=np.float32), 0.8)
    noise *= NOISE_HU / float(noise.std()) * (1.3 - 0.6 * np.clip(np.hypot(x, y) / 256, 0, 1))
    plane = smooth(plane, 0.9) + noise
    # Outside the reconstruction circle the scanner writes its lowest value.
    plane[np.hypot(x, y) > MATRIX / 2] = -1024
    return np.clip(np.rint(plane), -1024, 3071)
