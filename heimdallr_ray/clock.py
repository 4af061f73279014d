"""Time as an argument: nothing else in the package asks the operating system what time it is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the package needs of time."""

    def now(self) -> datetime:
        """The wall clock, timezone-aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary origin."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The wall clock, timezone-aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary origin."""
        return time.monotonic()
