"""DIMSE command sets: always implicit VR little endian, groups of fixed elements (PS3.7 section 6.3 and annex E)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from heimdallr_ray.errors import NotDicom

C_STORE = 0x0001
C_ECHO = 0x0030
N_ACTION = 0x0130
C_CANCEL = 0x0FFF
RESPONSE = 0x8000
NO_DATA_SET = 0x0101

UNRECOGNIZED_OPERATION = 0x0211
"""PS3.7 section C.5.21."""
MAX_ELEMENTS = 64
_UID_BYTES = 66
"""64 characters and padding; longer values are no UIDs and are not sent back."""
_COMMENT_CHARS = 64

_HEAD = struct.Struct("<HHI")
_US = struct.Struct("<H")


@dataclass(frozen=True)
class Command:
    """A request: what it wants and about what. UIDs are as sent, possibly blank or malformed."""

    field: int
    message_id: int
    has_data_set: bool
    class_uid: bytes
    instance_uid: bytes
    action_type: int = 0

    @property
    def is_response(self) -> bool:
        """True for an answer to something that we asked."""
        return bool(self.field & RESPONSE)


def text(value: bytes) -> str:
    """A UID as text, without its padding."""
    return value.decode("ascii", "replace").rstrip("\0 ")


def parse(content: bytes) -> Command:
    """The command set in `content`.

    Raises:
        NotDicom: an element is cut off, repeated or missing, or there are too many.
    """
    found: dict[int, bytes] = {}
    at = 0
    for _ in range(MAX_ELEMENTS):
        if at == len(content):
            break
        if at + 8 > len(content):
            raise NotDicom("a command element is cut off")
        group, element, length = _HEAD.unpack_from(content, at)
        at += 8
        if group != 0 or element in found or at + length > len(content):
            raise NotDicom("a command element is malformed")
        found[element] = content[at : at + length]
        at += length
    if at != len(content):
        raise NotDicom("a command set has too many elements")
    field = _number(found, 0x0100)
    if field is None:
        raise NotDicom("a command set without a command field")
    requested = field in (N_ACTION,)
    message_id = _number(found, 0x0110)
    if message_id is None and not field & RESPONSE and field != C_CANCEL:
        raise NotDicom("a request without a message id")
    return Command(
        field=field,
        message_id=message_id or 0,
        has_data_set=_number(found, 0x0800) not in (None, NO_DATA_SET),
        # Affected SOP Class and Instance, or, of an N-ACTION, the requested ones (PS3.7 table 10.3-8).
        class_uid=found.get(0x0003 if requested else 0x0002, b""),
        instance_uid=found.get(0x1001 if requested else 0x1000, b""),
        action_type=_number(found, 0x1008) or 0,
    )


def _number(found: dict[int, bytes], element: int) -> int | None:
    value = found.get(element, b"")
    return _US.unpack(value)[0] if len(value) == 2 else None


def _element(element: int, value: bytes) -> bytes:
    padded = value + b"\0" if len(value) % 2 else value
    return _HEAD.pack(0, element, len(padded)) + padded


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The answer to `request` (PS3.7 tables 9.3-2, 9.3-13 and 10.3-10), `comment` as Error Comment (0000,0902)."""
    parts = [
        _element(0x0002, request.class_uid) if 0 < len(request.class_uid) <= _UID_BYTES else b"",
        _element(0x0100, _US.pack((request.field | RESPONSE) & 0xFFFF)),
        _element(0x0120, _US.pack(request.message_id)),
        _element(0x0800, _US.pack(NO_DATA_SET)),
        _element(0x0900, _US.pack(status)),
        _element(0x0902, _printable(comment)) if comment and status else b"",
        _element(0x1000, request.instance_uid) if 0 < len(request.instance_uid) <= _UID_BYTES else b"",
        _element(0x1008, _US.pack(request.action_type)) if request.field == N_ACTION else b"",
    ]
    body = b"".join(parts)
    return _HEAD.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


def _printable(comment: str) -> bytes:
    value = comment.encode("ascii", "replace")[:_COMMENT_CHARS].replace(b"\\", b"/")
    return value + b" " if len(value) % 2 else value
