"""`assemble`: one series into one Volume, exactly, or a named refusal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.checks import checked_slices, rescale_of
from heimdallr_ray.dicom.decode import stored_ahead, stored_pixels
from heimdallr_ray.dicom.grouping import IndexedInstance, Series, Slice, stack_of
from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.resample import resampled
from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.volume import Volume, VolumeSource, shear_of

_INT16: Final = np.iinfo(np.int16)
Progress = Callable[[int, int], None]


def assemble(
    series: Series,
    read_bytes: Callable[[str], bytes],
    *,
    progress: Progress | None = None,
    resample: bool = False,
) -> Volume:
    """The volume of one series: rescaled values on a regular grid.

    The array is `[i, j, k]` = [column, row, slice], slices ascending along the normal, in Fortran order: each
    `array[:, :, k]` is one contiguous block, and writing NIfTI needs no copy. It is int16 where every rescaled value
    is an integer in its range, float32 otherwise. Values are those of the modality (CT: Hounsfield units); MONOCHROME1
    is a matter of display and leaves them as they are (flag `monochrome1`); padding keeps its stored value, rescaled,
    and is named in `source.attributes["padding_value"]`.

    Up to `geometry.MAX_MISSING_SLICES` gaps are filled by linear interpolation (flag `missing_slices:n`, places in
    `source.attributes["interpolated_slices"]`). Slices repeated with equal pixels count once (`duplicate_slices:n`).

    Unevenly spaced slices, and stacks with more gaps, are refused. With `resample` they become a regular grid as fine
    as their smallest distance, linear between neighbouring slices along their normal, a tilt kept as shear, with the
    flag `variable_spacing:smallest-largest` in mm, on which volumes are not counted; `Volume.slice_places` keeps the
    true place of each slice and `volume.labels_on_slices` takes labels back.

    Args:
        series: from `group`.
        read_bytes: the bytes of a locator; called once per instance, in slice order.
        progress: told (slices done, slices in all).
        resample: accept uneven spacing as said above.

    Raises:
        NotAVolume: `reason` names the rule; see `checks.checked_slices`, `grouping.stack_of`, `geometry.stack`,
            `decode.stored_pixels`; and `conflicting_duplicates`.
        TooLarge, TruncatedObject, BlobMissing: as `decode.stored_pixels`.
    """
    slices = checked_slices(series)
    found, iop, spacing = stack_of(slices, resample=resample)
    affine = geometry.affine_ras(found, iop, spacing)
    ordered = [slices[index] for index in found.order]
    pixels = _PixelReader(read_bytes)
    for kept, dropped in sorted(found.duplicates, key=lambda pair: [slices[index].instance.locator for index in pair]):
        if not np.array_equal(pixels.rescalable(slices[kept]), pixels.rescalable(slices[dropped])):
            raise NotAVolume("conflicting_duplicates", "two slices at one position differ")
    buffer = _filled(ordered, found, pixels, progress)
    if found.places:
        along_i, along_j = shear_of(affine)
        buffer = resampled(buffer, found.places, (along_j, along_i))
    else:
        _interpolate(buffer, found)
    return Volume(
        array=buffer.transpose(2, 1, 0),
        affine_ras=affine,
        source=_source(series, ordered, found),
        flags=(*found.flags, *_flags(slices)),
        slice_places=found.places,
    )


def manifest_sha256(instances: Sequence[IndexedInstance], frames: Mapping[str, Sequence[int]] | None = None) -> str:
    """Digest over the instances in slice order, one line each: the digest of the data set, else the locator.

    Where only some `frames` (by locator) of an instance were used, their numbers stand behind it. The same images give
    the same digest, whenever and by whichever door they came.
    """
    lines = [
        " ".join([one.content_sha256 or one.locator, *map(str, (frames or {}).get(one.locator, ()))])
        for one in instances
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _frames(series: Series) -> dict[str, tuple[int, ...]]:
    if not series.frame_sets:
        return {}
    pairs = zip(series.instances, series.frame_sets, strict=True)
    return {one.locator: used for one, used in pairs if len(used) < one.header.number_of_frames}


class _PixelReader:
    """Stored pixels per slice; frames of the last two objects are kept, so that comparing these decodes them once."""

    def __init__(self, read_bytes: Callable[[str], bytes]) -> None:
        self._read = read_bytes
        self._frames: dict[str, NDArray[Any]] = {}

    def stored(self, item: Slice) -> NDArray[Any]:
        """Stored values `[row, column]` of one slice."""
        locator = item.instance.locator
        if locator not in self._frames:
            while len(self._frames) > 1:
                del self._frames[next(iter(self._frames))]
            self._frames[locator] = stored_pixels(self._read(locator), item.instance.header)
        found: NDArray[Any] = self._frames[locator][item.plane.frame]
        return found

    def each(self, ordered: Sequence[Slice]) -> Iterator[tuple[Slice, NDArray[Any]]]:
        """Every slice with its stored values, in order; compressed objects are decoded ahead, side by side."""
        runs = [list(run) for _, run in groupby(ordered, key=lambda item: item.instance.locator)]
        wanted = [(run[0].instance.locator, run[0].instance.header) for run in runs]
        for run, frames in zip(runs, stored_ahead(wanted, self._read), strict=True):
            for item in run:
                yield item, frames[item.plane.frame]

    def rescalable(self, item: Slice) -> NDArray[np.float64]:
        """Rescaled values `[row, column]` in float64."""
        slope, intercept = rescale_of(item)
        return self.stored(item) * np.float64(slope) + intercept


def _filled(
    ordered: Sequence[Slice], found: geometry.Stack, pixels: _PixelReader, progress: Progress | None
) -> NDArray[Any]:
    """`[slice, row, column]`; int16 where rescale is integer, float32 from the first value that does not fit.

    Slices come object by object, each decoded once, wherever its frames lie in the stack.
    """
    first = ordered[0].instance.header
    shape = found.grid_index[-1] + 1, first.rows or 0, first.columns or 0
    integer = all(value == int(value) for item in ordered for value in rescale_of(item))
    buffer: NDArray[Any] = np.empty(shape, np.int16 if integer else np.float32)
    first_use: dict[str, int] = {}
    for item in ordered:
        first_use.setdefault(item.instance.locator, len(first_use))
    by_object = sorted(zip(found.grid_index, ordered, strict=True), key=lambda one: first_use[one[1].instance.locator])
    each = zip((place for place, _ in by_object), pixels.each([item for _, item in by_object]), strict=True)
    for done, (place, (item, stored)) in enumerate(each, start=1):
        slope, intercept = rescale_of(item)
        if buffer.dtype == np.int16 and not _rescale_int16(stored, int(slope), int(intercept), buffer[place], item):
            # Places that are not filled yet are, later.
            buffer = buffer.astype(np.float32)
        if buffer.dtype == np.float32:
            buffer[place] = stored * np.float64(slope) + intercept
        if progress is not None:
            progress(done, len(ordered))
    return buffer


def _rescale_int16(stored: NDArray[Any], slope: int, intercept: int, out: NDArray[Any], item: Slice) -> bool:
    """True where `out` holds slope x stored + intercept exactly; False where that does not fit into int16."""
    header: Header = item.instance.header
    bits = header.bits_stored
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if header.signed else (0, (1 << bits) - 1)
    if not _fits(low, high, slope, intercept):
        low, high = int(stored.min()), int(stored.max())
        if not _fits(low, high, slope, intercept):
            return False
    if slope == 1 and high <= _INT16.max and low >= _INT16.min and _INT16.min <= intercept <= _INT16.max:
        narrow = stored.view(np.int16) if stored.dtype == np.uint16 else stored.astype(np.int16, copy=False)
        np.add(narrow, np.int16(intercept), out=out)
    else:
        np.copyto(out, stored.astype(np.int64) * slope + intercept, casting="unsafe")
    return True


def _fits(low: int, high: int, slope: int, intercept: int) -> bool:
    ends = low * slope + intercept, high * slope + intercept
    return _INT16.min <= min(ends) and max(ends) <= _INT16.max


def _interpolate(buffer: NDArray[Any], found: geometry.Stack) -> None:
    """Missing places become the linear blend of their nearest neighbours, rounded for int16."""
    present = found.grid_index
    for place in found.missing:
        below = max(index for index in present if index < place)
        above = min(index for index in present if index > place)
        weight = (place - below) / (above - below)
        blend = buffer[below].astype(np.float64) * (1 - weight) + buffer[above].astype(np.float64) * weight
        buffer[place] = np.rint(blend) if buffer.dtype == np.int16 else blend


def _flags(slices: Sequence[Slice]) -> tuple[str, ...]:
    headers = [item.instance.header for item in slices]
    found: list[str] = []
    if any(header.photometric == "MONOCHROME1" for header in headers):
        found.append("monochrome1")
    if len({rescale_of(item) for item in slices}) > 1:
        found.append("per_slice_rescale")
    if any(item.plane.slope is None or item.plane.intercept is None for item in slices):
        found.append("no_rescale")
    return tuple(found)


def _source(series: Series, ordered: Sequence[Slice], found: geometry.Stack) -> VolumeSource:
    header = ordered[0].instance.header
    instances = {item.instance.locator: item.instance for item in ordered}
    padding = header.pixel_padding
    slope, intercept = rescale_of(ordered[0])
    return VolumeSource(
        modality=series.modality,
        study_uid=header.study_uid or "",
        series_uid=series.uid,
        frame_of_reference_uid=header.frame_of_reference_uid or "",
        manifest_sha256=manifest_sha256(list(instances.values()), _frames(series)),
        synthetic=any(instance.header.synthetic for instance in series.instances),
        attributes={
            **header_attributes(series, header),
            "slice_spacing_mm": round(found.spacing_mm, 6),
            "largest_gap_mm": round(found.gaps_mm[1], 6),
            "padding_value": None if padding is None else padding * slope + intercept,
            "interpolated_slices": ",".join(map(str, found.missing)),
        },
    )


def header_attributes(series: Series, header: Header) -> dict[str, str | float | int | None]:
    """What `VolumeSource.attributes` hold of the first slice's header."""
    return {
        "kvp": header.kvp,
        "kernel": header.kernel,
        "slice_thickness_mm": header.slice_thickness_mm,
        "contrast_agent": header.contrast_agent,
        "manufacturer": header.manufacturer,
        "body_part": header.body_part,
        "series_description": header.series_description,
        "series_number": header.series_number,
        "image_type": "\\".join(header.image_type),
        "patient_sex": header.patient_sex,
        "patient_age_years": header.patient_age_years,
        "patient_size_m": header.patient_size_m,
        "patient_weight_kg": header.patient_weight_kg,
        "phase": series.phase,
    }
