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
        struct.Struct(f"{order}HH").unpack_from,
        struct.Struct(f"{order}H").unpack_from,
        struct.Struct(f"{order}I").unpack_from,
    )


_LITTLE, _BIG = _readers("<"), _readers(">")
"""Tag, short length and long length by byte order, compiled once: a header has hundreds of them."""


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

    __slots__ = ("_budget", "buffer", "limit")

    def __init__(self, buffer: bytes, limit: int | None = None) -> None:
        """`limit` is the size of the whole object where known: a value that passes it is truncated, not unread."""
        self.buffer = buffer
        self.limit = limit
        self._budget = limits.MAX_ELEMENTS

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
        while at < end:
            element = self._header(at, encoding)
            if element.tag == ITEM_END:
                return
            if element.tag >= stop:
                yield element
                return
            if element.undefined:
                element = element._replace(end=self.end_of_undefined(element))
            elif element.end > len(self.buffer):
                self._missing(element.end)
            yield element
            at = element.end

    def items(self, sequence: Element, depth: int = 1) -> Iterator[dict[int, Element]]:
        """The items of a sequence, each as tag to element.

        Raises:
            TruncatedObject, TooLarge, NotDicom: as `elements`.
        """
        if depth > limits.MAX_NESTING:
            raise TooLarge(f"sequences nested deeper than {limits.MAX_NESTING}")
        at, end = sequence.start, sequence.end
        while at + 8 <= end:
            item = self._header(at, sequence.encoding)
            if item.tag == SEQUENCE_END:
                return
            if item.tag != ITEM:
                raise NotDicom("a sequence holds something else than items")
            stop = end if item.undefined else item.end
            if stop > end:
                raise TruncatedObject("an item passes the end of its sequence")
            found: dict[int, Element] = {}
            at = item.start
            for element in self.elements(item.start, stop, item.encoding, stop=ITEM):
                if element.tag >= ITEM:
                    raise NotDicom("an item without its delimiter")
                found[element.tag] = element
                at = element.end
            at = at + 8 if item.undefined else item.end
            yield found

    def value(self, element: Element) -> bytes:
        """The raw value of an element of defined length."""
        return self.buffer[element.start : element.end]

    def _missing(self, end: int) -> None:
        if end > limits.MAX_HEADER_BYTES and (self.limit is None or end <= self.limit):
            raise TooLarge(f"the header is larger than {limits.MAX_HEADER_BYTES} bytes")
        if self.limit is not None and end > self.limit:
            raise TruncatedObject("the object ends inside its header")
        raise NeedMore(end)

    def _header(self, at: int, encoding: Encoding) -> Element:
        self._budget -= 1
        if self._budget < 0:
            raise TooLarge(f"more than {limits.MAX_ELEMENTS} elements")
        buffer = self.buffer
        if at + 8 > len(buffer):
            self._missing(at + 8)
        tags, short, long = _LITTLE if encoding.little else _BIG
        group, element = tags(buffer, at)
        tag = group << 16 | element
        if not encoding.explicit or group == 0xFFFE:
            length = long(buffer, at + 4)[0]
            vr, start = b"", at + 8
        else:
            vr = buffer[at + 4 : at + 6]
            if vr in _SHORT_VRS:
                length, start = short(buffer, at + 6)[0], at + 8
            elif vr in _LONG_VRS or (vr.isalpha() and vr.isupper()):
                # PS3.5 section 6.2: VRs of later editions use the long form.
                if at + 12 > len(buffer):
                    self._missing(at + 12)
                length, start = long(buffer, at + 8)[0], at + 12
            else:
                raise NotDicom("an element has no value representation")
        if length == UNDEFINED:
            # PS3.5 section 6.2.2 note 2: UN of undefined length holds implicit little endian.
            inner = IMPLICIT if vr == b"UN" else encoding
            return Element(tag, vr, at, start, start, True, inner)
        return Element(tag, vr, at, start, start + length, False, encoding)

    def end_of_undefined(self, outer: Element) -> int:
        """The offset behind the delimiter of a sequence, or of encapsulated fragments, of undefined length.

        Raises:
            TruncatedObject, TooLarge, NotDicom, NeedMore: as `elements`.
        """
        at = outer.start
        levels: list[tuple[bool, Encoding]] = [(True, outer.encoding)]
        while levels:
            in_sequence, encoding = levels[-1]
            element = self._header(at, encoding)
            at = element.start
            if in_sequence:
                if element.tag == SEQUENCE_END:
                    levels.pop()
                elif element.tag != ITEM:
                    raise NotDicom("a sequence holds something else than items")
                elif element.undefined:
                    levels.append((False, encoding))
                else:
                    at = element.end
            elif element.tag == ITEM_END:
                levels.pop()
            elif element.tag in (ITEM, SEQUENCE_END):
                raise NotDicom("an item holds an item")
            elif element.undefined:
                levels.append((True, element.encoding))
            else:
                at = element.end
            if len(levels) > 2 * limits.MAX_NESTING:
                raise TooLarge(f"sequences nested deeper than {limits.MAX_NESTING}")
            if at > len(self.buffer):
                self._missing(at)
        return at
