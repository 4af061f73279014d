"""Text of received objects: character sets (PS3.5 section 6.1), VR lengths, control characters."""

from __future__ import annotations

import re
from typing import Final

from pydicom import charset

_TERM_TO_CODEC: Final = charset.python_encoding
_ESCAPE_TO_CODEC: Final = charset.CODES_TO_ENCODINGS
_FALLBACK: Final = "iso8859-1"
_BEFORE_ESCAPE: Final = re.compile(rb"(?=\x1b)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

DEFAULT_CODECS: Final = (_FALLBACK,)


def codecs_of(specific_character_set: bytes) -> tuple[str, ...]:
    """Python codecs of Specific Character Set (0008,0005); Latin-1 stands for what is blank or unknown."""
    terms = specific_character_set.decode("ascii", "replace").strip("\0 ").split("\\")
    return tuple(_TERM_TO_CODEC.get(term.strip(), _FALLBACK) for term in terms) or DEFAULT_CODECS


def decode(value: bytes, codecs: tuple[str, ...], max_chars: int) -> str:
    """The text of one value, without padding and control characters, at most `max_chars` long.

    Never raises: bytes that the character set does not have become U+FFFD.
    """
    value = value[: 4 * max_chars + 64]
    if b"\x1b" in value:
        text = "".join(_fragment(part, codecs[0]) for part in _BEFORE_ESCAPE.split(value))
    elif value.isascii():
        text = value.decode("ascii")
    else:
        text = value.decode(codecs[0], "replace")
    return _CONTROL.sub(" ", text.strip("\0 ")).strip()[:max_chars]


def _fragment(part: bytes, first_codec: str) -> str:
    """One run between escape sequences of ISO 2022 (PS3.5 section 6.1.2.5.3)."""
    if not part.startswith(b"\x1b"):
        return part.decode(first_codec, "replace")
    for length in (4, 3):
        codec = _ESCAPE_TO_CODEC.get(part[:length])
        if codec is not None:
            # Python's iso2022 codecs want to see the escape sequence, the others must not.
            return (
                part.decode(codec, "replace") if codec.startswith("iso2022") else part[length:].decode(codec, "replace")
            )
    return part[1:].decode("ascii", "replace")
