"""One word a minute about the same thing: a peer that is refused a thousand times a second fills no audit chain."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

WINDOW_S = 60.0
MAX_KEYS = 4096
"""Pairs of address and reason that are remembered; beyond, those that were told longest ago are told again."""
MAX_PER_WINDOW = 600
"""Words about all of them in one window: ten a second, though an attacker has any number of addresses."""

Key = tuple[str, str]
"""Address and reason."""


@dataclass
class _Seen:
    told_at: float
    kept_back: int = 0


class FloodGate:
    """Decides what is told. Pure: time is an argument, seconds of a clock that never goes back. For one thread."""

    def __init__(
        self, window_s: float = WINDOW_S, max_keys: int = MAX_KEYS, max_per_window: int = MAX_PER_WINDOW
    ) -> None:
        self._window_s = window_s
        self._max_keys = max_keys
        self._max_per_window = max_per_window
        self._seen: OrderedDict[Key, _Seen] = OrderedDict()
        self._window_began = float("-inf")
        self._told = 0
        self._unnamed = 0

    def admit(self, address: str, reason: str, now_s: float) -> int | None:
        """Whether this one is to be told: how many of the same were kept back since the last word; None: keep it back.

        The first of a pair is told at once, with 0.
        """
        key = (address, reason)
        seen = self._seen.get(key)
        if seen is not None and now_s - seen.told_at < self._window_s:
            seen.kept_back += 1
            return None
        if not self._has_room(now_s):
            if seen is None:
                self._unnamed += 1
            else:
                seen.kept_back += 1
            return None
        before = 0 if seen is None else seen.kept_back
        self._seen[key] = _Seen(now_s)
        self._seen.move_to_end(key)
        while len(self._seen) > self._max_keys:
            _, lost = self._seen.popitem(last=False)
            self._unnamed += lost.kept_back
        return before

    def due(self, now_s: float) -> list[tuple[str, str, int]]:
        """Address, reason and count of what was kept back and whose window is over; each is given once.

        Last, with an empty address and the reason `many`: those that no pair stands for any more.
        """
        found: list[tuple[str, str, int]] = []
        for key, seen in list(self._seen.items()):
            if now_s - seen.told_at < self._window_s:
                continue
            if not seen.kept_back:
                del self._seen[key]
            elif self._has_room(now_s):
                found.append((*key, seen.kept_back))
                self._seen[key] = _Seen(now_s)
                self._seen.move_to_end(key)
        if self._unnamed and self._has_room(now_s):
            found.append(("", "many", self._unnamed))
            self._unnamed = 0
        return found

    def _has_room(self, now_s: float) -> bool:
        """Counts one word of the present window, where there is room for it."""
        if now_s - self._window_began >= self._window_s:
            self._window_began, self._told = now_s, 0
        if self._told >= self._max_per_window:
            return False
        self._told += 1
        return True
