"""Words in free text, found with their boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=1024)
def _pattern(word: str) -> re.Pattern[str]:
    # Underscores part words too: "MIP_axial" holds the word "mip", "hemipelvis" does not.
    begin = r"(?<![^\W_])" if word[0].isalnum() else ""
    end = r"(?![^\W_])" if word[-1].isalnum() else ""
    return re.compile(begin + re.escape(word) + end, re.IGNORECASE)


def spans(text: str, words: Iterable[str]) -> list[tuple[int, int, str]]:
    """(start, end, word) of every place where one of `words` stands in `text` as a word, in any case."""
    return [(found.start(), found.end(), word) for word in words for found in _pattern(word).finditer(text)]


def first_word(text: str, words: Iterable[str]) -> str | None:
    """The first of `words` that stands in `text` as a word, in any case; None where none does."""
    return next((word for word in words if _pattern(word).search(text)), None)
