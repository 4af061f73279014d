"""How long studies have been quiet and open: durations that nobody changes by setting the clock of the wall.

Within the process time passes by the monotonic clock, and a change is younger than the look before it. Only what
happened before the process began is dated by the wall clock, because nothing else survives a restart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from heimdallr_ray.catalog.closing import OpenStudy, Version
from heimdallr_ray.clock import Clock


@dataclass(frozen=True)
class Durations:
    """Of one study."""

    quiet_s: float
    """Since its last image, the end of the last association that sent to it, and the last moment that one was open."""
    open_s: float
    """Since the first image of its epoch."""


@dataclass(frozen=True)
class _Seen:
    version: Version
    ended_at: datetime | None
    quiet_from: float
    open_from: float


class StudyWatch:
    """What one process has seen of the studies that are open. Not safe for several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._looked_at: float | None = None
        self._at = clock.monotonic()
        self._wall = clock.now()

    def begin(self) -> None:
        """A look at all studies begins."""
        self._at, self._wall = self._clock.monotonic(), self._clock.now()

    def see(self, study: OpenStudy, ended_at: datetime | None, opened_at: datetime, *, sending: bool) -> Durations:
        """The durations of `study` now; `sending` where an association is open that has sent to it.

        Args:
            study: as it is.
            ended_at: end of the last association that sent to it; None where it is not known.
            opened_at: when the first image of its epoch came.
            sending: it is not quiet at all.
        """
        before = self._seen.get(study.id)
        active_at = study.last_received_at if ended_at is None else max(study.last_received_at, ended_at)
        if before is None or before.version[0] != study.epoch:
            open_from = self._at - self._age_s(opened_at)
            seen = _Seen(study.version, ended_at, self._at - self._age_s(active_at), open_from)
        elif (before.version, before.ended_at) != (study.version, ended_at):
            quiet_from = max(before.quiet_from, self._at - self._age_s(active_at))
            seen = _Seen(study.version, ended_at, quiet_from, before.open_from)
        else:
            seen = before
        self._seen[study.id] = replace(seen, quiet_from=self._at) if sending else seen
        return Durations(0.0 if sending else self._at - seen.quiet_from, self._at - seen.open_from)

    def end(self, study_ids: Collection[str]) -> None:
        """The look is over; studies that it did not find are forgotten."""
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in study_ids}
        self._looked_at = self._at

    def _age_s(self, at: datetime) -> float:
        age_s = max(0.0, (self._wall - at).total_seconds())
        return age_s if self._looked_at is None else min(age_s, self._at - self._looked_at)
