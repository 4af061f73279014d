"""A clock that stands still until it is told to move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """A `heimdallr_ray.clock.Clock`; `advance` moves both sides, `step` only the wall."""

    def __init__(self, start: datetime = EPOCH) -> None:
        self._now = start
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> datetime:
        """Time passes; returns the new time."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
        return self._now

    def step(self, seconds: float) -> datetime:
        """Somebody set the wall clock; no time passes."""
        self._now += timedelta(seconds=seconds)
        return self._now
