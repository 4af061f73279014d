"""`deskew`: a sheared stack onto a grid at right angles, and labels from there back onto the stack.

A tilted gantry shifts each slice inside its own plane. The affine of the stack says so exactly, and nothing here is
needed for positions or volumes; models that were trained on upright voxels see upright anatomy only after this. Planes
stay planes: each slice is moved within itself by the part of the shear that its place accounts for, so the way back
is the same movement with the other sign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import GeometryMismatch, NotAVolume
from heimdallr_ray.volume import LabelMap, Volume, same_grid, shear_of

MAX_GROWTH: Final = 4.0
"""The upright grid has at most this many voxels per voxel of the stack; a 60 degree shear of a long stack has more."""

_RIGHT_ANGLE: Final = 1e-3


@dataclass(frozen=True)
class Deskew:
    """How a stack was moved upright.

    Attributes:
        source: the stack, its values included (they are not copied).
        upright: the volume that `deskew` made from it.
        shift: `[slice, 2]` float64: slice k of the stack lies `shift[k]` voxels along i and j inside the upright grid.
    """

    source: Volume
    upright: Volume
    shift: NDArray[np.float64]

    def back(self, labels: LabelMap) -> LabelMap:
        """The labels on the stack's own grid: each voxel takes the label nearest to it in its own slice.

        No label moves by more than half a pixel.

        Raises:
            GeometryMismatch: the labels are not on the upright grid.
        """
        if not same_grid(self.upright, labels):
            raise GeometryMismatch("labels are not on the deskewed grid")
        columns, rows, slices = self.source.shape
        found = np.empty(self.source.shape, labels.array.dtype, order="F")
        for k in range(slices):
            i, j = (int(value) for value in np.rint(self.shift[k]))
            found[:, :, k] = labels.array[i : i + columns, j : j + rows, k]
        return replace(labels, array=found, affine_ras=self.source.affine_ras)


def deskew(volume: Volume) -> tuple[Volume, Deskew]:
    """The volume on a grid whose third axis stands upright on its slices, and the way back.

    Slices, in-plane spacing and slice distance are those of `volume`; i and j grow so that nothing is cut off. Values
    are linear between pixels of one slice, rounded for int16; around the stack lies its smallest value. Flags and
    source are kept, `deskewed` is added.

    Raises:
        NotAVolume: `bad_affine`: the first two axes are not at a right angle; `bad_geometry`: the shear makes the grid
            more than MAX_GROWTH times as large.
    """
    axes = volume.affine_ras[:3, :3]
    spacing = np.sqrt((axes**2).sum(axis=0))
    row, column = axes[:, 0] / spacing[0], axes[:, 1] / spacing[1]
    if abs(float(row @ column)) > _RIGHT_ANGLE:
        raise NotAVolume("bad_affine", "rows and columns are not at a right angle")
    per_slice = np.array(shear_of(volume.affine_ras))
    columns, rows, slices = volume.shape
    moved: NDArray[np.float64] = np.outer(np.arange(slices, dtype=np.float64), per_slice)
    start: NDArray[np.float64] = np.minimum(moved.min(axis=0), 0.0)
    shift = moved - start
    shift[np.abs(shift) < 1e-9] = 0.0
    grown = np.ceil(shift.max(axis=0)).astype(int)
    shape = columns + int(grown[0]), rows + int(grown[1]), slices
    if np.prod(shape, dtype=np.float64) > MAX_GROWTH * volume.array.size:
        raise NotAVolume("bad_geometry", "the stack is too oblique to be deskewed")
    array = np.empty(shape, volume.array.dtype, order="F")
    outside = volume.array.min()
    for k in range(slices):
        array[:, :, k] = _moved(volume.array[:, :, k], shift[k], shape[:2], float(outside))
    affine = volume.affine_ras.copy()
    affine[:3, 3] += axes[:, :2] @ start
    affine[:3, 2] = axes[:, 2] - axes[:, :2] @ per_slice
    upright = replace(volume, array=array, affine_ras=affine, flags=_flags(volume))
    return upright, Deskew(volume, upright, shift)


def _flags(volume: Volume) -> tuple[str, ...]:
    found = list(volume.flags)
    found.append("deskewed")
    return tuple(found)


def _moved(
    pixels: NDArray[Any], shift: NDArray[np.float64], shape: tuple[int, int], outside: float
) -> NDArray[np.float64]:
    """`[i, j]` pixels placed `shift` voxels inside a larger plane, linear in both directions."""
    whole = np.floor(shift).astype(int)
    part = shift - whole
    columns, rows = pixels.shape
    # One more on each side, so that the border blends into what lies around.
    framed = np.full((columns + 2, rows + 2), outside)
    framed[1:-1, 1:-1] = pixels
    if part[0] > 0:
        framed[1:] = framed[1:] * (1 - part[0]) + framed[:-1] * part[0]
    if part[1] > 0:
        framed[:, 1:] = framed[:, 1:] * (1 - part[1]) + framed[:, :-1] * part[1]
    plane = np.full(shape, outside)
    i, j = int(whole[0]), int(whole[1])
    kept = framed[1:, 1:][: shape[0] - i, : shape[1] - j]
    plane[i : i + kept.shape[0], j : j + kept.shape[1]] = kept
    return np.rint(plane) if np.issubdtype(pixels.dtype, np.integer) else plane
