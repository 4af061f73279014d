"""How long studies have been quiet and open: durations that nobody changes by setting the clock of the wall.

Within the process time passes by the monotonic clock, and a change is younger than the look before it. Only what
happened before the process began is dated by the wall clock, because nothing else survives a restart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
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
    looked_at: float
    sending: bool


class StudyWatch:
    """What one process has seen of the studies that are open. Not safe for several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._all_seen_at: float | None = None
        self._at = self._round_at = clock.monotonic()
        self._wall = clock.now()

    def begin(self, *, anew: bool = True) -> None:
        """A look at studies begins; `anew` where it is the first of a round, in which each open one is seen."""
        self._at, self._wall = self._clock.monotonic(), self._clock.now()
        if anew:
            self._round_at = self._at

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
        # A study that was not found by the last whole round came after that began.
        since = self._all_seen_at if before is None else before.looked_at
        quiet_from = open_from = self._at
        if before is None or before.version[0] != study.epoch:
            quiet_from -= self._age_s(active_at, since)
            open_from -= self._age_s(opened_at, since)
        else:
            open_from = before.open_from
            if (before.version, before.ended_at) != (study.version, ended_at):
                quiet_from = max(before.quiet_from, self._at - self._age_s(active_at, since))
            elif not before.sending:
                quiet_from = before.quiet_from
        if sending:
            quiet_from = self._at
        self._seen[study.id] = _Seen(study.version, ended_at, quiet_from, open_from, self._at, sending)
        return Durations(self._at - quiet_from, self._at - open_from)

    def end(self, study_ids: Collection[str]) -> None:
        """The round is over; studies that it did not find are forgotten."""
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in study_ids}
        self._all_seen_at = self._round_at

    def _age_s(self, at: datetime, since: float | None) -> float:
        """How long ago `at` was, but never before `since`; None: the process has not been there for so long."""
        age_s = max(0.0, (self._wall - at).total_seconds())
        return age_s if since is None else min(age_s, self._at - since)
