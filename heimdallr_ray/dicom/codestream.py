"""What a compressed frame says about its own size, read before any decoder allocates for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.elements import ITEM, SEQUENCE_END, UNDEFINED
from heimdallr_ray.errors import NotAVolume, TooLarge, TruncatedObject

_SIZ: Final = b"\xff\x4f\xff\x51"
_MAX_MARKERS: Final = 512
"""Marker segments before the frame header of a JPEG; application data come in a few dozen at most."""


@dataclass(frozen=True)
class CodestreamSize:
    """Rows, columns and components that a decoder will allocate for."""

    rows: int
    columns: int
    components: int
    precision: int
    """Bits per sample."""


def jpeg2000_size(frame: bytes) -> CodestreamSize:
    """From the SIZ marker segment (ISO/IEC 15444-1 A.5.1), with or without a JP2 container around it.

    Raises:
        NotAVolume: `undecodable_pixels`: no such marker.
    """
    at = frame.find(_SIZ, 0, 4096)
    if at < 0 or len(frame) < at + 43:
        raise NotAVolume("undecodable_pixels", "no JPEG 2000 codestream")
    x, y, x0, y0 = struct.unpack_from(">4I", frame, at + 8)
    components, depth = struct.unpack_from(">HB", frame, at + 40)
    return CodestreamSize(y - y0, x - x0, components, (depth & 0x7F) + 1)


def jpeg_size(frame: bytes, processes: frozenset[int]) -> CodestreamSize:
    """From the SOF marker segment of JPEG or JPEG-LS (ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2).

    Args:
        frame: from SOI to EOI.
        processes: the SOF markers that the transfer syntax allows.

    Raises:
        NotAVolume: `undecodable_pixels`: no such marker, or one of another coding process.
    """
    at = 2
    for _ in range(_MAX_MARKERS):
        if not frame.startswith(b"\xff\xd8") or at + 10 > len(frame) or frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if marker not in processes:
                raise NotAVolume("undecodable_pixels", f"JPEG process {marker:#x} in another transfer syntax")
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return CodestreamSize(rows, columns, components, precision)
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise NotAVolume("undecodable_pixels", "no JPEG frame header")


def fragments(source: bytes, offset: int) -> tuple[list[int], list[bytes]]:
    """Basic offset table and fragments of encapsulated pixel data that start at `offset` (PS3.5 section A.4).

    Raises:
        TruncatedObject: the object ends before the sequence delimiter.
        NotAVolume: `undecodable_pixels`: something else than fragments.
        TooLarge: more fragments than `limits.MAX_ELEMENTS`.
    """
    found: list[bytes] = []
    for _ in range(limits.MAX_ELEMENTS):
        if offset + 8 > len(source):
            raise TruncatedObject("the object ends inside its compressed pixels")
        group, element, length = struct.unpack_from("<HHI", source, offset)
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            table = found[0] if found else b""
            return list(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4])), found[1:]
        if tag != ITEM or length == UNDEFINED:
            raise NotAVolume("undecodable_pixels", "compressed pixels are not a list of fragments")
        if offset + 8 + length > len(source):
            raise TruncatedObject("the object ends inside its compressed pixels")
        found.append(source[offset + 8 : offset + 8 + length])
        offset += 8 + length
    raise TooLarge(f"more than {limits.MAX_ELEMENTS} fragments")


def frames_of(source: bytes, offset: int, number_of_frames: int) -> list[bytes]:
    """The compressed bytes of each frame.

    Raises:
        TruncatedObject, NotAVolume, TooLarge: as `fragments`; `undecodable_pixels` where fragments and frames do not
            fit each other.
    """
    table, parts = fragments(source, offset)
    if number_of_frames == 1 and parts:
        return [b"".join(parts)]
    if len(parts) == number_of_frames:
        return parts
    if len(parts) < number_of_frames:
        raise TruncatedObject(f"{len(parts)} fragments for {number_of_frames} frames")
    starts: dict[int, int] = {}
    at = 0
    for index, part in enumerate(parts):
        starts[at] = index
        at += 8 + len(part)
    firsts = [starts[start] for start in table if start in starts]
    if len(firsts) != number_of_frames or firsts != sorted(set(firsts)) or firsts[0] != 0:
        raise NotAVolume("undecodable_pixels", "fragments do not fit the number of frames")
    bounds = [*firsts[1:], len(parts)]
    return [b"".join(parts[first:last]) for first, last in zip(firsts, bounds, strict=True)]
