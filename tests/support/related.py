"""Bodies of STOW-RS requests, as a client writes them."""

from __future__ import annotations

from collections.abc import Sequence

BOUNDARY = "a-boundary-of-a-test"
TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'


def related(
    objects: Sequence[bytes], boundary: str = BOUNDARY, head: bytes = b"Content-Type: application/dicom\r\n"
) -> bytes:
    """The body of a request that stores `objects`."""
    mark = boundary.encode()
    parts = b"".join(b"--" + mark + b"\r\n" + head + b"\r\n" + content + b"\r\n" for content in objects)
    return parts + b"--" + mark + b"--\r\n"
