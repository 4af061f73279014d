"""What must hold by the headers alone before pixels are read; selection and assembly ask the same questions."""

from __future__ import annotations

from typing import Final

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.decode import check_pixels
from heimdallr_ray.dicom.grouping import Kind, Series, Slice, slices_of
from heimdallr_ray.errors import NotAVolume, TooLarge

_UNREADABLE: Final = ("rescale_slope", "rescale_intercept", "pixel_representation", "number_of_frames")
"""Fields whose absence has a meaning and whose damage must therefore not pass for absence."""


def checked_slices(series: Series) -> list[Slice]:
    """Every image of the series with its plane, where the headers promise values that can be computed exactly.

    Raises:
        NotAVolume: `localizer`, `not_volume_sop`, `mosaic`, `modality_lut`, `mixed_sizes`, `bad_rescale`, those of
            `decode.check_pixels` and of `grouping.slices_of`.
        TooLarge: pixels of one object or of all beyond `limits`.
    """
    if series.kind is not Kind.STACK:
        raise NotAVolume("localizer" if series.kind is Kind.LOCALIZER else "not_volume_sop")
    first = series.header
    total = 0
    for instance in series.instances:
        header = instance.header
        check_pixels(header)
        if "MOSAIC" in header.image_type:
            raise NotAVolume("mosaic", "several slices in one image")
        if header.has_modality_lut:
            raise NotAVolume("modality_lut", "values need a lookup table")
        if (header.rows, header.columns) != (first.rows, first.columns):
            raise NotAVolume("mixed_sizes", "slices differ in rows or columns")
        unreadable = [name for name in _UNREADABLE if name in header.malformed]
        if unreadable:
            raise NotAVolume("bad_rescale", f"unreadable: {', '.join(unreadable)}")
        total += header.native_pixel_bytes
    slices = slices_of(series)
    for item in slices:
        slope, intercept = rescale_of(item)
        if series.modality == "CT" and (item.plane.slope is None or item.plane.intercept is None):
            # Type 1 in the CT Image module (PS3.3 section C.8.2.1): without them values are not Hounsfield units.
            raise NotAVolume("bad_rescale", "a CT image without rescale slope or intercept")
        if slope == 0 or max(abs(slope), abs(intercept)) > 1e7:
            raise NotAVolume("bad_rescale", f"rescale {slope} x + {intercept}")
    frame_bytes = 4 * (first.rows or 0) * (first.columns or 0)
    bytes_needed = max(total, frame_bytes * len(slices))
    if len(slices) > limits.MAX_FRAMES_PER_SERIES or bytes_needed > limits.MAX_PIXEL_BYTES_PER_SERIES:
        raise TooLarge(f"{len(slices)} slices, {bytes_needed} bytes of pixels")
    return slices


def rescale_of(item: Slice) -> tuple[float, float]:
    """Slope and intercept (PS3.3 section C.11.1); 1 and 0 where the object has none."""
    slope, intercept = item.plane.slope, item.plane.intercept
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
