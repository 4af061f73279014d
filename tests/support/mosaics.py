"""Siemens mosaics built in a test: tiles, and the private headers that say how many there are and where they lie."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from tests.support.dicom import ct_datasets, new_uid, set_pixels


def mosaic_dataset(
    slices: np.ndarray,
    first_lps: Sequence[float],
    row: Sequence[float],
    column: Sequence[float],
    *,
    pixel_mm: float = 3.0,
    spacing_mm: float = 5.0,
    protocol_shift_mm: float = 0.0,
    time_point: int = 1,
) -> Dataset:
    """One volume `[slice, row, column]` whose first pixel lies at `first_lps`; slices follow along row x column.

    `protocol_shift_mm` moves the last slice in the protocol only, against all else.
    """
    count, rows, columns = slices.shape
    side = math.ceil(math.sqrt(count))
    picture = np.zeros((rows * side, columns * side), np.uint16)
    for k, tile in enumerate(slices):
        picture[k // side * rows : (k // side + 1) * rows, k % side * columns : (k % side + 1) * columns] = tile
    (made,) = ct_datasets(1)
    made = new_uid(made, "mosaic", str(time_point))
    for keyword in ("KVP", "ConvolutionKernel", "RescaleSlope", "RescaleIntercept", "RescaleType"):
        delattr(made, keyword)
    made.SOPClassUID, made.Modality, made.Manufacturer = MRImageStorage, "MR", "SIEMENS"
    made.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    made.ProtocolName, made.MagneticFieldStrength, made.SeriesDescription = "epi", "3", "epi"
    made.PatientPosition = "HFS"
    made.AcquisitionNumber = made.InstanceNumber = time_point
    made.AcquisitionTime = f"10111{time_point % 10}"
    x, y = np.array(row, float), np.array(column, float)
    normal = np.cross(x, y)
    first = np.array(first_lps, float)
    made.ImageOrientationPatient = [f"{value:.8f}" for value in (*row, *column)]
    made.ImagePositionPatient = [
        f"{value:.6f}" for value in first - (side - 1) * pixel_mm * (columns / 2 * x + rows / 2 * y)
    ]
    made.PixelSpacing, made.SpacingBetweenSlices = [str(pixel_mm)] * 2, str(spacing_mm)
    made.SliceThickness = str(spacing_mm)
    set_pixels(made, picture)
    centre = first + pixel_mm * (columns / 2 * x + rows / 2 * y)
    centres = [centre + k * spacing_mm * normal for k in range(count)]
    centres[-1] = centres[-1] + protocol_shift_mm * normal
    block = made.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0A, "US", count)
    block = made.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x08, "CS", "IMAGE NUM 4")
    block.add_new(0x10, "OB", _csa({"NumberOfImagesInMosaic": [str(count)], "SliceNormalVector": _numbers(normal)}))
    block.add_new(0x18, "CS", "MR")
    block.add_new(0x20, "OB", _csa({"MrPhoenixProtocol": [_protocol(centres)]}))
    return made


def _numbers(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:.8f}" for value in values]


def _protocol(centres: Sequence[np.ndarray]) -> str:
    lines = ["### ASCCONV BEGIN ###", f"sSliceArray.lSize\t = \t{len(centres)}"]
    for k, centre in enumerate(centres):
        for name, value in zip(("Sag", "Cor", "Tra"), centre, strict=True):
            # As the scanner: a coordinate of zero is not written.
            if value:
                lines.append(f"sSliceArray.asSlice[{k}].sPosition.d{name}\t = \t{value:.8f}")
    return "\n".join([*lines, "### ASCCONV END ###", ""])


def _csa(tags: dict[str, list[str]]) -> bytes:
    """Siemens' private "CSA2" form: named tags with items of text."""
    found = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, items in tags.items():
        found += name.encode().ljust(64, b"\0")
        found += struct.pack("<i4siii", len(items), b"FD\0\0", 4, len(items), 77)
        for item in items:
            value = item.encode() + b"\0"
            found += struct.pack("<4i", len(value), len(value), 77, len(value))
            found += value.ljust(-(-len(value) // 4) * 4, b"\0")
    return found
