"""Siemens mosaics: the slices of one volume tiled into one image, and where their makers' private header says they lie.

The places are read from the measurement protocol that every such object carries, independently of any converter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.elements import Element, Walk
from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.read import DEFLATED_LE, data_set_offset, encoding_of
from heimdallr_ray.dicom.values import number_of
from heimdallr_ray.errors import NotAVolume

MAX_TILES: Final = 1024
_IMAGES_IN_MOSAIC: Final = ("SIEMENS MR HEADER", 0x0019, 0x0A)
_PROTOCOL: Final = ("SIEMENS CSA HEADER", 0x0029, 0x20)
_PROTOCOL_START: Final = b"### ASCCONV BEGIN"
_PROTOCOL_END: Final = b"### ASCCONV END"
_COUNT: Final = re.compile(rb"sSliceArray\.lSize\s*=\s*(\d{1,6})\b")
_CENTRE: Final = re.compile(rb"sSliceArray\.asSlice\[(\d{1,4})\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-+.\deE]{1,32})")
_AXES: Final = {b"Sag": 0, b"Cor": 1, b"Tra": 2}
"""Siemens' words for DICOM's x, y, z (left, posterior, superior)."""


@dataclass(frozen=True)
class Mosaic:
    """The tiles of one image.

    Attributes:
        rows: of one tile.
        columns: of one tile.
        firsts_lps: centre of the first pixel of each slice, `[slice, xyz]`, LPS mm, ascending along the normal.
        row_lps: from one column to the next, mm.
        column_lps: from one row to the next, mm.
    """

    rows: int
    columns: int
    firsts_lps: NDArray[np.float64]
    row_lps: NDArray[np.float64]
    column_lps: NDArray[np.float64]


def mosaic_of(content: bytes, header: Header) -> Mosaic:
    """Size and places of the slices in the mosaic `content`, whose header is `header`.

    A slice's position in the protocol is the centre of its field, which Siemens' images put at pixel (rows / 2,
    columns / 2). The position of the whole image (0020,0032) is that of a slice as large as the mosaic.

    Raises:
        NotAVolume: `mosaic`: the object does not say how many slices it holds, or where they lie.
        TruncatedObject, NotDicom, TooLarge: as `read.read_header`.
    """
    plane = header.plane
    if plane is None or plane.iop is None or plane.ipp is None or plane.pixel_spacing is None:
        raise NotAVolume("mosaic", "its position, orientation or pixel spacing is missing")
    images, protocol = _private(content, header)
    side = math.isqrt(images - 1) + 1
    rows, columns = (header.rows or 0) // side, (header.columns or 0) // side
    if rows * side != header.rows or columns * side != header.columns or min(rows, columns) < 1:
        raise NotAVolume("mosaic", f"{images} slices do not fit into {header.rows} x {header.columns} pixels")
    row, column, normal = geometry.axes_of(plane.iop)
    row_lps, column_lps = row * plane.pixel_spacing[1], column * plane.pixel_spacing[0]
    firsts = _centres(protocol, images) - columns / 2 * row_lps - rows / 2 * column_lps
    outer = side - 1
    tile_of_position = np.array(plane.ipp) + outer * columns / 2 * row_lps + outer * rows / 2 * column_lps
    if np.linalg.norm(firsts - tile_of_position, axis=1).min() > geometry.SAME_POSITION_MM:
        raise NotAVolume("mosaic", "its position and those of its slices contradict each other")
    order = np.argsort(firsts @ normal, kind="stable")
    return Mosaic(rows, columns, firsts[order], row_lps, column_lps)


def _private(content: bytes, header: Header) -> tuple[int, bytes]:
    if header.transfer_syntax_uid == DEFLATED_LE:
        raise NotAVolume("mosaic", "a deflated mosaic")
    found = dict(_private_values(content, header, (_IMAGES_IN_MOSAIC, _PROTOCOL)))
    count = found.get(_IMAGES_IN_MOSAIC, b"")
    # US, or a number in text where the object went through a system that did not know the element.
    images = int.from_bytes(count, "little") if len(count) == 2 else int(number_of(count) or 0)
    if not 1 <= images <= MAX_TILES:
        raise NotAVolume("mosaic", "it does not say how many slices it holds")
    text = found.get(_PROTOCOL, b"")
    start = text.rfind(_PROTOCOL_START)
    end = text.find(_PROTOCOL_END, max(start, 0))
    if start < 0 or end < 0:
        raise NotAVolume("mosaic", "the protocol that tells where its slices lie is missing")
    return images, text[start:end]


def _private_values(
    content: bytes, header: Header, wanted: tuple[tuple[str, int, int], ...]
) -> Iterator[tuple[tuple[str, int, int], bytes]]:
    """Private elements by creator, group and element within its block (PS3.5 section 7.8.1)."""
    walk, at = Walk(content, len(content)), data_set_offset(content)
    encoding = encoding_of(header.transfer_syntax_uid, content, at)
    groups = {group for _, group, _ in wanted}
    last = (max(groups) + 1) << 16
    found: dict[int, Element] = {}
    for element in walk.elements(at, len(content), encoding, stop=last):
        if element.tag >> 16 in groups and not element.undefined:
            found[element.tag] = element
    for creator, group, number in wanted:
        for block in range(0x10, 0x100):
            name = found.get(group << 16 | block)
            value = found.get(group << 16 | block << 8 | number)
            if name is not None and value is not None and walk.value(name).strip(b"\0 ") == creator.encode():
                yield (creator, group, number), walk.value(value)
                break


def _centres(protocol: bytes, images: int) -> NDArray[np.float64]:
    count = _COUNT.search(protocol)
    if count is None or int(count[1]) != images:
        raise NotAVolume("mosaic", "its protocol is of another number of slices")
    # A coordinate that is not written is zero.
    centres = np.zeros((images, 3))
    placed: set[int] = set()
    for match in _CENTRE.finditer(protocol):
        index, value = int(match[1]), number_of(match[3])
        if index < images and value is not None:
            centres[index, _AXES[match[2]]] = value
            placed.add(index)
    if images > 1 and len(placed) < images - 1:
        raise NotAVolume("mosaic", "its protocol does not tell where each slice lies")
    return centres
