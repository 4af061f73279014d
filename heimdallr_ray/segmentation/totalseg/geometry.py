"""Grids as TotalSegmentator handles them: canonical axes, change of spacing, crop; each exact to the last bit.

All images here are `[x, y, z]` views in the closest canonical (RAS) axes unless a name says `zyx`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray
from scipy import ndimage

from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.segmentation.totalseg import kernels

_ndimage: Any = ndimage
_IDENTITY = np.array([[0, 1], [1, 1], [2, 1]])

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open voxel ranges along the three axes."""
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
"""Millimetres along x, y, z."""


def zooms_of(affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Voxel sizes as a NIfTI header made from `affine` states them (float32)."""
    return np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0)).astype(np.float32)


def through_file(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of an affine that upstream wrote to a NIfTI file and read back (float32 sform)."""
    return affine.astype(np.float32).astype(np.float64)


def shape3(array: NDArray[Any]) -> Shape:
    """The shape of a 3-D array as a triple."""
    i, j, k = array.shape
    return int(i), int(j), int(k)


@dataclass(frozen=True)
class Image:
    """An array and its affine; `array` may be a view with any strides."""

    array: NDArray[Any]
    affine: NDArray[np.float64]


def canonical(image: Image) -> Image:
    """A view of `image` in the axes closest to RAS (nibabel.as_closest_canonical)."""
    orientation = cast("NDArray[Any]", io_orientation(image.affine))
    if np.array_equal(orientation, _IDENTITY):
        return image
    array = cast("NDArray[Any]", apply_orientation(image.array, orientation))
    return Image(array, image.affine @ cast("NDArray[np.float64]", inv_ornt_aff(orientation, image.array.shape)))


def canonical_view(target: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """`target` (native axes, with `affine`) seen in canonical axes: what is written there lands in native order."""
    orientation = cast("NDArray[Any]", io_orientation(affine))
    if np.array_equal(orientation, _IDENTITY):
        return target
    return cast("NDArray[Any]", apply_orientation(target, orientation))


def native_affine(
    canonical_affine: NDArray[np.float64], shape: Shape, affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The affine that upstream's `undo_canonical` computes for an image of `shape` back in the axes of `affine`."""
    back = cast("NDArray[Any]", ornt_transform(axcodes2ornt("RAS"), io_orientation(affine)))
    if np.array_equal(back, _IDENTITY):
        return canonical_affine
    return canonical_affine @ cast("NDArray[np.float64]", inv_ornt_aff(back, shape))


@dataclass(frozen=True)
class Zoom:
    """A change of spacing that upstream would make: factors per axis, target shape, target affine."""

    factors: NDArray[np.float64]
    shape: Shape
    affine: NDArray[np.float64]


def zoom_to_spacing(shape: Shape, affine: NDArray[np.float64], spacing_mm: Spacing) -> Zoom | None:
    """The zoom to a spacing along x, y, z, or None where the image already has exactly that spacing.

    Raises:
        NotAVolume: nothing of the image would be left along an axis.
    """
    have, want = zooms_of(affine), np.array(spacing_mm)
    if np.array_equal(have, want):
        return None
    factors = have / want
    target = affine.copy()
    for axis in range(3):
        target[:3, axis] = target[:3, axis] / factors[axis]
    i, j, k = (round(n * float(z)) for n, z in zip(shape, factors, strict=True))
    if min(i, j, k) < 1:
        raise NotAVolume("too_small", "the image is thinner than half a voxel of the model")
    return Zoom(factors, (int(i), int(j), int(k)), target)


def resample_linear(array: NDArray[Any], shape: Shape, slabs: kernels.Slabs) -> NDArray[np.float32]:
    """Trilinear interpolation onto `shape`, values truncated to whole numbers as upstream's int32 cast does.

    Args:
        array: `[x, y, z]`, int16 or float32, any strides.
        shape: target shape along x, y, z.
        slabs: threads.

    Returns:
        `[z, y, x]` float32, contiguous.
    """
    low: list[NDArray[np.int64]] = []
    high: list[NDArray[np.int64]] = []
    w_low: list[NDArray[np.float64]] = []
    w_high: list[NDArray[np.float64]] = []
    for n, target in zip(array.shape, shape, strict=True):
        step = (n - 1) / (target - 1) if target > 1 else 1.0
        position = np.arange(target, dtype=np.float64) * step
        floor = np.floor(position)
        # scipy computes the second weight as 1 - (1 - w), which is not always w
        first = 1.0 - (position - floor)
        low.append(np.clip(floor, 0, n - 1).astype(np.int64))
        high.append(np.clip(floor + 1, 0, n - 1).astype(np.int64))
        w_low.append(first)
        w_high.append(1.0 - first)
    out = np.empty(shape[::-1], np.float32)
    kernel = kernels.zoom_linear()
    arguments = (array, out, tuple(low), tuple(high), tuple(w_low), tuple(w_high))
    slabs.run(shape[1], lambda first, last: kernel(*arguments, first, last))
    return out


def nearest_index(n: int, target: int) -> NDArray[np.int64]:
    """Source index of each target index in scipy.ndimage.zoom(order=0, mode="nearest"); it is separable."""
    probe = _ndimage.zoom(np.arange(n, dtype=np.float64), target / n, order=0, mode="nearest")
    return cast("NDArray[np.float64]", probe).astype(np.int64)


def write_nearest(labels: NDArray[np.uint8], target: NDArray[np.uint8], slabs: kernels.Slabs) -> None:
    """`target[:]` is the nearest-neighbour zoom of `labels` to its shape; both `[x, y, z]`, any strides."""
    xs, ys, zs = (nearest_index(n, t) for n, t in zip(labels.shape, target.shape, strict=True))
    kernel = kernels.gather()
    slabs.run(target.shape[0], lambda first, last: kernel(labels, target, xs, ys, zs, first, last))


def write_same(labels: NDArray[np.uint8], target: NDArray[np.uint8], slabs: kernels.Slabs) -> None:
    """`target[:] = labels`; both `[x, y, z]`, any strides."""
    xs, ys, zs = (np.arange(n, dtype=np.int64) for n in labels.shape)
    kernel = kernels.gather()
    slabs.run(target.shape[0], lambda first, last: kernel(labels, target, xs, ys, zs, first, last))


def box_around(mask: NDArray[np.bool_], margin_voxels: NDArray[np.int64]) -> Box | None:
    """The box of all True voxels, widened by `margin_voxels`, inside the image; None where nothing is True."""
    ranges: list[tuple[int, int]] = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        where = np.flatnonzero(mask.any(axis=others))
        if not len(where):
            return None
        margin = int(margin_voxels[axis])
        ranges.append((max(0, int(where[0]) - margin), min(mask.shape[axis], int(where[-1]) + 1 + margin)))
    return ranges[0], ranges[1], ranges[2]


def crop(image: Image, box: Box) -> Image:
    """The part of `image` in `box`, values truncated to whole numbers (upstream casts crops to int32)."""
    (i0, i1), (j0, j1), (k0, k1) = box
    affine = image.affine.copy()
    affine[:3, 3] = np.dot(affine, np.array([i0, j0, k0, 1]))[:3]
    part = image.array[i0:i1, j0:j1, k0:k1]
    return Image(part if part.dtype == np.int16 else np.trunc(part), affine)


def nonzero_box(zyx: NDArray[np.float32]) -> Box | None:
    """The box of all voxels other than 0 (the same as after nnU-Net's hole filling); None where all are 0."""
    ranges: list[tuple[int, int]] = []
    part = zyx
    for axis in range(3):
        planes = np.moveaxis(part, axis, 0)
        low = next((k for k in range(len(planes)) if planes[k].any()), None)
        if low is None:
            return None
        high = next(k for k in range(len(planes) - 1, -1, -1) if planes[k].any()) + 1
        ranges.append((low, high))
    return ranges[0], ranges[1], ranges[2]
