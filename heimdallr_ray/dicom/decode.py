"""Stored pixel values of objects, any common transfer syntax; sizes are compared before anything is allocated.

Everything compressed is decoded in child processes (`isolated`), several frames per request and several children side
by side: the codecs hold the interpreter lock for a whole frame, so threads would gain nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.codestream import frames_of, jpeg2000_size, jpeg_size
from heimdallr_ray.dicom.decoder import INFLATE, Job, Options
from heimdallr_ray.dicom.header import Header, PixelLocation
from heimdallr_ray.dicom.isolated import Frame, decoded_frames, pool
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
COMPRESSED: Final = frozenset(JPEG) | JPEG2000 | {RLE}
SUPPORTED: Final = NATIVE | COMPRESSED
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
        TooLarge: as `check_pixels`; a compressed object that cannot hold what it claims.
        TruncatedObject: fewer pixels than declared.
        BlobMissing: `source` is not the object that `header` was read from.
        DecoderUnavailable: no child process can be started.
    """
    if header.transfer_syntax_uid in NATIVE:
        return _native(source, header)
    frames = _frames(source, header)
    stored = np.empty((len(frames), *frames[0][1].shape), frames[0][1].dtype)

    def keep(index: int, pixels: NDArray[Any]) -> None:
        stored[index] = pixels

    decoded_frames(frames, keep)
    return stored


def stored_ahead(wanted: Iterable[tuple[str, Header]], read_bytes: Callable[[str], bytes]) -> Generator[NDArray[Any]]:
    """`stored_pixels` of each object of `wanted` (locator, header), in order.

    Compressed single-frame objects are decoded ahead, as many batches of them as there are decoders. `read_bytes` is
    called once per object, in order, in the caller's thread.

    Raises:
        HeimdallrError: as `stored_pixels`, when the object's turn comes.
    """
    using = pool()
    waiting: deque[Future[list[NDArray[Any]]]] = deque()
    batch: list[Frame] = []
    try:
        for locator, header in wanted:
            frames = _frames_ahead(read_bytes, locator, header)
            if isinstance(frames, bytes):
                if batch:
                    waiting.append(using.submit(batch))
                    batch = []
                while waiting:
                    yield from _single(waiting.popleft())
                yield stored_pixels(frames, header)
                continue
            batch += frames
            if len(batch) < limits.DECODE_BATCH_FRAMES and _decoded_bytes(batch) < limits.DECODE_BATCH_BYTES:
                continue
            waiting.append(using.submit(batch))
            batch = []
            if len(waiting) > using.processes:
                yield from _single(waiting.popleft())
        if batch:
            waiting.append(using.submit(batch))
        while waiting:
            yield from _single(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()


def _frames_ahead(read_bytes: Callable[[str], bytes], locator: str, header: Header) -> list[Frame] | bytes:
    """The one frame of a compressed single-frame object; any other object as its bytes."""
    source = read_bytes(locator)
    ahead = header.number_of_frames == 1 and header.transfer_syntax_uid in COMPRESSED
    return _frames(source, header) if ahead else source


def _single(future: Future[list[NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    for pixels in future.result():
        yield pixels[np.newaxis]


def _decoded_bytes(frames: Sequence[Frame]) -> int:
    return sum(job.decoded_bytes for _, job in frames)


def _checked_source(source: bytes, header: Header) -> tuple[PixelLocation, tuple[int, int, int]]:
    check_pixels(header)
    location, rows, columns = header.pixels, header.rows, header.columns
    if location is None or rows is None or columns is None:
        raise NotAVolume("no_pixels", "the object holds no image")
    return location, (header.number_of_frames, rows, columns)


def _check_tag(source: bytes | memoryview, at: int) -> None:
    if source[at : at + 4] not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        raise BlobMissing("the bytes are not those that were indexed")


def _dtype(header: Header) -> np.dtype[Any]:
    order = ">" if header.transfer_syntax_uid == EXPLICIT_BE else "<"
    return np.dtype(f"{order}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")


def _native(source: bytes, header: Header) -> NDArray[Any]:
    location, shape = _checked_source(source, header)
    dtype = _dtype(header)
    if location.length is None:
        raise NotAVolume("undecodable_pixels", "uncompressed pixels without a length")
    if header.transfer_syntax_uid == EXPLICIT_BE and dtype.itemsize == 1:
        raise NotAVolume("unsupported_pixels", "8-bit pixels in big endian words")
    needed, offset = header.native_pixel_bytes, location.offset
    if location.length < needed:
        raise TruncatedObject(f"pixel data hold less than the {needed} bytes of their image")
    content: bytes | memoryview = source
    if header.transfer_syntax_uid == DEFLATED_LE:
        content, offset = _inflated(source, header, location), location.offset - location.tag_offset
    _check_tag(content, offset - (location.offset - location.tag_offset))
    if len(content) - offset < needed:
        raise TruncatedObject(f"pixel data hold less than the {needed} bytes of their image")
    stored = np.frombuffer(content, dtype, needed // dtype.itemsize, offset).reshape(shape)
    return _significant(stored if dtype.isnative else stored.astype(dtype.newbyteorder("=")), header)


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


def _inflated(source: bytes, header: Header, location: PixelLocation) -> memoryview:
    """From the pixels' tag to the end of the pixels."""
    needed = location.offset + header.native_pixel_bytes
    at = data_set_offset(source)
    if needed > limits.MAX_INFLATED_BYTES or needed > (len(source) - at) * limits.MAX_INFLATE_RATIO:
        raise TruncatedObject(f"{len(source)} deflated bytes cannot hold {needed}")
    _check_ratio(needed, len(source) - at)
    skip = location.tag_offset
    job = Job(DEFLATED_LE, INFLATE, {"skip": skip}, len(source) - at, "|u1", (needed - skip,))
    (found,) = pool().decode([(source[at:], job)])
    return found.data


def _check_ratio(decoded_bytes: int, compressed_bytes: int) -> None:
    ratio = limits.LARGE_COMPRESSION_RATIO if decoded_bytes > limits.LARGE_PIXEL_BYTES else limits.MAX_COMPRESSION_RATIO
    if decoded_bytes > ratio * max(1, compressed_bytes):
        raise TooLarge(f"{compressed_bytes} compressed bytes that claim to hold {decoded_bytes}")


def _frames(source: bytes, header: Header) -> list[Frame]:
    """The compressed frames, each with what its decoder must know; nothing is decoded yet."""
    location, shape = _checked_source(source, header)
    _check_tag(source, location.tag_offset)
    if location.length is not None:
        raise NotAVolume("undecodable_pixels", "compressed pixels that are not encapsulated")
    _check_ratio(header.native_pixel_bytes, len(source) - location.offset)
    parts = frames_of(source, location.offset, header.number_of_frames)
    return [(part, _job(part, header, (shape[1], shape[2]))) for part in parts]


_PLUGINS: Final = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "gdcm",
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
"""The one decoder per syntax (pylibjpeg for the rest), named so that what else is installed changes nothing."""


def _job(frame: bytes, header: Header, shape: tuple[int, int]) -> Job:
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
    dtype = _dtype(header).newbyteorder("=").str
    return Job(syntax, _PLUGINS.get(syntax, "pylibjpeg"), options, len(frame), dtype, shape)
