"""A bounded walk over the elements of a DICOM data set (PS3.5 section 7), without recursion and without copies.

pydicom recurses into sequences and reads what a length field asks for; here hostile bytes cost at most
`limits.MAX_HEADER_BYTES` of memory, `limits.MAX_ELEMENTS` steps and `limits.MAX_NESTING` levels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from heimdallr_ray.dicom import limits
from heimdallr_ray.errors import NotDicom, TooLarge, TruncatedObject

_Read = Callable[[bytes, int], tuple[Any, ...]]
More = Callable[[int], tuple[bytes, int | None]]
"""Given an offset that is wanted: the buffer again, up to there or farther, and the size of the object where known. A
buffer that ends earlier comes with a size that says so."""

UNDEFINED = 0xFFFFFFFF
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010

_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT"),
        *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    }
)


def _readers(order: str) -> tuple[_Read, _Read, _Read]:
    return (
        struct.Struct(f"{order}HH2sH").unpack_from,
        struct.Struct(f"{order}HHI").unpack_from,
        struct.Struct(f"{order}I").unpack_from,
    )


_LITTLE, _BIG = _readers("<"), _readers(">")
"""An element of explicit VR, one of implicit VR, and a long length, by byte order; compiled once."""


class NeedMore(Exception):
    """The walk needs bytes beyond those it was given; `end` is how many at least.

    A signal inside this package, never an error of the caller.
    """

    def __init__(self, end: int) -> None:
        super().__init__(f"needs {end} bytes")
        self.end = end


class Encoding(NamedTuple):
    """How elements are written: explicit or implicit VR, byte order."""

    explicit: bool
    little: bool


IMPLICIT = Encoding(explicit=False, little=True)
EXPLICIT = Encoding(explicit=True, little=True)
EXPLICIT_BIG = Encoding(explicit=True, little=False)


class Element(NamedTuple):
    """Where one element lies: header at `at`, value from `start` to `end` (delimiter included if undefined)."""

    tag: int
    vr: bytes
    at: int
    start: int
    end: int
    undefined: bool
    encoding: Encoding


class Walk:
    """Elements of `buffer`, counted: one Walk serves one object, so its element budget covers nested ones too."""

    __slots__ = ("_budget", "_more", "buffer", "limit")

    def __init__(self, buffer: bytes, limit: int | None = None, more: More | None = None) -> None:
        """A walk over an object that begins with `buffer`.

        Args:
            buffer: its first bytes, or all of them.
            limit: the size of the whole object where known: a value that passes it is truncated, not unread.
            more: fetches what lies behind `buffer`, so that nothing is walked over twice; without it: NeedMore.
        """
        self.buffer = buffer
        self.limit = limit
        self._more = more
        self._budget = limits.MAX_ELEMENTS

    def reach(self, end: int) -> None:
        """The buffer goes to `end`, or to the end of the object where that comes first.

        Raises:
            TooLarge: `end` lies behind what may be read of a header.
            NeedMore: there is nothing to read more from.
        """
        if end > len(self.buffer) and (self.limit is None or self.limit > len(self.buffer)):
            self._missing(end if self.limit is None else min(end, self.limit))

    def elements(self, start: int, end: int, encoding: Encoding, stop: int = PIXEL_DATA) -> Iterator[Element]:
        """Elements from `start` up to `end`, or up to and including the first whose tag is at least `stop`.

        An item delimiter ends the walk (for items of undefined length). The element at `stop` is yielded with
        `end` unchecked, so that the caller can judge pixel data that are not there.

        Raises:
            TruncatedObject: an element passes the end of the object.
            TooLarge: too many elements, or nested too deep.
            NotDicom: bytes that cannot be an element.
            NeedMore: the walk reached the end of what has been read so far.
        """
        at = start
        left = limits.MAX_ELEMENTS_OF_ONE_LEVEL
        while at < end:
            if at == len(self.buffer):
                self.reach(at + 1)
                if at == len(self.buffer):
                    return
            tag, vr, start, length = self._header(at, encoding)
            if tag == ITEM_END:
                return
            if length == UNDEFINED:
                # PS3.5 section 6.2.2 note 2: UN of undefined length holds implicit little endian.
                element = Element(tag, vr, at, start, start, True, IMPLICIT if vr == b"UN" else encoding)
                if tag < stop:
                    element = element._replace(end=self.end_of_undefined(element))
            else:
                element = Element(tag, vr, at, start, start + length, False, encoding)
                if tag < stop and element.end > len(self.buffer):
                    self._missing(element.end)
            yield element
            if tag >= stop:
                return
            at = element.end
            left -= 1
            if left < 0:
                raise TooLarge(f"more than {limits.MAX_ELEMENTS_OF_ONE_LEVEL} elements side by side")

    def items(self, sequence: Element, depth: int = 1) -> Iterator[dict[int, Element]]:
        """The items of a sequence, each as tag to element.

        Raises:
            TruncatedObject, TooLarge, NotDicom: as `elements`.
        """
        if depth > limits.MAX_NESTING:
            raise TooLarge(f"sequences nested deeper than {limits.MAX_NESTING}")
        at, end = sequence.start, sequence.end
        while at + 8 <= end:
            tag, _, at, length = self._header(at, sequence.encoding)
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise NotDicom("a sequence holds something else than items")
            stop = end if length == UNDEFINED else at + length
            if stop > end:
                raise TruncatedObject("an item passes the end of its sequence")
            found: dict[int, Element] = {}
            for element in self.elements(at, stop, sequence.encoding, stop=ITEM):
                if element.tag >= ITEM:
                    raise NotDicom("an item without its delimiter")
                found[element.tag] = element
                at = element.end
            at = at + 8 if length == UNDEFINED else stop
            yield found

    def value(self, element: Element) -> bytes:
        """The raw value of an element of defined length."""
        return self.buffer[element.start : element.end]

    def _missing(self, end: int) -> bytes:
        """The buffer, which goes to `end` now."""
        while end > len(self.buffer):
            if end > limits.MAX_HEADER_BYTES and (self.limit is None or end <= self.limit):
                raise TooLarge(f"the header is larger than {limits.MAX_HEADER_BYTES} bytes")
            if self.limit is not None and end > self.limit:
                raise TruncatedObject("the object ends inside its header")
            if self._more is None:
                raise NeedMore(end)
            self.buffer, self.limit = self._more(end)
        return self.buffer

    def _header(self, at: int, encoding: Encoding) -> tuple[int, bytes, int, int]:
        """Tag, VR, offset of the value and its length, which may be `UNDEFINED`."""
        self._budget -= 1
        if self._budget < 0:
            raise TooLarge(f"more than {limits.MAX_ELEMENTS} elements")
        buffer = self.buffer
        if at + 8 > len(buffer):
            buffer = self._missing(at + 8)
        explicit, implicit, long = _LITTLE if encoding.little else _BIG
        if encoding.explicit:
            group, element, vr, length = explicit(buffer, at)
            if vr in _SHORT_VRS and group != 0xFFFE:
                return group << 16 | element, vr, at + 8, length
            if group != 0xFFFE:
                if vr not in _LONG_VRS and not (vr.isalpha() and vr.isupper()):
                    raise NotDicom("an element has no value representation")
                # PS3.5 section 6.2: VRs of later editions use the long form.
                if at + 12 > len(buffer):
                    buffer = self._missing(at + 12)
                return group << 16 | element, vr, at + 12, long(buffer, at + 8)[0]
        group, element, length = implicit(buffer, at)
        return group << 16 | element, b"", at + 8, length

    def end_of_undefined(self, outer: Element) -> int:
        """The offset behind the delimiter of a sequence, or of encapsulated fragments, of undefined length.

        Raises:
            TruncatedObject, TooLarge, NotDicom, NeedMore: as `elements`.
        """
        at = outer.start
        levels: list[tuple[bool, Encoding]] = [(True, outer.encoding)]
        while levels:
            in_sequence, encoding = levels[-1]
            tag, vr, at, length = self._header(at, encoding)
            if in_sequence:
                if tag == SEQUENCE_END:
                    levels.pop()
                elif tag != ITEM:
                    raise NotDicom("a sequence holds something else than items")
                elif length == UNDEFINED:
                    levels.append((False, encoding))
                else:
                    at += length
            elif tag == ITEM_END:
                levels.pop()
            elif tag in (ITEM, SEQUENCE_END):
                raise NotDicom("an item holds an item")
            elif length == UNDEFINED:
                levels.append((True, IMPLICIT if vr == b"UN" else encoding))
            else:
                at += length
            if len(levels) > 2 * limits.MAX_NESTING:
                raise TooLarge(f"sequences nested deeper than {limits.MAX_NESTING}")
            if at > len(self.buffer):
                self._missing(at)
        return at
