"""Upper layer PDUs as bytes: framing, bounds, and the few PDUs that an acceptor sends (PS3.8 section 9.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from heimdallr_ray.errors import NotDicom

HEADER_BYTES = 6
ASSOCIATE_RQ = 0x01
P_DATA = 0x04
RELEASE_RQ = 0x05
ABORT = 0x07

RELEASE_RP = struct.pack(">BBII", 0x06, 0, 4, 0)
"""A-RELEASE-RP (PS3.8 section 9.3.7)."""

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
NOT_SPECIFIED = 0
UNRECOGNIZED_PDU = 1
UNEXPECTED_PDU = 2
INVALID_PARAMETER = 6

_HEADER = struct.Struct(">BBI")
_ITEM = struct.Struct(">IBB")
_RESPONSE = struct.Struct(">BBIIBB")


def parse_header(buffer: bytearray, at: int) -> tuple[int, int]:
    """Type and length of the PDU whose header lies at `at`."""
    kind, _, length = _HEADER.unpack_from(buffer, at)
    return kind, length


def abort(reason: int) -> bytes:
    """A-ABORT by the service provider (PS3.8 section 9.3.8)."""
    return struct.pack(">BBIBBBB", ABORT, 0, 4, 0, 0, 2, reason)


def reject(result: int, source: int, diagnostic: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    return struct.pack(">BBIBBBB", 0x03, 0, 4, 0, result, source, diagnostic)


def values(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int, memoryview]]:
    """Context id, message control header and fragment of each presentation data value in a P-DATA PDU.

    Raises:
        NotDicom: a length passes the end of the PDU, or an item is too short for its own header.
    """
    at = start
    while at < end:
        if at + HEADER_BYTES > end:
            raise NotDicom("a presentation data value is cut off")
        length, context, control = _ITEM.unpack_from(view, at)
        stop = at + 4 + length
        if length < 2 or stop > end:
            raise NotDicom("a presentation data value has a false length")
        yield context, control, view[at + HEADER_BYTES : stop]
        at = stop


def command_pdu(context: int, command: bytes) -> bytes:
    """A whole command set as one P-DATA PDU: last fragment of a command (PS3.8 annex E)."""
    return _RESPONSE.pack(P_DATA, 0, len(command) + HEADER_BYTES, len(command) + 2, context, 0x03) + command
