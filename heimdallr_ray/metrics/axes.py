"""Patient directions of array axes, always from the affine, never from array order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Low and high end of the RAS axes x, y, z (NIfTI convention)."""


@dataclass(frozen=True)
class Axes:
    """Which way the array axes run in the patient.

    Attributes:
        patient_axis: for each array axis the RAS axis (0, 1, 2) it is nearest to; a permutation.
        ascending: for each array axis whether growing index means growing RAS coordinate.
    """

    patient_axis: tuple[int, int, int]
    ascending: tuple[bool, bool, bool]

    def side(self, array_axis: int, *, high: bool) -> str:
        """The patient side at the low or high end of an array axis."""
        return SIDES[self.patient_axis[array_axis]][int(high == self.ascending[array_axis])]

    def array_axis(self, patient_axis: int) -> int:
        """The array axis nearest to a RAS axis."""
        return self.patient_axis.index(patient_axis)

    @property
    def axial(self) -> int:
        """The array axis along which axial slices are stacked."""
        return self.array_axis(2)


def axes_of(affine_ras: NDArray[np.float64]) -> Axes:
    """The patient directions of the array axes of a grid."""
    found = cast("NDArray[Any]", cast(Any, orientations).io_orientation(affine_ras))
    x, y, z = (int(axis) for axis in found[:, 0])
    up_x, up_y, up_z = (bool(flip > 0) for flip in found[:, 1])
    return Axes((x, y, z), (up_x, up_y, up_z))


def to_ras_mm(affine_ras: NDArray[np.float64], index_ijk: tuple[float, float, float]) -> tuple[float, float, float]:
    """Patient millimetres of a (fractional) voxel index."""
    x, y, z = affine_ras[:3, :3] @ np.asarray(index_ijk) + affine_ras[:3, 3]
    return float(x), float(y), float(z)


def slice_obliquity_deg(affine_ras: NDArray[np.float64], array_axis: int) -> float:
    """Angle between the normal of the slices stacked along `array_axis` and the RAS axis it is nearest to."""
    in_plane = [axis for axis in range(3) if axis != array_axis]
    normal = np.cross(affine_ras[:3, in_plane[0]], affine_ras[:3, in_plane[1]])
    cosine = abs(normal[axes_of(affine_ras).patient_axis[array_axis]]) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(min(1.0, float(cosine)))))


def pixel_cm2(affine_ras: NDArray[np.float64], array_axis: int) -> float:
    """Area of one voxel in the slices stacked along `array_axis`, in cm2."""
    in_plane = [axis for axis in range(3) if axis != array_axis]
    return float(np.linalg.norm(np.cross(affine_ras[:3, in_plane[0]], affine_ras[:3, in_plane[1]]))) / 100.0
