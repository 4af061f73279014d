"""Connected parts of structures as TotalSegmentator cleans them, on the model's own grid."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from heimdallr_ray.segmentation.specs import TaskSpec
from heimdallr_ray.segmentation.totalseg.geometry import through_file, zooms_of
from heimdallr_ray.segmentation.totalseg.labels import labels_of

_ndimage: Any = ndimage
_MOST = 1e10
"""Upstream's upper bound of a part, in voxels."""


def _parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number of the face-connected part each voxel belongs to (0: none), and voxels per number."""
    numbered = cast("tuple[NDArray[np.int32], int]", _ndimage.label(mask))[0]
    return numbered, np.bincount(numbered.ravel(order="K"))


def keep_largest(labels: NDArray[np.uint8], value: int) -> None:
    """Of the voxels of `value` only the largest connected part is left; of equal ones the first.

    `keep_largest_blob_multilabel` of TotalSegmentator's postprocessing.py.

    Args:
        labels: `[x, y, z]`, changed.
        value: the structure's label.
    """
    mask = labels == value
    numbered, sizes = _parts(mask)
    if len(sizes) > 1:
        labels[mask & (numbered != int(np.argmax(sizes[1:])) + 1)] = 0


def drop_small(labels: NDArray[np.uint8], value: int, at_most: np.floating[Any]) -> None:
    """Connected parts of `value` with at most so many voxels are gone.

    `remove_small_blobs_multilabel` of TotalSegmentator's postprocessing.py.

    Args:
        labels: `[x, y, z]`, changed.
        value: the structure's label.
        at_most: voxels, as the quotient that upstream compares with.
    """
    mask = labels == value
    numbered, sizes = _parts(mask)
    dropped = (sizes <= at_most) | (sizes > _MOST)
    labels[mask & dropped[numbered]] = 0


def clean(labels: NDArray[np.uint8], affine: NDArray[np.float64], spec: TaskSpec) -> None:
    """What the task asks for was done to its structures.

    Args:
        labels: `[x, y, z]` in canonical axes, changed.
        affine: of the image that the model saw.
        spec: the task.
    """
    values = {name: value for value, name in labels_of(spec).items()}
    for name in spec.largest_blob:
        keep_largest(labels, values[name])
    # upstream reads the sizes of a voxel back from the file that nnU-Net wrote: float32
    voxel_mm3 = np.prod(zooms_of(through_file(affine)))
    for name, size_mm3 in spec.min_blob_mm3:
        drop_small(labels, values[name], size_mm3 / voxel_mm3)
