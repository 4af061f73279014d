"""How much an A-ASSOCIATE-RQ may ask for, looked at before the codec makes objects of it (PS3.8 section 9.3.2).

A request of 1 MiB may hold 200,000 items of a few bytes, for each of which the codec makes objects: more than a second
of computing for a stranger who was asked for no AE title yet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from heimdallr_ray.errors import NotDicom, TooLarge

FIXED_BYTES = 68
"""Of the request's body before its items: versions, AE titles, reserved bytes."""
MAX_CONTEXTS = 128
"""Odd numbers of one byte: there are no more."""
MAX_SYNTAXES = 128
"""Of one presentation context, its abstract syntax included. DICOM defines about sixty transfer syntaxes."""
MAX_ALL_SYNTAXES = 8192
"""Of all contexts: all that DICOM defines for each of 128."""
MAX_ITEMS = 256
MAX_USER_ITEMS = 512
"""A role for each of 128 contexts, extended negotiation for each, and the few that a request has once."""
MAX_RELATED = 512
"""Related general SOP classes of one common extended negotiation (PS3.7 section D.3.3.6)."""

_CONTEXT = 0x20
_USER_INFORMATION = 0x50
_COMMON_EXTENDED = 0x57
_ITEM = struct.Struct(">BxH")
_LENGTH = struct.Struct(">H")


def require_bounded(body: bytes | bytearray | memoryview) -> None:
    """Nothing happens where the request asks for no more than a peer could use.

    Args:
        body: the PDU after its six bytes of header.

    Raises:
        TooLarge: it asks for more.
        NotDicom: a length passes the end of what holds it.
    """
    view = memoryview(body)
    if len(view) < FIXED_BYTES:
        raise NotDicom("malformed A-ASSOCIATE-RQ (too short)")
    contexts = syntaxes = 0
    for kind, start, stop in _items(view, FIXED_BYTES, len(view), MAX_ITEMS):
        if kind == _CONTEXT:
            contexts += 1
            # Id and three reserved bytes come first.
            syntaxes += sum(1 for _ in _items(view, start + 4, stop, MAX_SYNTAXES))
            if contexts > MAX_CONTEXTS or syntaxes > MAX_ALL_SYNTAXES:
                raise TooLarge("A-ASSOCIATE-RQ with too many presentation contexts or syntaxes")
        elif kind == _USER_INFORMATION:
            for what, inner, end in _items(view, start, stop, MAX_USER_ITEMS):
                if what == _COMMON_EXTENDED:
                    _require_few_related(view, inner, end)


def _items(view: memoryview, at: int, end: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Type, begin and end of the value of each item; not more than `most`."""
    for _ in range(most):
        if at >= end:
            return
        if at + _ITEM.size > end:
            raise NotDicom("malformed A-ASSOCIATE-RQ (an item is cut off)")
        kind, length = _ITEM.unpack_from(view, at)
        start, at = at + _ITEM.size, at + _ITEM.size + length
        if at > end:
            raise NotDicom("malformed A-ASSOCIATE-RQ (an item has a false length)")
        yield kind, start, at
    if at < end:
        raise TooLarge("A-ASSOCIATE-RQ with too many items")


def _require_few_related(view: memoryview, at: int, end: int) -> None:
    """SOP class, service class, then a list of UIDs, each with a length of two bytes before it."""
    for _ in range(2):
        at = _after(view, at, end)
    if at == end:
        return
    stop = _after(view, at, end)
    at += _LENGTH.size
    for _ in range(MAX_RELATED):
        if at >= stop:
            return
        at = _after(view, at, stop)
    if at < stop:
        raise TooLarge("A-ASSOCIATE-RQ with too many related classes")


def _after(view: memoryview, at: int, end: int) -> int:
    if at + _LENGTH.size > end:
        raise NotDicom("malformed A-ASSOCIATE-RQ (common extended negotiation)")
    after = at + _LENGTH.size + _LENGTH.unpack_from(view, at)[0]
    if after > end:
        raise NotDicom("malformed A-ASSOCIATE-RQ (common extended negotiation)")
    return after
