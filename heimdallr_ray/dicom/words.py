"""Words in free text, found with their boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

Span = tuple[int, int, str]
"""Start, end and word of one place."""

_ALONE_BEGIN: Final = r"(?<![^\W_])"
_ALONE_END: Final = r"(?![^\W_]|[/&,.\-][^\W_])"


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    if not any(map(str.isalnum, word)):
        return re.compile(re.escape(word))
    if word[0] in "+-" and word[-1].isalpha():
        # "+C" is neither in "A+C" nor in "+C5" nor in "+C/T-spine".
        return re.compile(_ALONE_BEGIN + _spelled(word) + _ALONE_END, re.IGNORECASE)
    # Underscores part words, and so do digits: "MIP_axial" and "MIP10" hold the word "mip", "hemipelvis" does not.
    begin = r"(?<![^\W\d_])" if word[0].isalpha() else r"(?<!\d)" if word[0].isdigit() else ""
    # "C-" is neither in "C-spine" nor in "C-5"; a slash joins: "w/contrast".
    last = word[-1]
    end = r"(?![^\W\d_])" if last.isalpha() else r"(?!\d)" if last.isdigit() else "" if last == "/" else r"(?![^\W_])"
    return re.compile(begin + _spelled(word) + end, re.IGNORECASE)


def _spelled(word: str) -> str:
    return r"[\s_\-]*".join(re.escape(part) for part in word.split())


def spans(text: str, words: Iterable[str]) -> list[Span]:
    """Every place where one of `words` stands in `text` as a word, in any case.

    A space in a word stands for any spaces, hyphens and underscores, or none: "non contrast" is found in "NON-CONTRAST"
    and in "noncontrast".
    """
    return [(found.start(), found.end(), word) for word in words for found in _pattern(word).finditer(text)]


def longest(found: Iterable[Span]) -> list[Span]:
    """Those that lie in no longer one."""
    listed = list(found)
    return [
        one
        for one in listed
        if not any(other[:2] != one[:2] and other[0] <= one[0] and one[1] <= other[1] for other in listed)
    ]


def first_word(text: str, words: Iterable[str]) -> str | None:
    """The first of `words` that stands in `text` as a word, in any case; None where none does."""
    return next((word for word in words if _pattern(word).search(text)), None)
