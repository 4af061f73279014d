"""Images of a series are written alike: what was found by walking over one header holds for the next one of its layout.

A layout is all that a walk has looked at (tags, VRs, lengths, and the values that were sought), byte for byte and at
the same places. Where all of it is equal the walk would go the same way, so it need not be gone; what may differ are
the values that nobody asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

MAX_BYTES: Final = 32 << 10
"""Of a header that is compared; the headers of most images are far shorter."""
MAX_PLACES: Final = 32
LAYOUTS_OF_A_PLACE: Final = 3
"""Series of one scanner differ in their UIDs and not in their lengths; those that are sent together take turns."""
_PIXEL_DATA: Final = b"\xe0\x7f\x10\x00"

Found = TypeVar("Found")
Span = tuple[int, int]


class _Layout(NamedTuple, Generic[Found]):
    size: int
    mask: int
    looked_at: int
    found: Found


class Layouts(Generic[Found]):
    """What was found in headers, by their layout, the newest ones. Safe for several threads."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._layouts: dict[tuple[str, int], tuple[_Layout[Found], ...]] = {}

    def find(self, head: bytes, at: int, syntax: str) -> Found | None:
        """What was found in a header of the layout that begins at `at` of `head`; None where none is known."""
        for layout in self._layouts.get((syntax, _place(head, at)), ()):
            header = head[at : at + layout.size]
            if len(header) == layout.size and int.from_bytes(header, "little") & layout.mask == layout.looked_at:
                return layout.found
        return None

    def keep(self, head: bytes, at: int, syntax: str, end: int, free: Sequence[Span], found: Found) -> None:
        """`found` holds for headers that equal `head[at:end]` but for the places in `free`, offsets in `head` too.

        Nothing is kept of a header that ends behind `head`, or of a long one.
        """
        if end > len(head) or end - at > MAX_BYTES:
            return
        header = head[at:end]
        mask = bytearray(b"\xff") * len(header)
        for start, stop in free:
            mask[start - at : stop - at] = bytes(stop - start)
        bits = int.from_bytes(mask, "little")
        layout = _Layout(len(header), bits, int.from_bytes(header, "little") & bits, found)
        place = syntax, _place(head, at)
        with self._changing:
            others = self._layouts.pop(place, ())
            while len(self._layouts) >= MAX_PLACES:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[place] = (layout, *others[: LAYOUTS_OF_A_PLACE - 1])


def _place(head: bytes, at: int) -> int:
    """Where the pixels seem to begin: no more than a name for the layouts that are worth a comparison."""
    return head.find(_PIXEL_DATA, at, at + MAX_BYTES) - at
