"""The last resort for a series that the assembler refuses: the converter dcm2niix, where it knows and does not guess.

Its volume is taken only if it places every slice where the object's own header says that it lies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import geometry, limits
from heimdallr_ray.dicom.assemble import header_attributes, manifest_sha256
from heimdallr_ray.dicom.dcm2niix import Converted, run
from heimdallr_ray.dicom.decisions import Selection
from heimdallr_ray.dicom.elements import Walk
from heimdallr_ray.dicom.grouping import MAX_PHASES, IndexedInstance, Series
from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.mosaic import mosaic_of
from heimdallr_ray.dicom.read import DEFLATED_LE, data_set_offset, encoding_of
from heimdallr_ray.dicom.refusal import after_refusal
from heimdallr_ray.dicom.values import Values
from heimdallr_ray.errors import NotAVolume, Rejected, TooLarge
from heimdallr_ray.volume import Volume, VolumeSource

_log = logging.getLogger(__name__)

CODES: Final = frozenset({"mosaic", "multiframe_without_groups"})
"""Refusals of the assembler for which the converter may know more: private headers that it reads and we do not."""

POSITION_TOLERANCE_MM: Final = 0.01
"""Distance by which a slice's place by the converter may differ from that by the header."""


@dataclass(frozen=True)
class _Known:
    """What the header tells, LPS mm.

    Attributes:
        shape: columns, rows, slices.
        row: from one column to the next.
        column: from one row to the next.
        firsts: centre of the first pixel of some slices, `[slice, xyz]`.
        spacing_mm: between slices.
    """

    shape: tuple[int, int, int]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    firsts: NDArray[np.float64]
    spacing_mm: float


def fallback_can_read(code: str) -> bool:
    """True where `convert` may make a volume of a series that the assembler refuses by `code`."""
    return code in CODES


def convert(series: Series, read_bytes: Callable[[str], bytes], code: str) -> Volume:
    """The volume of a series that the assembler refuses by `code`, by dcm2niix; flag `dcm2niix`.

    The array is `[i, j, k]` = [column, row, slice], slices ascending along the normal, as `assemble`'s. Of a mosaic
    series of a few time points the first is taken (flag `time_points:n`). `source.attributes` name the converter
    (`backend`, `backend_version`).

    Raises:
        NotAVolume: `code` again, with what the converter or this module found wrong; `four_d`; `converter_disagrees`:
            header and converter place the slices differently.
        TooLarge: more bytes than the converter is given.
        TruncatedObject, NotDicom: the object is damaged.
        DecoderUnavailable: the converter does not start.
    """
    if not fallback_can_read(code):
        raise NotAVolume(code, "no other reader is asked for this")
    instance = _only_instance(series, code)
    if max(instance.size, instance.header.native_pixel_bytes) > limits.CONVERTER_INPUT_BYTES:
        raise TooLarge(f"an object of {instance.size} bytes for the converter")
    content = read_bytes(instance.locator)
    known = _of_mosaic(content, instance.header) if code == "mosaic" else _of_frames(content, instance.header, code)
    made = run(content, instance.header.native_pixel_bytes, code)
    array, affine = _placed(made, known)
    return Volume(array, affine, _source(series, instance, made, affine), _flags(series))


def convert_first(selection: Selection, read_bytes: Callable[[str], bytes]) -> tuple[Selection, Volume | None]:
    """The volume of the first series of `selection` that the converter reads without a doubt.

    Each one before it is refused in the selection, by the code of what was wrong with it; None where all are.

    Raises:
        DecoderUnavailable: the converter is not installed, or does not start; that says nothing of any series.
        BlobMissing: as `read_bytes`.
    """
    for _ in range(len(selection.fallbacks) + 1):
        if selection.chosen is None:
            break
        try:
            return selection, convert(selection.chosen, read_bytes, selection.fallback_code)
        except Rejected as error:
            code = error.reason if isinstance(error, NotAVolume) else error.code
            _log.info("series.not_converted", extra={"code": code})
            selection = after_refusal(selection, code, error.detail)
    return selection, None


def _only_instance(series: Series, code: str) -> IndexedInstance:
    count = len(series.instances)
    if count == 1:
        return series.instances[0]
    if code != "mosaic":
        raise NotAVolume(code, f"{count} objects without places for their frames")
    if count > MAX_PHASES:
        raise NotAVolume("four_d", f"{count} mosaics one after the other")
    return series.instances[0]


