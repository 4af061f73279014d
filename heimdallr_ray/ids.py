"""Identifiers: parsed once at the door, trusted afterwards. Nothing received is ever used as a file name."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Callable
from functools import lru_cache

from heimdallr_ray.errors import BadIdentifier

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_LENIENT_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_KEPT = 128
"""Characters of a text that is remembered; what is longer without its padding is no UID."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMESPACE = uuid.UUID("5c1f8a52-0d7e-5b3a-9a64-6a1f3f0c7d11")

NewId = Callable[[], str]


def new_id() -> str:
    """A fresh random identifier: 32 hexadecimal digits."""
    return secrets.token_hex(16)


class Uid(str):
    """A DICOM unique identifier (PS3.5 section 9.1): at most 64 characters, digits and dots."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Uid:
        """The UID in `text`.

        Leading zeros in a component are tolerated (devices write them), everything else of PS3.5 9.1 is required.

        Raises:
            BadIdentifier: empty, over 64 characters, or other characters than digits and dots.
        """
        uid = _uid_in(text if len(text) <= _MAX_KEPT else text.rstrip("\0 ")[:_MAX_KEPT])
        if uid is None:
            raise BadIdentifier("not a DICOM UID (PS3.5 9.1)")
        return uid

    @classmethod
    def parse_or_none(cls, text: str | None) -> Uid | None:
        """The UID in `text`, or None where there is none or it is malformed."""
        try:
            return cls.parse(text or "")
        except BadIdentifier:
            return None

    @classmethod
    def derived(cls, *parts: str) -> Uid:
        """A UID that depends on `parts` alone: 2.25 + uuid5 (PS3.5 B.2)."""
        return cls("2.25." + str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)).int))

    @property
    def strict(self) -> bool:
        """True where no component has a leading zero."""
        return _UID.fullmatch(self) is not None


@lru_cache(maxsize=4096)
def _uid_in(text: str) -> Uid | None:
    """The UID in `text`, or None; an image names each of its own several times over, and its classes every time."""
    stripped = text.rstrip("\0 ")
    return Uid(stripped) if len(stripped) <= 64 and _LENIENT_UID.fullmatch(stripped) else None


class Sha256(str):
    """Lower-case hexadecimal sha256 of some bytes; the name of a blob."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Sha256:
        """The digest in `text`.

        Raises:
            BadIdentifier: not 64 lower-case hexadecimal digits.
        """
        if not _SHA256.fullmatch(text):
            raise BadIdentifier("not a sha256 digest")
        return cls(text)
