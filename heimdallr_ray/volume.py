"""Volume and LabelMap: voxels together with the geometry that gives them meaning.

Arrays are indexed `[i, j, k]`. `affine_ras` maps `(i, j, k, 1)` to patient millimetres in the NIfTI convention, where
x, y, z grow towards the patient's right, anterior and superior side. DICOM's own LPS frame exists inside `dicom/` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import GeometryMismatch, NotAVolume

AFFINE_ATOL_MM = 1e-3
"""Two grids whose voxel corners differ by less are the same grid."""


def spacing_mm_of(affine_ras: NDArray[np.float64]) -> tuple[float, float, float]:
    """Length in mm of one step along i, j and k."""
    i, j, k = np.sqrt((affine_ras[:3, :3] ** 2).sum(axis=0))
    return float(i), float(j), float(k)


def shear_of(affine_ras: NDArray[np.float64]) -> tuple[float, float]:
    """Voxels along i and j that the grid moves within its planes from one k to the next; 0, 0 where k stands upright.

    The first two axes are taken to be at a right angle, as those of an image are.
    """
    i, j, k = affine_ras[:3, :3].T
    return float(k @ i / (i @ i)), float(k @ j / (j @ j))


def _checked_affine(affine_ras: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.array(affine_ras, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise NotAVolume("bad_affine", "affine must be a finite 4 x 4 matrix")
    if not np.allclose(affine[3], (0.0, 0.0, 0.0, 1.0)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise NotAVolume("bad_affine", "affine is not an invertible map to millimetres")
    affine.setflags(write=False)
    return affine


def same_grid(a: Volume | LabelMap, b: Volume | LabelMap) -> bool:
    """True where both have one shape and no voxel corner differs by more than AFFINE_ATOL_MM."""
    if a.array.shape != b.array.shape:
        return False
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(a.array.shape) - 1
    return bool(np.abs(corners @ (a.affine_ras - b.affine_ras).T).max() <= AFFINE_ATOL_MM)


@dataclass(frozen=True)
class VolumeSource:
    """Where a volume came from; carried into the provenance of every number made from it."""

    modality: str
    """DICOM Modality (0008,0060): CT, MR."""
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    manifest_sha256: str = ""
    """Digest over the data set digests of the instances that were used, in slice order."""
    synthetic: bool = False
    attributes: Mapping[str, str | float | int | None] = field(default_factory=dict[str, Any])
    """Header facts that metrics gate on: kvp, kernel, slice_thickness_mm, contrast_agent, ..."""


@dataclass(frozen=True)
class Volume:
    """A scalar image on a regular grid.

    Attributes:
        array: `[i, j, k]`, int16 or float32; CT in Hounsfield units (rescale applied), MR in arbitrary units.
        affine_ras: 4 x 4 float64, voxel index to RAS millimetres.
        source: where it came from.
        flags: what the assembler noticed: `tilt`, `variable_spacing`, `missing_slices:2`, ...
        slice_places: where the array was resampled from unevenly spaced slices, the place of each source slice on the
            k axis, `[slice]`, ascending from 0 to shape[2] - 1; empty where each k is a slice. `labels_on_slices`
            takes labels back.
    """

    array: NDArray[Any]
    affine_ras: NDArray[np.float64]
    source: VolumeSource
    flags: tuple[str, ...] = ()
    slice_places: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or min(self.array.shape) < 1:
            raise NotAVolume("not_3d", f"expected 3 dimensions, got shape {self.array.shape}")
        if self.array.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise NotAVolume("dtype", f"expected int16 or float32, got {self.array.dtype}")
        object.__setattr__(self, "affine_ras", _checked_affine(self.affine_ras))
        places = np.array(self.slice_places, dtype=np.float64)
        if places.size and not (
            np.isfinite(places).all()
            and places[0] == 0
            and places[-1] == self.array.shape[2] - 1
            and (np.diff(places) > 0).all()
        ):
            raise NotAVolume("bad_geometry", "places of source slices do not ascend from the first plane to the last")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres per step along i, j, k."""
        return spacing_mm_of(self.affine_ras)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres (from the determinant, so right for sheared grids too)."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])) / 1000.0)


