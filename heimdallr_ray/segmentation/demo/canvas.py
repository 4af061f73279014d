"""The arrays under the brush, and the grid they lie on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.segmentation.demo import anatomy
from heimdallr_ray.segmentation.demo.anatomy import Tissue, Triple
from heimdallr_ray.segmentation.demo.shapes import Axes, superellipsoid


class Canvas:
    """What is painted so far, all `[i, j, k]`: HU, labels of task `total`, tissues, bleed, and where organs may lie."""

    def __init__(self, axes: Axes) -> None:
        shape = (len(axes[0]), len(axes[1]), len(axes[2]))
        self.axes = axes
        self.hu: NDArray[np.float32] = np.full(shape, anatomy.AIR_HU, np.float32)
        self.total: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.tissue: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.bleed: NDArray[np.bool_] = np.zeros(shape, np.bool_)
        self.interior: NDArray[np.bool_] = np.zeros(shape, np.bool_)

    def wall(self, centre: Triple, radii: Triple, exponent: float, hu: float, tissue: Tissue) -> None:
        """Fill a cross-section of the body wall or cavity."""
        if (found := superellipsoid(self.axes, centre, radii, exponent, "cylinder")) is not None:
            box, mask = found
            self.hu[box][mask] = hu
            self.tissue[box][mask] = tissue

    def organ(
        self,
        label: int,
        shape: anatomy.Shape,
        centre: Triple,
        radii: Triple,
        exponent: float,
        hu: float,
        *,
        inside: NDArray[np.bool_] | None = None,
    ) -> None:
        """Paint one structure over what is there, only where `inside` is true."""
        if (found := superellipsoid(self.axes, centre, radii, exponent, shape)) is None:
            return
        box, mask = found
        if inside is not None:
            mask = mask & inside[box]
        self.hu[box][mask] = hu
        self.total[box][mask] = label
        self.tissue[box][mask] = Tissue.SKELETAL_MUSCLE if label in anatomy.MUSCLE_LABELS else Tissue.NONE


def grid(spacing: Triple, z_range: tuple[float, float], fov: tuple[float, float]) -> tuple[Axes, NDArray[np.float64]]:
    """Voxel centres along each axis in mm, and the map from voxel index to RAS mm.

    Raises:
        ValueError: the grid would be empty.
    """
    low = (-fov[0] / 2, -fov[1] / 2, z_range[0])
    high = (fov[0] / 2, fov[1] / 2, z_range[1])
    counts = [round((b - a) / s) for a, b, s in zip(low, high, spacing, strict=True)]
    if min(counts) < 1 or min(spacing) <= 0:
        raise ValueError(f"empty grid: spacing {spacing}, z {z_range}, field of view {fov}")
    i, j, k = ((a + s * (np.arange(n) + 0.5)).astype(np.float64) for a, s, n in zip(low, spacing, counts, strict=True))
    affine = np.eye(4, dtype=np.float64)
    affine[[0, 1, 2], [0, 1, 2]] = spacing
    affine[:3, 3] = i[0], j[0], k[0]
    return (i, j, k), affine
