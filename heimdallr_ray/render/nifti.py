"""NIfTI-1 files for download and for the viewer, written from the header up so that equal input gives equal bytes."""

from __future__ import annotations

import json
from typing import Any, cast

import nibabel as nib
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from heimdallr_ray.volume import LabelMap, Volume

INTENT_LABEL = 1002
"""NIFTI_INTENT_LABEL (nifti1.h): each voxel is an index into a list of labels."""
XFORM_SCANNER = 1
UNITS_MM = 2
COMMENT = 6
"""NIFTI_ECODE_COMMENT: plain text in the header extension."""
GZIP_LEVEL = 3
"""isal's highest: 3 % larger than zlib's level 6 in a twentieth of its time (`python -m bench convert`)."""
GZIP_WINDOW = 31
"""Largest window in a gzip container (RFC 1952) whose header carries neither a time nor a name."""
DISPLAY_MAX = 256
"""Most voxels per axis in the viewer: half resolution of a 512 matrix loads in under a second."""


def _nifti_gz(
    array: NDArray[Any], affine_ras: NDArray[np.float64], *, intent: int = 0, name: str = "", comment: str = ""
) -> bytes:
    header = cast(Any, nib).Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine_ras, code=XFORM_SCANNER)
    # A quaternion cannot hold shear; a reader that prefers it must not be given a wrong one.
    header.set_qform(None, code=0)
    header["pixdim"][1:4] = np.linalg.norm(affine_ras[:3, :3], axis=0)
    header["xyzt_units"] = UNITS_MM
    header["intent_code"] = intent
    header["intent_name"] = name.encode("ascii")[:15]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    extension = b""
    if comment:
        payload = comment.encode("utf-8")
        size = -(-(8 + len(payload)) // 16) * 16
        extension = size.to_bytes(4, "little") + COMMENT.to_bytes(4, "little") + payload.ljust(size - 8, b"\0")
    header["vox_offset"] = 352 + len(extension)
    little = header.as_byteswapped("<") if header.endianness != "<" else header
    # In C order from here on, slices first: the buffer is compressed where it lies, and copied only if it must be.
    voxels = np.ascontiguousarray(array.T, dtype=array.dtype.newbyteorder("<"))
    packer = cast(Any, isal_zlib).compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW)
    head = b"".join((little.binaryblock, bytes((1 if extension else 0, 0, 0, 0)), extension))
    return b"".join((packer.compress(head), packer.compress(voxels.data), packer.flush()))


def _names(label_map: LabelMap) -> str:
    facts = {
        "labels": {str(value): name for value, name in sorted(label_map.labels.items())},
        "task": label_map.model.task,
        "model_id": label_map.model.model_id,
        "synthetic": label_map.model.synthetic,
    }
    if label_map.model.synthetic:
        facts["notice"] = "DEMO WEIGHTS - SYNTHETIC - not for diagnosis"
    return json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def label_map_nifti(label_map: LabelMap) -> bytes:
    """The label map as .nii.gz: uint8 (uint16 where it is), intent LABEL, names as JSON in the header extension."""
    return _nifti_gz(
        label_map.array, label_map.affine_ras, intent=INTENT_LABEL, name=label_map.model.task, comment=_names(label_map)
    )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // DISPLAY_MAX) for n in shape)


def _thinned(array: NDArray[Any], affine_ras: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Every n-th voxel, and the affine of exactly those voxels.

    Voxels are picked, not averaged: each value that the viewer reads out was measured, and a label map thinned the same
    way lies on it without half a voxel's shift.
    """
    steps = _strides(array.shape)
    first = tuple(step // 2 if n > step // 2 else 0 for step, n in zip(steps, array.shape, strict=True))
    affine = affine_ras.copy()
    affine[:3, 3] = affine_ras[:3, :3] @ np.array(first, dtype=np.float64) + affine_ras[:3, 3]
    affine[:3, :3] = affine_ras[:3, :3] * np.array(steps)
    i, j, k = (slice(start, None, step) for start, step in zip(first, steps, strict=True))
    return array[i, j, k], affine


def volume_nifti(volume: Volume) -> bytes:
    """The whole image as .nii.gz, every voxel as it is: int16 or float32, scl_slope 1."""
    return _nifti_gz(volume.array, volume.affine_ras)


def display_volume_nifti(volume: Volume) -> bytes:
    """The image for the viewer as .nii.gz: int16, scl_slope 1, at most DISPLAY_MAX voxels per axis."""
    array, affine = _thinned(volume.array, volume.affine_ras)
    if array.dtype != np.int16:
        limits = np.iinfo(np.int16)
        array = np.rint(np.clip(np.nan_to_num(array), limits.min, limits.max)).astype(np.int16)
    return _nifti_gz(array, affine)


def display_label_map_nifti(label_map: LabelMap) -> bytes:
    """The label map for the viewer, on the grid of `display_volume_nifti` of its image."""
    array, affine = _thinned(label_map.array, label_map.affine_ras)
    return _nifti_gz(array, affine, intent=INTENT_LABEL, name=label_map.model.task, comment=_names(label_map))
