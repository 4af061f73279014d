"""Whether what the supervisor started still works: told once when it does not, and once when it does again.

A part that fails for a moment is Ray's to restart. Only trouble that lasts longer than such a restart is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import httpx

from heimdallr_ray.config import Settings
from heimdallr_ray.deployments import readiness
from heimdallr_ray.operations import application

log = logging.getLogger(__name__)

LISTENER = "DICOM listener"
APPLICATION = "Serve application"
GRACE_S: Mapping[str, float] = {LISTENER: 20.0, APPLICATION: 60.0}
"""Longer than Ray's own restart: a listener is back within 2 to 10 s, a Segmenter has loaded its models after 30 s."""
POLL_S = 10.0
"""A look costs about 0.1 s of CPU, most of it in Ingress and in Serve's controller."""
ANSWER_S = 2.0
INTAKE = "intake"
"""The check that a draining stack fails on purpose."""


@dataclass(frozen=True)
class Change:
    """Something to tell. `reason` is empty where the part works again."""

    part: str
    reason: str
    seconds: float
    """How long the trouble has lasted."""


@dataclass(frozen=True)
class _Trouble:
    since: float
    reason: str
    told: bool = False


class Vigil:
    """What was seen of each part. Holds no clock and asks nobody."""

    def __init__(self, grace_s: Mapping[str, float] = GRACE_S) -> None:
        """`grace_s`: part to how long its trouble may last untold."""
        self._grace_s = grace_s
        self._troubles: dict[str, _Trouble] = {}

    def observe(self, part: str, reason: str, now: float) -> Change | None:
        """What is to be told after `part` was seen at `now` (monotonic seconds) with `reason`, empty where it works."""
        known = self._troubles.get(part)
        if not reason:
            self._troubles.pop(part, None)
            return Change(part, "", now - known.since) if known is not None and known.told else None
        since = known.since if known else now
        told = known.told if known else False
        due = now - since >= self._grace_s[part]
        self._troubles[part] = _Trouble(since, reason, told or due)
        return Change(part, reason, now - since) if due and not told else None

    @property
    def lost(self) -> dict[str, str]:
        """Part to reason, of those whose trouble was told and lasts."""
        return {part: trouble.reason for part, trouble in self._troubles.items() if trouble.told}


def trouble_of(body: Mapping[str, Any], *, draining: bool) -> str:
    """What the document of /api/v1/ready tells of trouble, but for the listener; empty where there is none."""
    # The listener is asked by the supervisor itself, also while nothing answers HTTP.
    return application.unwell(body, {readiness.LISTENER, *([INTAKE] if draining else [])})


def application_trouble(settings: Settings, *, draining: bool) -> str:
    """What is wrong with the application, in words; empty where it works. Waits ANSWER_S at most for each answer."""
    try:
        with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
            answer = client.get(f"{application.server_url(settings)}/api/v1/ready")
    except httpx.HTTPError as error:
        return f"HTTP does not answer: {type(error).__name__}"
    try:
        return trouble_of(cast("dict[str, Any]", answer.json()), draining=draining)
    except (ValueError, KeyError, TypeError):
        return f"/api/v1/ready answers {answer.status_code} without a readiness document"


class WatchedListener(Protocol):
    """The listener's actor."""

    @property
    def answers(self) -> bool:
        """Whether the last `trouble` was told by itself: then a restart may help, and Ray does not see that it must."""
        ...

    def trouble(self) -> str:
        """What is wrong, in words; empty where it works."""
        ...

    def restart(self) -> None:
        """Its process is ended and started again."""
        ...


class Watch:
    """Looks at the listener and the application now and then, tells what changes and notes the state that follows."""

    def __init__(
        self,
        settings: Settings,
        listener: WatchedListener,
        progress: Callable[[str], None],
        note: Callable[[str, str], None],
    ) -> None:
        """`note(state, detail)` is called after each look."""
        self._settings = settings
        self._listener = listener
        self._progress = progress
        self._note = note
        self._vigil = Vigil()
        self._state = "ready"
        self._look_at = 0.0

    def look(self, *, draining: bool) -> None:
        """Every part is asked, at most once per POLL_S; each answer is waited for a second or two at most."""
        if time.monotonic() < self._look_at:
            return
        for part, reason in (
            (LISTENER, self._listener.trouble()),
            (APPLICATION, application_trouble(self._settings, draining=draining)),
        ):
            change = self._vigil.observe(part, reason, time.monotonic())
            if change is not None:
                self._tell(change)
        lost = self._vigil.lost
        state = "draining" if draining else "degraded" if lost else "ready"
        if state == "ready" and self._state == "degraded":
            self._progress("ready")
        self._state = state
        self._note(state, "; ".join(f"{part}: {reason}" for part, reason in lost.items()))
        self._look_at = time.monotonic() + POLL_S

    def _tell(self, change: Change) -> None:
        fields = {"part": change.part, "reason": change.reason, "seconds": round(change.seconds, 1)}
        if not change.reason:
            log.warning("part.works_again", extra=fields)
            self._progress(f"{change.part} works again after {change.seconds:.0f} s")
            return
        log.error("part.does_not_work", extra=fields)
        self._progress(f"degraded: {change.part} does not work since {change.seconds:.0f} s: {change.reason}")
        if change.part == LISTENER and self._listener.answers:
            self._listener.restart()
