"""Stored pixel values of one object, any common transfer syntax; sizes are compared before anything is allocated.

Frames are decoded one after the other: the RLE, JPEG-LS and JPEG 2000 codecs were measured to hold the interpreter lock
for a whole frame, so threads gain nothing.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.codestream import frames_of, jpeg2000_size, jpeg_size
from heimdallr_ray.dicom.header import Header, PixelLocation
from heimdallr_ray.dicom.isolated import DECODER_ERRORS, Options, decoded, decoded_in_child
from heimdallr_ray.dicom.read import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, data_set_offset
from heimdallr_ray.errors import BlobMissing, NotAVolume, TooLarge, TruncatedObject

RLE: Final = "1.2.840.10008.1.2.5"
JPEG: Final = {
    "1.2.840.10008.1.2.4.50": frozenset({0xC0}),
    "1.2.840.10008.1.2.4.51": frozenset({0xC0, 0xC1}),
    "1.2.840.10008.1.2.4.57": frozenset({0xC3}),
    "1.2.840.10008.1.2.4.70": frozenset({0xC3}),
    "1.2.840.10008.1.2.4.80": frozenset({0xF7}),
    "1.2.840.10008.1.2.4.81": frozenset({0xF7}),
}
"""JPEG baseline, extended, lossless, lossless first-order; JPEG-LS lossless, near-lossless (PS3.5 section A.4), with
the start-of-frame markers that each allows."""
JPEG2000: Final = frozenset(
    {
        *("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
        *("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"),
    }
)
"""JPEG 2000 and High-Throughput JPEG 2000 (PS3.5 sections A.4.4, A.4.9)."""
NATIVE: Final = frozenset({IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE, DEFLATED_LE})
SUPPORTED: Final = NATIVE | frozenset(JPEG) | JPEG2000 | {RLE}
"""Transfer syntaxes whose pixels can be decoded here."""


def check_pixels(header: Header) -> None:
    """Nothing happens where the header describes monochrome pixels within the bounds.

    Raises:
        NotAVolume: `no_pixels`, `colour`, `unsupported_pixels`, `unsupported_syntax`.
        TooLarge: rows, columns, frames or bytes beyond `limits`.
    """
    if header.transfer_syntax_uid not in SUPPORTED:
        raise NotAVolume("unsupported_syntax", f"transfer syntax {header.transfer_syntax_uid} cannot be decoded")
    if header.pixels is None or not header.rows or not header.columns:
        raise NotAVolume("no_pixels", "the object holds no image")
    if header.samples_per_pixel != 1 or header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise NotAVolume("colour", f"{header.samples_per_pixel} samples per pixel, {header.photometric}")
    if header.rows > limits.MAX_ROWS or header.columns > limits.MAX_COLUMNS:
        raise TooLarge(f"{header.rows} x {header.columns} pixels")
    if header.number_of_frames > limits.MAX_FRAMES or header.native_pixel_bytes > limits.MAX_PIXEL_BYTES_PER_OBJECT:
        raise TooLarge(f"{header.number_of_frames} frames, {header.native_pixel_bytes} bytes of pixels")
    shift = header.high_bit + 1 - header.bits_stored
    if (
        header.bits_allocated not in (8, 16, 32)
        or not 1 <= header.bits_stored <= header.bits_allocated
        or not 0 <= shift <= header.bits_allocated - header.bits_stored
        or not header.pixels.bulk
    ):
        raise NotAVolume("unsupported_pixels", f"{header.bits_stored} of {header.bits_allocated} bits")


def stored_pixels(source: bytes, header: Header) -> NDArray[Any]:
    """Stored values `[frame, row, column]`, 8, 16 or 32 bit, signed as the object says; a view where it can be.

    `header` must be that of `source`.

    Raises:
        NotAVolume: as `check_pixels`; `undecodable_pixels`.
        TooLarge: as `check_pixels`; a deflated object that inflates beyond its own pixels.
        TruncatedObject: fewer pixels than declared.
        BlobMissing: `source` is not the object that `header` was read from.
    """
    check_pixels(header)
    location, rows, columns = header.pixels, header.rows, header.columns
    if location is None or rows is None or columns is None:
        raise NotAVolume("no_pixels", "the object holds no image")
    shape = header.number_of_frames, rows, columns
    if header.transfer_syntax_uid == DEFLATED_LE:
        source = _inflated(source, header, location)
    if source[location.tag_offset : location.tag_offset + 4] not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        raise BlobMissing("the bytes are not those that were indexed")
    if header.transfer_syntax_uid in NATIVE:
        return _significant(_native(source, header, location, shape), header)
    return _significant(_compressed(source, header, location, shape), header)


def _dtype(header: Header) -> np.dtype[Any]:
    order = ">" if header.transfer_syntax_uid == EXPLICIT_BE else "<"
    return np.dtype(f"{order}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _native(source: bytes, header: Header, location: PixelLocation, shape: tuple[int, int, int]) -> NDArray[Any]:
    dtype = _dtype(header)
    if location.length is None:
        raise NotAVolume("undecodable_pixels", "uncompressed pixels without a length")
    if header.transfer_syntax_uid == EXPLICIT_BE and dtype.itemsize == 1:
        raise NotAVolume("unsupported_pixels", "8-bit pixels in big endian words")
    needed = header.native_pixel_bytes
    if min(location.length, len(source) - location.offset) < needed:
        raise TruncatedObject(f"pixel data hold less than the {needed} bytes of their image")
    stored = np.frombuffer(source, dtype, needed // dtype.itemsize, location.offset).reshape(shape)
    return stored if dtype.isnative else stored.astype(dtype.newbyteorder("="))


def _significant(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    """Bits above Bits Stored may hold overlays (PS3.5 section 8.1.1); copied only where there are any."""
    shift = header.high_bit + 1 - header.bits_stored
    native = header.transfer_syntax_uid in NATIVE
    if native and shift:
        stored = stored >> shift
    spare = header.bits_allocated - header.bits_stored
    if not spare or not native or not stored.size:
        return stored
    low, high = int(stored.min()), int(stored.max())
    if header.signed:
        bound = 1 << (header.bits_stored - 1)
        return (stored << spare) >> spare if low < -bound or high >= bound else stored
    mask = (1 << header.bits_stored) - 1
    return stored & stored.dtype.type(mask) if high > mask else stored


def _inflated(source: bytes, header: Header, location: PixelLocation) -> bytes:
    needed = location.offset + header.native_pixel_bytes
    at = data_set_offset(source)
    if needed > limits.MAX_INFLATED_BYTES or needed > (len(source) - at) * limits.MAX_INFLATE_RATIO:
        raise TruncatedObject(f"{len(source)} deflated bytes cannot hold {needed}")
    try:
        found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(source[at:], needed)
    except zlib.error as error:
        raise NotAVolume("undecodable_pixels", "the deflated data set is damaged") from error
    if len(found) < needed:
        raise TruncatedObject(f"{len(found)} of {needed} inflated bytes")
    return found


def _compressed(source: bytes, header: Header, location: PixelLocation, shape: tuple[int, int, int]) -> NDArray[Any]:
    if location.length is not None:
        raise NotAVolume("undecodable_pixels", "compressed pixels that are not encapsulated")
    if header.native_pixel_bytes > limits.MAX_COMPRESSION_RATIO * max(1, len(source) - location.offset):
        raise TooLarge(f"{len(source)} compressed bytes cannot hold {header.native_pixel_bytes}")
    frames = frames_of(source, location.offset, header.number_of_frames)
    stored = np.empty(shape, _dtype(header).newbyteorder("="))
    for index, frame in enumerate(frames):
        stored[index] = _decoded_frame(frame, header, shape[1:])
    return stored


_PLUGINS: Final = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "gdcm",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
"""The one decoder per syntax (pylibjpeg for the rest), named so that what else is installed changes nothing."""


def _decoded_frame(frame: bytes, header: Header, shape: tuple[int, int]) -> NDArray[Any]:
    syntax = header.transfer_syntax_uid
    if syntax != RLE:
        size = jpeg2000_size(frame) if syntax in JPEG2000 else jpeg_size(frame, JPEG[syntax])
        if (size.rows, size.columns, size.components) != (*shape, 1):
            raise NotAVolume("undecodable_pixels", f"the compressed image is {size.rows} x {size.columns}")
        if not 1 <= size.precision <= header.bits_allocated:
            raise NotAVolume("undecodable_pixels", f"{size.precision} bits in samples of {header.bits_allocated}")
    options: Options = {
        "rows": shape[0],
        "columns": shape[1],
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric or "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    plugin = _PLUGINS.get(syntax, "pylibjpeg")
    try:
        found = (decoded_in_child if plugin == "gdcm" else decoded)(frame, syntax, plugin, options)
    except DECODER_ERRORS as error:
        raise NotAVolume("undecodable_pixels", f"{type(error).__name__} from the decoder") from error
    if found.shape != shape:
        raise NotAVolume("undecodable_pixels", f"the decoder returned shape {found.shape}")
    return found
