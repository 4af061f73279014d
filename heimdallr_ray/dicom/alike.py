"""Images of a series are written alike: what was found by walking over one header holds for the next one of its layout.

A layout is all that a walk has looked at (tags, VRs, lengths, and the values that were sought), byte for byte and at
the same places. Where all of it is equal the walk would go the same way, so it need not be gone; what may differ are
the values that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

MAX_BYTES: Final = 16 << 10
"""Of a header that is compared; the headers of nearly all images are shorter."""
MAX_LAYOUTS: Final = 64
"""That are remembered, the newest: several scanners send at once, and decimal strings change their lengths."""
_PIXEL_DATA: Final = b"\xe0\x7f\x10\x00"

Found = TypeVar("Found")
Span = tuple[int, int]


class _Layout(NamedTuple, Generic[Found]):
    size: int
    mask: int
    looked_at: int
    found: Found


class Layouts(Generic[Found]):
    """What was found in headers, by their layout. Safe for several threads."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, int], _Layout[Found]] = {}

    def find(self, head: bytes, at: int, syntax: str) -> Found | None:
        """What was found in a header of the layout that begins at `at` of `head`; None where none is known."""
        layout = self._layouts.get((syntax, _place(head, at)))
        if layout is None:
            return None
        header = head[at : at + layout.size]
        if len(header) == layout.size and int.from_bytes(header, "little") & layout.mask == layout.looked_at:
            return layout.found
        return None

    def keep(self, head: bytes, at: int, syntax: str, end: int, free: Sequence[Span], found: Found) -> None:
        """`found` holds for headers that equal `head[at:end]` but for the places in `free`, which are relative to `at`.

        Nothing is kept of a header that ends behind `head`, or of a long one.
        """
        header = head[at:end]
        if len(header) != end - at or len(header) > MAX_BYTES:
            return
        mask = bytearray(b"\xff") * len(header)
        for start, stop in free:
            mask[start:stop] = bytes(stop - start)
        bits = int.from_bytes(mask, "little")
        place = syntax, _place(head, at)
        self._layouts.pop(place, None)
        while len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.pop(next(iter(self._layouts), place), None)
        self._layouts[place] = _Layout(len(header), bits, int.from_bytes(header, "little") & bits, found)


def _place(head: bytes, at: int) -> int:
    """Where the pixels seem to begin: no more than a name for the layouts that are worth a comparison."""
    return head.find(_PIXEL_DATA, at, at + MAX_BYTES) - at
