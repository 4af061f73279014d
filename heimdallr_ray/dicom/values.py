"""Typed values out of located elements; what is present but unreadable is remembered by name."""

from __future__ import annotations

import math
import struct
from typing import Final

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.elements import Element, Walk
from heimdallr_ray.dicom.header import Cosines, Triple
from heimdallr_ray.dicom.text import DEFAULT_CODECS, codecs_of, decode
from heimdallr_ray.ids import Uid

_MAX_NUMBER_BYTES: Final = 64
"""DS is 16 characters and IS 12 (PS3.5 table 6.2-1); writers pass that a little, nothing real passes 64."""

_SPECIFIC_CHARACTER_SET: Final = 0x00080005


def number_of(raw: bytes) -> float | None:
    """The finite decimal number in `raw`, or None."""
    if len(raw) > _MAX_NUMBER_BYTES or b"_" in raw:
        return None
    try:
        number = float(raw.strip(b"\0 "))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Values:
    """Values of one item or data set.

    Attributes:
        malformed: names of fields that are present, not blank and unreadable.
    """

    __slots__ = ("_codecs", "_elements", "_walk", "malformed")

    def __init__(self, walk: Walk, elements: dict[int, Element], codecs: tuple[str, ...] | None = None) -> None:
        """`elements` are those of one level; nested levels are opened with `first_item` and `items`."""
        self._walk = walk
        self._elements = elements
        self.malformed: list[str] = []
        self._codecs = codecs or DEFAULT_CODECS
        if _SPECIFIC_CHARACTER_SET in elements:
            self._codecs = codecs_of(self.raw(_SPECIFIC_CHARACTER_SET))

    def __contains__(self, tag: int) -> bool:
        """True where the element is there, blank or not."""
        return tag in self._elements

    def within(self, tags: range) -> list[int]:
        """The tags of `tags` that are there, in the order of the object."""
        return [tag for tag in self._elements if tag in tags]

    def raw(self, tag: int) -> bytes:
        """The bytes of the value; b"" where absent or of undefined length."""
        element = self._elements.get(tag)
        return b"" if element is None or element.undefined else self._walk.value(element)

    def text(self, tag: int, max_chars: int) -> str:
        """Decoded text, bounded; of several values all, with their backslashes."""
        raw = self.raw(tag)
        return decode(raw, self._codecs, max_chars) if raw else ""

    def uid(self, tag: int) -> Uid | None:
        """The UID, or None where blank or malformed."""
        raw = self.raw(tag)
        return Uid.parse_or_none(raw[:128].decode("ascii", "replace")) if raw else None

    def date(self, tag: int) -> str:
        """YYYYMMDD, or "" where absent or not a date (ACR-NEMA dots are dropped)."""
        text = self.text(tag, 10).replace(".", "")
        return text if len(text) == 8 and text.isascii() and text.isdecimal() and text[4:6] <= "12" else ""

    def words(self, tag: int, max_values: int, max_chars: int) -> tuple[str, ...]:
        """Several code strings, upper case."""
        raw = self.raw(tag)
        if not raw:
            return ()
        parts = raw[: max_values * (max_chars + 1)].split(b"\\")[:max_values]
        return tuple(decode(part, DEFAULT_CODECS, max_chars).upper() for part in parts)

    def numbers(self, tag: int, count: int, name: str) -> tuple[float, ...] | None:
        """Exactly `count` finite numbers of a DS or IS element, or None; unreadable ones go to `malformed`."""
        raw = self.raw(tag).strip(b"\0 ")
        if not raw:
            return None
        parts = raw[: limits.MAX_VALUES].split(b"\\")
        found = tuple(number for number in map(number_of, parts) if number is not None)
        if len(found) != count or len(parts) != count:
            self.malformed.append(name)
            return None
        return found

    def number(self, tag: int, name: str) -> float | None:
        """One finite number of a DS or IS element: the first where there are several."""
        raw = self.raw(tag)
        if not raw:
            return None
        raw = raw.split(b"\\", 1)[0].strip(b"\0 ")
        if not raw:
            return None
        number = number_of(raw)
        if number is None:
            self.malformed.append(name)
        return number

    def integer(self, tag: int, name: str) -> int | None:
        """One integer of an IS element; a fraction is malformed."""
        number = self.number(tag, name)
        if number is None:
            return None
        if number != int(number) or abs(number) > 2**31:
            self.malformed.append(name)
            return None
        return int(number)

    def unsigned(self, tag: int, name: str) -> int | None:
        """One US value (PS3.5 table 6.2-1)."""
        return self._binary(tag, "H", name)

    def unsigned_or_signed(self, tag: int, name: str, *, signed: bool) -> int | None:
        """One value of the VR "US or SS", read as Pixel Representation says."""
        return self._binary(tag, "h" if signed else "H", name)

    def float64(self, tag: int, name: str) -> float | None:
        """One finite FD value."""
        found = self.float64s(tag, 1, name)
        return found[0] if found else None

    def float32(self, tag: int, name: str) -> float | None:
        """One finite FL value."""
        element = self._elements.get(tag)
        raw = self.raw(tag)
        if element is None or not raw:
            return None
        found = struct.unpack("<f" if element.encoding.little else ">f", raw)[0] if len(raw) == 4 else math.nan
        if not math.isfinite(found):
            self.malformed.append(name)
            return None
        return float(found)

    def float64s(self, tag: int, count: int, name: str) -> tuple[float, ...] | None:
        """Exactly `count` finite FD values, or None."""
        element = self._elements.get(tag)
        raw = self.raw(tag)
        if element is None or not raw:
            return None
        if len(raw) != 8 * count:
            self.malformed.append(name)
            return None
        found = struct.unpack(("<" if element.encoding.little else ">") + f"{count}d", raw)
        if not all(map(math.isfinite, found)):
            self.malformed.append(name)
            return None
        return found

    def uint32(self, tag: int, name: str) -> int | None:
        """One UL value."""
        return self._binary(tag, "I", name)

    def items(self, tag: int, depth: int = 1) -> list[Values]:
        """The items of a sequence.

        Raises:
            TruncatedObject, TooLarge, NotDicom: the sequence is damaged.
        """
        element = self._elements.get(tag)
        if element is None:
            return []
        return [Values(self._walk, item, self._codecs) for item in self._walk.items(element, depth)]

    def first_item(self, tag: int, depth: int = 1) -> Values | None:
        """The first item of a sequence, or None.

        Raises:
            TruncatedObject, TooLarge, NotDicom: the sequence is damaged.
        """
        element = self._elements.get(tag)
        if element is None:
            return None
        for item in self._walk.items(element, depth):
            return Values(self._walk, item, self._codecs)
        return None

    def position(self, tag: int) -> Triple | None:
        """Image Position (Patient)."""
        found = self.numbers(tag, 3, "ipp")
        return None if found is None else (found[0], found[1], found[2])

    def cosines(self, tag: int) -> Cosines | None:
        """Image Orientation (Patient)."""
        found = self.numbers(tag, 6, "iop")
        return None if found is None else (found[0], found[1], found[2], found[3], found[4], found[5])

    def pair(self, tag: int, name: str) -> tuple[float, float] | None:
        """Two numbers, as in Pixel Spacing."""
        found = self.numbers(tag, 2, name)
        return None if found is None else (found[0], found[1])

    def _binary(self, tag: int, code: str, name: str) -> int | None:
        element = self._elements.get(tag)
        raw = self.raw(tag)
        if element is None or not raw:
            return None
        size = struct.calcsize("<" + code)
        if len(raw) < size:
            self.malformed.append(name)
            return None
        return int(struct.unpack_from(("<" if element.encoding.little else ">") + code, raw)[0])
