"""Association requests of up to 1 MiB that ask for more than any peer could use (PS3.8 section 9.3.2)."""

from __future__ import annotations

import struct

CT = b"1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = b"1.2.840.10008.1.2"
APPLICATION = b"1.2.840.10008.3.1.1.1"
BODY_BYTES = (1 << 20) - 68
LONGEST_ITEM = 65_000


def item(kind: int, body: bytes) -> bytes:
    """One item, or sub-item."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def context(number: int, syntaxes: bytes) -> bytes:
    """A presentation context of these encoded sub-items."""
    return item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + syntaxes)


def request(items: bytes) -> bytes:
    """An A-ASSOCIATE-RQ of these items."""
    body = struct.pack(">HH16s16s32x", 1, 0, b"HEIMDALLR".ljust(16), b"MONSTER".ljust(16)) + items
    return struct.pack(">BBI", 1, 0, len(body)) + body


def honest(*, contexts: int = 128, syntaxes: int = 64, user: bytes = b"") -> bytes:
    """The largest that a peer has use for."""
    proposed = item(0x30, CT) + b"".join(item(0x40, b"1.2.840.10008.1.2.%d" % n) for n in range(syntaxes - 1))
    each = b"".join(context(2 * (n % 128) + 1, proposed) for n in range(contexts))
    informed = item(0x50, item(0x51, struct.pack(">I", 131_072)) + item(0x52, b"1.2.3") + user)
    return request(item(0x10, APPLICATION) + each + informed)


def _rest(user: bytes = b"") -> bytes:
    return item(0x10, APPLICATION) + context(1, item(0x30, CT) + item(0x40, IMPLICIT)) + item(0x50, user)


def _syntaxes() -> bytes:
    filled = item(0x30, CT) + item(0x40, b"1") * ((BODY_BYTES // 128 - 60) // 5)
    return request(item(0x10, APPLICATION) + b"".join(context(2 * n + 1, filled) for n in range(127)))


def _related() -> bytes:
    empty = struct.pack(">H", 0) * ((LONGEST_ITEM - 200) // 2)
    return request(_rest(item(0x57, struct.pack(">H", 0) * 2 + struct.pack(">H", len(empty)) + empty)))


MONSTERS = {
    "transfer syntaxes": _syntaxes(),
    "transfer syntaxes without text": request(
        _rest() + b"".join(context(2 * n + 1, item(0x30, CT) + item(0x40, b"") * 15_000) for n in range(1, 17))
    ),
    "application contexts": request(_rest() + item(0x10, b"1") * 200_000),
    "presentation contexts": request(_rest() + context(1, item(0x30, b"1") + item(0x40, b"1")) * 50_000),
    "items of no kind": request(_rest() + item(0x99, b"") * 250_000),
    "user items": request(_rest(item(0x54, struct.pack(">HBB", 0, 1, 1)) * (LONGEST_ITEM // 8))),
    "related classes": _related(),
}
"""By what there is too much of."""
