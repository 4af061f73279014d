"""A label map as the NIfTI image TotalSegmentator would have returned for the same input."""

from __future__ import annotations

from typing import Any, cast

import nibabel as nib
import numpy as np
from totalsegmentator.nifti_ext_header import (
    add_label_map_to_nifti,
)

from heimdallr_ray.volume import LabelMap

_nib: Any = nib


def to_nifti(label_map: LabelMap, source: Any) -> Any:  # noqa: ANN401
    """A `nibabel.Nifti1Image` equal in every byte to what `totalsegmentator(source, ml=True)` returns.

    Args:
        label_map: the labels on the grid of `source`.
        source: the `Nifti1Image` that the volume was made from; its header is copied.
    """
    header = source.header.copy()
    header.set_data_dtype(np.uint8)
    image = _nib.Nifti1Image(label_map.array, np.array(label_map.affine_ras), header)
    return cast(Any, add_label_map_to_nifti)(image, dict(label_map.labels))
