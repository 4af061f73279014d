"""Reconstruction kernels: how sharp, by the vocabulary of the rule file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from heimdallr_ray.dicom.words import first_word

LETTERS: Final = "letters"
_LETTERED: Final = re.compile(r"[A-Z][A-Z]?(\d\d)[A-Z]?(?:[-_ ].*)?")
_LISTED: Final = re.compile(r"\[\s*['\"]([^'\"]*)['\"].*\]")
"""How a converter that knows no multi-valued text writes one: ['Br38f', '3']."""


class Sharpness(StrEnum):
    """How much a kernel raises noise."""

    SOFT = "soft"
    MEDIUM = "medium"
    SHARP = "sharp"
    UNKNOWN = "unknown"


class NumberRange(BaseModel):
    """Numbers up to and with `to`, from the end of the range before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Annotated[int, Field(ge=0, le=99)]
    sharpness: Annotated[Sharpness, Field(alias="is")]


class KernelRow(BaseModel):
    """One vendor's names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vendor: Annotated[str, Field(min_length=1, max_length=32)]
    manufacturer: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...]
    soft: tuple[str, ...] = ()
    medium: tuple[str, ...] = ()
    sharp: tuple[str, ...] = ()
    prefix: Annotated[str, Field(pattern=r"^(letters|[A-Z]{0,8})$")] = ""
    numbered: tuple[NumberRange, ...] = ()

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        ends = [one.to for one in self.numbered]
        if ends != sorted(set(ends)):
            raise ValueError(f"kernels {self.vendor}: numbered must ascend")
        if ends and not self.prefix:
            raise ValueError(f"kernels {self.vendor}: numbered needs a prefix")
        names = [name.upper() for name in (*self.soft, *self.medium, *self.sharp)]
        if len(set(names)) != len(names):
            raise ValueError(f"kernels {self.vendor}: a name twice")
        return self

    def sharpness(self, name: str) -> Sharpness | None:
        """How sharp this vendor's kernel `name` (upper case) is; None where the vendor has no such kernel."""
        for names, found in (
            (self.soft, Sharpness.SOFT),
            (self.medium, Sharpness.MEDIUM),
            (self.sharp, Sharpness.SHARP),
        ):
            if name in (one.upper() for one in names):
                return found
        if not self.numbered:
            return None
        pattern = _LETTERED if self.prefix == LETTERS else re.compile(rf"{re.escape(self.prefix)}(\d\d).*")
        match = pattern.fullmatch(name)
        if match is None:
            return None
        return next((one.sharpness for one in self.numbered if int(match[1]) <= one.to), None)


def first_kernel(kernel: str) -> str:
    """The kernel's name: of several values (Siemens writes the kernel and its iterative strength) the first."""
    name = kernel.split("\\")[0].strip()
    listed = _LISTED.fullmatch(name)
    return (listed[1] if listed else name).strip()


def sharpness(kernel: str, vocabulary: Sequence[KernelRow], manufacturer: str = "") -> Sharpness:
    """How sharp Convolution Kernel (0018,1210) is; UNKNOWN where it is blank or no vendor has such a kernel.

    Rows of the images' own manufacturer are asked first: two vendors may use one name.
    """
    name = first_kernel(kernel).upper()
    if not name:
        return Sharpness.UNKNOWN
    own = [row for row in vocabulary if first_word(manufacturer, row.manufacturer)]
    return _first(row.sharpness(name) for row in (*own, *vocabulary)) or Sharpness.UNKNOWN


def _first(found: Iterable[Sharpness | None]) -> Sharpness | None:
    return next((one for one in found if one is not None), None)
