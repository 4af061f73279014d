"""Painting of superellipsoids on a regular grid, one sub-box at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.segmentation.demo.anatomy import Shape, Triple

Box = tuple[slice, slice, slice]
Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def superellipsoid(
    axes: Axes, centre_mm: Triple, radii_mm: Triple, exponent: float = 2.0, shape: Shape = "ellipsoid"
) -> tuple[Box, NDArray[np.bool_]] | None:
    """The voxels inside `|x/a|^p + |y/b|^p + |z/c|^p <= 1`, or of the cylinder with that cross-section along z.

    Args:
        axes: ascending voxel centres along i, j, k in mm.
        centre_mm: centre.
        radii_mm: half axes.
        exponent: p.
        shape: ellipsoid or cylinder.

    Returns:
        The bounding box as slices and the mask within it, or None where the shape lies outside the grid.
    """
    box: list[slice] = []
    terms: list[NDArray[np.float64]] = []
    for number, (axis, centre, radius) in enumerate(zip(axes, centre_mm, radii_mm, strict=True)):
        low, high = (int(v) for v in np.searchsorted(axis, (centre - radius, centre + radius)))
        if high <= low:
            return None
        box.append(slice(low, high))
        distance = np.abs((axis[low:high] - centre) / radius)
        flat = shape == "cylinder" and number == 2
        term = np.zeros_like(distance) if flat else distance**exponent
        terms.append(term.reshape([-1 if number == d else 1 for d in range(3)]))
    return (box[0], box[1], box[2]), (terms[0] + terms[1] + terms[2]) <= 1.0


def _linear_weights(length: int, knots: int) -> NDArray[np.float32]:
    """`[length, knots]` matrix of linear interpolation between evenly spaced knots."""
    position = np.linspace(0.0, knots - 1.0, length)
    return np.clip(1.0 - np.abs(position[:, None] - np.arange(knots)[None, :]), 0.0, 1.0).astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, ...]) -> NDArray[np.float32]:
    """A slowly varying random field `[i, j, k]`, unit variance at its knots, linear between them."""
    field: NDArray[Any] = rng.standard_normal(knots, dtype=np.float32)
    for axis, (length, count) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_linear_weights(length, count), field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field, dtype=np.float32)
