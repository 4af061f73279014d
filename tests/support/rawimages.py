"""CT images as data set bytes, put together in microseconds, for tests that send thousands of them."""

from __future__ import annotations

import random
import struct

from tests.support.wirepeer import CT

_NOISE = random.Random(4).randbytes(1 << 20)


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def image(study_uid: str, number: int, size: int = 512, *, patient: str = "P1", priority: str = "") -> bytes:
    """Image `number` of a series of `study_uid`, `size` x `size` pixels; explicit VR little endian, ascending tags."""
    pixels = struct.pack("<I", number) + _NOISE[number % 1024 :][: 2 * size * size - 4]
    return b"".join(
        (
            _element(0x0008, 0x0016, b"UI", CT.encode()),
            _element(0x0008, 0x0018, b"UI", sop_uid(study_uid, number).encode()),
            _element(0x0008, 0x0020, b"DA", b"20260102"),
            _element(0x0008, 0x0060, b"CS", b"CT"),
            _element(0x0010, 0x0010, b"PN", f"Test^{patient}".encode()),
            _element(0x0010, 0x0020, b"LO", patient.encode()),
            _element(0x0020, 0x000D, b"UI", study_uid.encode()),
            _element(0x0020, 0x000E, b"UI", f"{study_uid}.7".encode()),
            _element(0x0020, 0x0013, b"IS", str(number).encode()),
            _element(0x0028, 0x0002, b"US", struct.pack("<H", 1)),
            _element(0x0028, 0x0004, b"CS", b"MONOCHROME2"),
            _element(0x0028, 0x0010, b"US", struct.pack("<H", size)),
            _element(0x0028, 0x0011, b"US", struct.pack("<H", size)),
            _element(0x0028, 0x0100, b"US", struct.pack("<H", 16)),
            _element(0x0028, 0x0101, b"US", struct.pack("<H", 16)),
            _element(0x0028, 0x0102, b"US", struct.pack("<H", 15)),
            _element(0x0028, 0x0103, b"US", struct.pack("<H", 1)),
            _element(0x0040, 0x1003, b"SH", priority.encode()) if priority else b"",
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixels)),
            pixels,
        )
    )


def sop_uid(study_uid: str, number: int) -> str:
    """The SOP Instance UID of that image."""
    return f"{study_uid}.7.{number}"
