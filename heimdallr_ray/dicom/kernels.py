"""Reconstruction kernels: how sharp, by manufacturer's naming. A table; site vocabularies are added as rows."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final


class Sharpness(IntEnum):
    """How much a kernel raises noise; the order is the order of preference for measuring soft tissue."""

    SOFT = 0
    MEDIUM = 1
    SHARP = 2


_SIEMENS: Final = re.compile(r"[A-Z][A-Z]?(\d\d)[A-Z]?(?:[-_ ].*)?")
_SIEMENS_SOFT_MAX: Final = 45
_SIEMENS_MEDIUM_MAX: Final = 55
_CANON: Final = re.compile(r"FC(\d\d).*")

_NAMED: Final[dict[str, Sharpness]] = {
    # GE
    "STANDARD": Sharpness.SOFT,
    "STD": Sharpness.SOFT,
    "STD+": Sharpness.SOFT,
    "SOFT": Sharpness.SOFT,
    "CHST": Sharpness.SOFT,
    "DETAIL": Sharpness.MEDIUM,
    "LUNG": Sharpness.SHARP,
    "BONE": Sharpness.SHARP,
    "BONEPLUS": Sharpness.SHARP,
    "BONE+": Sharpness.SHARP,
    "EDGE": Sharpness.SHARP,
    "ULTRA": Sharpness.SHARP,
    # Philips
    "A": Sharpness.SOFT,
    "B": Sharpness.SOFT,
    "C": Sharpness.SOFT,
    "UA": Sharpness.SOFT,
    "UB": Sharpness.SOFT,
    "UC": Sharpness.SOFT,
    "D": Sharpness.SHARP,
    "E": Sharpness.SHARP,
    "L": Sharpness.SHARP,
    "YA": Sharpness.SHARP,
    "YB": Sharpness.SHARP,
    "YC": Sharpness.SHARP,
    "YD": Sharpness.SHARP,
}

_CANON_RANGES: Final = (
    (range(1, 20), Sharpness.SOFT),
    (range(20, 30), Sharpness.MEDIUM),
    (range(30, 40), Sharpness.SHARP),
    (range(50, 60), Sharpness.SHARP),
    (range(80, 90), Sharpness.SHARP),
)


def sharpness(kernel: str) -> Sharpness | None:
    """How sharp Convolution Kernel (0018,1210) is; None where the name is blank or not in the table.

    Of several values (Siemens writes the kernel and its iterative strength) the first counts.
    """
    name = kernel.split("\\")[0].strip().upper()
    if name in _NAMED:
        return _NAMED[name]
    if match := _CANON.fullmatch(name):
        number = int(match[1])
        return next((sharp for numbers, sharp in _CANON_RANGES if number in numbers), None)
    if match := _SIEMENS.fullmatch(name):
        number = int(match[1])
        if number <= _SIEMENS_SOFT_MAX:
            return Sharpness.SOFT
        return Sharpness.MEDIUM if number <= _SIEMENS_MEDIUM_MAX else Sharpness.SHARP
    return None