@dataclass(frozen=True)
class ModelRef:
    """The model that made a label map."""

    task: str
    """TotalSegmentator task name: total, tissue_types, cerebral_bleed."""
    model_id: str
    """For example totalsegmentator/297."""
    weights_sha256: str
    """Digest of the weights manifest entry."""
    synthetic: bool
    backend: str = "resident"
    mode: str = "exact"
    """`exact`: upstream's labels, bit for bit. `turbo`: faster, single voxels may differ."""
    spacing_mm: float | None = None
    """Coarsest spacing along an axis to which the image was brought for the model; None: nnU-Net's own, or not said."""


def _require_known(array: NDArray[Any], labels: Mapping[int, str]) -> None:
    """Nothing happens where each value is 0 or in `labels`; one pass, without a copy."""
    highest = int(array.max()) if array.size else 0
    known = np.zeros(max(highest, 0) + 1, np.bool_)
    known[[0, *(value for value in labels if 0 <= value <= highest)]] = True
    if known.all():
        return
    for plane in array.transpose():
        if not known[plane].all():
            raise NotAVolume("unknown_label", f"the labels hold values that name nothing, up to {highest}")


@dataclass(frozen=True)
class LabelMap:
    """A segmentation on the grid of the volume it was made from.

    Attributes:
        array: `[i, j, k]`, uint8 or uint16; 0 is background.
        affine_ras: as in Volume.
        labels: label value to structure name (TotalSegmentator's names).
        model: what made it.
        source_manifest_sha256: `VolumeSource.manifest_sha256` of the image it belongs to.

    Raises:
        NotAVolume: `not_3d`, `dtype`, `bad_affine`; `unknown_label`: a value that `labels` does not name.
    """

    array: NDArray[Any]
    affine_ras: NDArray[np.float64]
    labels: Mapping[int, str]
    model: ModelRef
    source_manifest_sha256: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise NotAVolume("not_3d", f"expected 3 dimensions, got shape {self.array.shape}")
        if self.array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise NotAVolume("dtype", f"expected uint8 or uint16, got {self.array.dtype}")
        _require_known(self.array, self.labels)
        object.__setattr__(self, "affine_ras", _checked_affine(self.affine_ras))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])) / 1000.0)

    def value_of(self, name: str) -> int | None:
        """The label value of a structure, or None where this map cannot hold it."""
        return next((value for value, label in self.labels.items() if label == name), None)

    def mask(self, *names: str) -> NDArray[np.bool_]:
        """Boolean `[i, j, k]` mask of the union of the named structures; names the map cannot hold are ignored."""
        values = [value for value in map(self.value_of, names) if value is not None]
        return np.isin(self.array, values)


def labels_on_slices(labels: LabelMap, volume: Volume) -> NDArray[Any]:
    """`[i, j, slice]` labels on the slices that `volume` was made from; a view where each k is a slice already.

    Each slice takes the plane nearest to its true place, straight along the normal, so no label moves by more than half
    a step of the grid and half a pixel.

    Raises:
        GeometryMismatch: the labels are not those of this volume.
    """
    require_same_grid(volume, labels)
    if not volume.slice_places:
        return labels.array
    columns, rows, _ = volume.shape
    along_i, along_j = shear_of(volume.affine_ras)
    found = np.empty((columns, rows, len(volume.slice_places)), labels.array.dtype, order="F")
    for number, place in enumerate(volume.slice_places):
        plane = round(place)
        i = (np.arange(columns) + round((place - plane) * along_i)).clip(0, columns - 1)
        j = (np.arange(rows) + round((place - plane) * along_j)).clip(0, rows - 1)
        found[:, :, number] = labels.array[:, :, plane][np.ix_(i, j)]
    return found


def require_same_grid(volume: Volume, label_map: LabelMap) -> None:
    """Nothing happens where image and labels share grid and source.

    Raises:
        GeometryMismatch: another shape, another affine, or a label map made from other pixels.
    """
    if not same_grid(volume, label_map):
        raise GeometryMismatch("label map and image differ in shape or affine")
    made_from = label_map.source_manifest_sha256
    if made_from and volume.source.manifest_sha256 and made_from != volume.source.manifest_sha256:
        raise GeometryMismatch("label map was made from another image")
