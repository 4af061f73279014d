"""The labels of one run as JSON and bytes, and back: voxel by voxel, with everything that is made from them later.

The bytes of each label map begin with what it belongs to, so no other row can name the same blob.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from typing import Any, Final, cast

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heimdallr_ray.errors import BlobMissing
from heimdallr_ray.segmentation.engine import Segmentation, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import LeftOut, LeftOutCode, Plan
from heimdallr_ray.volume import LabelMap, ModelRef

FORM: Final = 1
"""Goes into the digest of the inputs too: labels that were kept in another form are not found."""
MAX_BLOB_BYTES: Final = 1 << 30
MAX_VOXELS: Final = 1 << 32
_LEVEL: Final = 3
_GZIP_WINDOW: Final = 31
_BAD_STREAM = cast("type[Exception]", cast(Any, isal_zlib).error)
_PASSING: Final = frozenset({LeftOutCode.OUT_OF_TIME, LeftOutCode.FAILED, LeftOutCode.MODEL_UNUSABLE})
"""What another run of the same inputs might do better."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Kept(_Model):
    """One label map."""

    task: str
    sha256: str
    dtype: str = Field(pattern=r"^uint(8|16)$")
    shape: tuple[int, int, int]
    order: str = Field(pattern=r"^[CF]$")
    """Of the voxels in memory: sums of floats depend on it."""
    affine_ras: tuple[tuple[float, float, float, float], ...]
    labels: dict[int, str]
    model: dict[str, Any]
    source_manifest_sha256: str


class _LeftOut(_Model):
    task: str
    code: LeftOutCode
    detail: str


class LabelsDocument(_Model):
    """What a row keeps of a run."""

    form: int
    run: tuple[str, ...]
    extra: tuple[str, ...]
    left_out: tuple[_LeftOut, ...]
    found_ml: dict[str, float]
    forward_s: float
    total_s: float
    label_maps: tuple[_Kept, ...]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> LabelsDocument:
        """What a row keeps.

        Raises:
            BlobMissing: it is of another form.
        """
        try:
            found = cls.model_validate(document)
        except ValidationError as error:
            raise BlobMissing(f"labels are kept in another form: {error.error_count()} differences") from error
        if found.form != FORM:
            raise BlobMissing(f"labels are kept in form {found.form}")
        return found


def blobs_in(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The digests of the blobs that a document of any form names."""
    found = cast("list[Mapping[str, Any]]", document.get("label_maps", []))
    return tuple(str(one["sha256"]) for one in found)


def worth_keeping(run: SegmentationRun) -> bool:
    """True where another run of the same inputs would give the same: nothing failed, ran out of time or of memory."""
    return not (
        any(run.memory_steps.values())
        or any(one.steps for one in run.segmentations.values())
        or any(one.code in _PASSING for one in run.plan.left_out)
    )


def encode(run: SegmentationRun, inputs_sha256: str, put: Callable[[bytes], str]) -> LabelsDocument:
    """The run as a document, its label maps handed to `put`, which gives the digest of each.

    Args:
        run: whose label maps lie on the grid of what will be measured.
        inputs_sha256: of everything that decided the labels; stands in the bytes.
        put: stores bytes.
    """
    return LabelsDocument(
        form=FORM,
        run=run.plan.run,
        extra=run.plan.extra,
        left_out=tuple(_LeftOut(task=one.task, code=one.code, detail=one.detail) for one in run.plan.left_out),
        found_ml=dict(run.found_ml),
        forward_s=run.timings.forward_s,
        total_s=run.timings.total_s,
        label_maps=tuple(_kept(task, made.label_map, inputs_sha256, put) for task, made in run.segmentations.items()),
    )


def decode(document: LabelsDocument, inputs_sha256: str, read: Callable[[str, int], bytes]) -> SegmentationRun:
    """The run, with no seconds of its own: what was paid for before costs nothing.

    Args:
        document: of `encode`.
        inputs_sha256: as it was given there.
        read: the bytes of a blob, at most so many.

    Raises:
        BlobMissing: a blob is gone, or holds other bytes than it was kept with.
        NotAVolume: labels that name nothing.
        Retryable: the store does not answer.
    """
    made: dict[str, Segmentation] = {}
    for one in document.label_maps:
        made[one.task] = Segmentation(one.task, _label_map(one, inputs_sha256, read), Timings())
    left_out = tuple(LeftOut(one.task, one.code, one.detail) for one in document.left_out)
    return SegmentationRun(made, Plan(document.run, left_out, document.extra), dict(document.found_ml), Timings())


def _kept(task: str, label_map: LabelMap, inputs_sha256: str, put: Callable[[bytes], str]) -> _Kept:
    array: NDArray[Any] = label_map.array
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    voxels = np.ascontiguousarray(array.T if order == "F" else array, dtype=array.dtype.newbyteorder("<"))
    packer = cast(Any, isal_zlib).compressobj(_LEVEL, wbits=_GZIP_WINDOW)
    head = packer.compress(_head(inputs_sha256, task))
    packed = b"".join((head, packer.compress(voxels.data), packer.flush()))
    i, j, k = array.shape
    a, b, c, d = ((float(v[0]), float(v[1]), float(v[2]), float(v[3])) for v in label_map.affine_ras)
    return _Kept(
        task=task,
        sha256=put(packed),
        dtype=array.dtype.name,
        shape=(i, j, k),
        order=order,
        affine_ras=(a, b, c, d),
        labels=dict(label_map.labels),
        model=asdict(label_map.model),
        source_manifest_sha256=label_map.source_manifest_sha256,
    )


def _label_map(one: _Kept, inputs_sha256: str, read: Callable[[str, int], bytes]) -> LabelMap:
    packed = read(one.sha256, MAX_BLOB_BYTES)
    if hashlib.sha256(packed).hexdigest() != one.sha256:
        raise BlobMissing(f"blob {one.sha256[:12]}: its bytes differ from its name")
    head = _head(inputs_sha256, one.task)
    dtype = np.dtype(one.dtype)
    voxels = prod(one.shape)
    if min(one.shape) < 1 or voxels > MAX_VOXELS:
        raise BlobMissing("labels of an impossible shape")
    wanted = len(head) + voxels * dtype.itemsize
    unpacker = cast(Any, isal_zlib).decompressobj(wbits=_GZIP_WINDOW)
    try:
        # One byte more than there may be: a longer stream is seen, and never unpacked.
        content = cast(bytes, unpacker.decompress(packed, max_length=wanted + 1))
    except (_BAD_STREAM, EOFError, ValueError) as error:
        raise BlobMissing(f"blob {one.sha256[:12]} cannot be unpacked") from error
    if len(content) != wanted or not content.startswith(head):
        raise BlobMissing(f"blob {one.sha256[:12]} belongs to other labels")
    flat = np.frombuffer(content, dtype.newbyteorder("<"), offset=len(head)).astype(dtype)
    array = flat.reshape(one.shape) if one.order == "C" else flat.reshape(one.shape[::-1]).T
    try:
        model = ModelRef(**one.model)
    except TypeError as error:
        raise BlobMissing("labels of a model that is described in another form") from error
    affine = np.array(one.affine_ras, dtype=np.float64)
    return LabelMap(array, affine, dict(one.labels), model, one.source_manifest_sha256)


def _head(inputs_sha256: str, task: str) -> bytes:
    return f"heimdallr labels {FORM} {inputs_sha256} {task}\n".encode()
