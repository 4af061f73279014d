"""Sizes and fragments of compressed frames, read before any decoder runs."""

from __future__ import annotations

import struct

import pytest

from heimdallr_ray.dicom.codestream import CodestreamSize, frames_of, jpeg2000_size, jpeg_size
from heimdallr_ray.errors import NotAVolume, TruncatedObject

LOSSLESS = frozenset({0xC3})


def jpeg(marker: int, precision: int = 12, padding: bytes = b"") -> bytes:
    application = b"\xff\xe0" + struct.pack(">H", 6) + b"JFIF"
    frame = b"\xff" + bytes([marker]) + struct.pack(">HBHHB", 11, precision, 64, 48, 1) + b"\0\0\0"
    return b"\xff\xd8" + application + padding + frame


def item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def test_size_of_a_jpeg_frame() -> None:
    assert jpeg_size(jpeg(0xC3), LOSSLESS) == CodestreamSize(64, 48, 1, 12)
    assert jpeg_size(jpeg(0xC3, padding=b"\xff"), LOSSLESS).rows == 64
    assert jpeg_size(jpeg(0xC3, precision=57), LOSSLESS).precision == 57


def test_size_of_a_jpeg_2000_frame() -> None:
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HH8IHBBB", 41, 0, 50, 70, 2, 6, 50, 70, 0, 0, 1, 0x8B, 1, 1)
    assert jpeg2000_size(siz) == CodestreamSize(64, 48, 1, 12)
    assert jpeg2000_size(b"container" + siz).columns == 48


@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd8", b"no image at all", jpeg(0xC3)[:12], jpeg(0xC2), b"\xff\xd8" + b"\xff" * 9999]
)
def test_frames_without_a_header_of_their_process_are_refused(frame: bytes) -> None:
    with pytest.raises(NotAVolume):
        jpeg_size(frame, LOSSLESS)
    with pytest.raises(NotAVolume):
        jpeg2000_size(frame)


def test_fragments_become_frames() -> None:
    assert frames_of(item(b"") + item(b"aa") + item(b"bb") + END, 0, 1) == [b"aabb"]
    assert frames_of(item(b"") + item(b"aa") + item(b"bb") + END, 0, 2) == [b"aa", b"bb"]
    table = struct.pack("<II", 0, 20)
    assert frames_of(item(table) + item(b"aa") + item(b"bb") + item(b"cc") + END, 0, 2) == [b"aabb", b"cc"]


def test_fragments_that_do_not_fit_are_refused() -> None:
    whole = item(b"") + item(b"aa") + item(b"bb") + END
    for cut in range(1, len(whole)):
        with pytest.raises((TruncatedObject, NotAVolume)):
            frames_of(whole[:cut], 0, 2)
    with pytest.raises(TruncatedObject):
        frames_of(whole, 0, 3)
    with pytest.raises(NotAVolume):
        frames_of(item(b"") + item(b"a") * 3 + END, 0, 2)
    with pytest.raises(NotAVolume):
        frames_of(b"\0" * 64, 0, 1)
