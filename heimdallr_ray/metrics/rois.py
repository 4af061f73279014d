"""Regions of interest inside one structure: crops, components, erosion in millimetres, the core of a vertebra.

Everything works on the bounding box of the structure, never on the whole volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

from heimdallr_ray.metrics import kernels
from heimdallr_ray.metrics.labelstats import LabelStatistics, memory_order
from heimdallr_ray.volume import LabelMap, spacing_mm_of

_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
_TOUCH_MM = 0.01
"""Rounding in an affine must not decide whether a neighbour at exactly the erosion radius counts."""


@dataclass(frozen=True)
class Region:
    """A boolean mask on a box of the volume.

    Attributes:
        mask: `[i, j, k]` inside the box.
        box: the box as slices of the volume's array.
        affine_ras: of the whole volume.
    """

    mask: NDArray[np.bool_]
    box: tuple[slice, slice, slice]
    affine_ras: NDArray[np.float64]

    @property
    def n_voxels(self) -> int:
        """Voxels inside."""
        return int(np.count_nonzero(self.mask))

    @property
    def volume_ml(self) -> float:
        """Millilitres inside."""
        return self.n_voxels * float(abs(np.linalg.det(self.affine_ras[:3, :3]))) / 1000.0

    def values(self, image: NDArray[Any]) -> NDArray[Any]:
        """The image's values inside, in no particular order."""
        return image[self.box][self.mask]


def region_of(label_map: LabelMap, statistics: LabelStatistics) -> Region:
    """The voxels of one structure on its bounding box with a margin of one voxel."""
    i, j, k = (
        slice(max(0, low - 1), min(n, high + 2))
        for (low, high), n in zip(statistics.box_ijk, label_map.array.shape, strict=True)
    )
    return Region(label_map.array[i, j, k] == statistics.value, (i, j, k), label_map.affine_ras)


def components(region: Region) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Connected components (26 neighbours): their map on the region's box, and the voxels of 1, 2, ..."""
    order = memory_order(region.mask)
    labelled, count = cast(
        "tuple[NDArray[np.int32], int]", cast(Any, ndimage).label(region.mask.transpose(order), _NEIGHBOURS_26)
    )
    sizes = np.bincount(labelled.reshape(-1), minlength=count + 1)[1:]
    return labelled.transpose(np.argsort(order)), sizes.astype(np.int64)


def main_component(region: Region) -> tuple[Region, float]:
    """The largest component, and its share of the region (0 to 1)."""
    labelled, sizes = components(region)
    if len(sizes) == 1:
        return region, 1.0
    largest = int(np.argmax(sizes))
    return Region(labelled == largest + 1, region.box, region.affine_ras), float(sizes[largest] / sizes.sum())


def ball_offsets(steps_mm: NDArray[np.float64], radius_mm: float) -> NDArray[np.int64]:
    """All index offsets whose length is at most `radius_mm`, without the centre.

    Args:
        steps_mm: 3 x 3, column n is one step along array axis n in millimetres; need not be orthogonal.
        radius_mm: of the ball.
    """
    reach = np.floor((radius_mm + _TOUCH_MM) * np.linalg.norm(np.linalg.inv(steps_mm), axis=1)).astype(int)
    grid = np.argwhere(np.ones(2 * reach + 1, dtype=bool)) - reach
    length = np.linalg.norm(grid @ steps_mm.T, axis=1)
    return grid[(length > 0) & (length <= radius_mm + _TOUCH_MM)].astype(np.int64)


def eroded(region: Region, radius_mm: float, *, numba: bool = True) -> Region:
    """The voxels whose centre is more than `radius_mm` from the centre of every voxel outside the structure.

    The edge of the scan is not an edge of the structure: nothing is eroded from there. Where neighbouring slices are
    further apart than the radius, the erosion acts within the slice only.
    """
    order = memory_order(region.mask)
    mask = region.mask.transpose(order)
    offsets = ball_offsets(region.affine_ras[:3, :3][:, list(order)], radius_mm)
    kept = mask.copy()
    (kernels.erode if numba else kernels.erode_numpy)(mask, offsets, kept)
    return Region(kept.transpose(np.argsort(order)), region.box, region.affine_ras)


def core_centre_ijk(region: Region, share: float = 0.6) -> tuple[tuple[float, float, float], float]:
    """Centre of the thickest part, and the largest distance to the surface in mm.

    Voxels at least `share` of the largest depth below the surface form the core. In a vertebra that is the body:
    processes and arches are thin, so they do not pull the centre away as they do with the centroid of all voxels.

    Returns:
        Voxel index in the whole volume, and depth in mm.
    """
    padded = np.pad(region.mask, 1)
    depth = cast(
        "NDArray[np.float64]",
        cast(Any, ndimage).distance_transform_edt(padded, sampling=spacing_mm_of(region.affine_ras)),
    )[1:-1, 1:-1, 1:-1]
    deepest = float(depth.max())
    core = np.argwhere(depth >= share * deepest)
    i, j, k = (float(core[:, axis].mean()) + region.box[axis].start for axis in range(3))
    return (i, j, k), deepest