def _flags(series: Series) -> tuple[str, ...]:
    found: list[str] = []
    found.append("dcm2niix")
    if len(series.instances) > 1:
        found.append(f"time_points:{len(series.instances)}")
    return tuple(found)


def _of_mosaic(content: bytes, header: Header) -> _Known:
    tiles = mosaic_of(content, header)
    count = len(tiles.firsts_lps)
    extent = float(np.linalg.norm(tiles.firsts_lps[-1] - tiles.firsts_lps[0]))
    spacing = extent / (count - 1) if count > 1 else header.spacing_between_slices_mm or 0.0
    return _Known((tiles.columns, tiles.rows, count), tiles.row_lps, tiles.column_lps, tiles.firsts_lps, spacing)


def _of_frames(content: bytes, header: Header, code: str) -> _Known:
    """Of frames without places of their own the data set itself may tell that of the first, and their distance."""
    if header.transfer_syntax_uid == DEFLATED_LE:
        raise NotAVolume(code, "a deflated multi-frame object")
    walk, at = Walk(content, len(content)), data_set_offset(content)
    encoding = encoding_of(header.transfer_syntax_uid, content, at)
    tags = {0x00200032, 0x00200037, 0x00280030}
    found = Values(walk, {one.tag: one for one in walk.elements(at, len(content), encoding) if one.tag in tags})
    first, iop, spacing = found.position(0x00200032), found.cosines(0x00200037), found.pair(0x00280030, "pixel_spacing")
    between = header.spacing_between_slices_mm
    if first is None or iop is None or spacing is None or between is None:
        raise NotAVolume(code, "nothing in the header tells where its frames lie")
    row, column, _ = geometry.axes_of(iop)
    shape = header.columns or 0, header.rows or 0, header.number_of_frames
    return _Known(shape, row * spacing[1], column * spacing[0], np.array([first]), between)


def _placed(made: Converted, known: _Known) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Array `[column, row, slice]`, slices ascending along the normal, and its affine, compared with what is known.

    Raises:
        NotAVolume: `converter_disagrees`.
    """
    columns, rows, count = known.shape
    if made.array.shape != known.shape:
        raise NotAVolume("converter_disagrees", f"{made.array.shape} voxels instead of {known.shape}")
    wanted = np.array([known.row, known.column, np.cross(known.row, known.column)]) @ geometry.LPS_TO_RAS[:3, :3]
    array, affine = made.array, made.affine_ras.copy()
    for axis, direction in enumerate(wanted):
        if float(affine[:3, axis] @ direction) < 0:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    lps = geometry.LPS_TO_RAS @ affine
    step = float(np.linalg.norm(lps[:3, 2]))
    if count > 1 and abs(step - known.spacing_mm) * (count - 1) > POSITION_TOLERANCE_MM:
        raise NotAVolume("converter_disagrees", f"slices {step:.3f} mm apart instead of {known.spacing_mm:.3f} mm")
    corners = np.array([(i, j) for i in (0, columns - 1) for j in (0, rows - 1)])
    planes = lps[:3, 3] + np.arange(count)[:, np.newaxis] * lps[:3, 2]
    offsets = corners @ lps[:3, :2].T
    expected = corners @ np.array([known.row, known.column])
    for first in known.firsts:
        off = np.linalg.norm(planes[:, np.newaxis] + offsets - (first + expected), axis=2).max(axis=1)
        if float(off.min()) > POSITION_TOLERANCE_MM:
            raise NotAVolume("converter_disagrees", f"a slice lies {off.min():.2f} mm beside its place by the header")
    return np.asfortranarray(array), affine


def _source(series: Series, instance: IndexedInstance, made: Converted, affine: NDArray[np.float64]) -> VolumeSource:
    header = instance.header
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return VolumeSource(
        modality=series.modality,
        study_uid=header.study_uid or "",
        series_uid=series.uid,
        frame_of_reference_uid=header.frame_of_reference_uid or "",
        manifest_sha256=manifest_sha256([instance]),
        synthetic=any(one.header.synthetic for one in series.instances),
        attributes={
            **header_attributes(series, header),
            "slice_spacing_mm": round(abs(float(affine[:3, 2] @ normal / np.linalg.norm(normal))), 6),
            "backend": "dcm2niix",
            "backend_version": made.version,
        },
    )
