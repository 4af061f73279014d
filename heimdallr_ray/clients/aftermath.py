"""What a server on this machine says of what it was just sent: what was new to it, and what becomes of the studies.

A courtesy to the person who sent: whatever the server does not answer in time, or forbids, is not told. Nothing is
computed from the sender's own settings, which may not be the server's, and sources may have rules of their own.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote

import httpx

from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.listener.exposition import PREFIX

STUDY_PATH = "/api/v1/studies/"
METRICS_PATH = "/metrics"
TIMEOUT_S = 3.0
"""Of one question."""
PATIENCE_S = 5.0
"""For all of them: the listener looks every few seconds at what has become quiet."""
PAUSE_S = 0.25
MAX_STUDIES = 20


_COUNTED = re.compile(rf"^{PREFIX}_(committed|duplicates)_total(?:{{[^}}]*}})? ([0-9.e+]+)$", re.MULTILINE)
_NO_ROW = ""
"""An image is acknowledged once it is on the disk, a moment before the catalog knows its study."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a study, as the server says it."""

    study_uid: str
    state: str
    reason: str = ""
    """Why it will be closed then, or is open; empty where the server has not decided yet."""
    closes_in_s: float | None = None
    """Until it is closed if nothing more comes; None where that is not known, or it is closed."""
    uid_conflicts: int = 0
    """SOP Instance UIDs of it under which images with different bytes came, now or before."""

    @property
    def decided(self) -> bool:
        """True where it is closed, or the server says when it will be."""
        return self.closes_in_s is not None or self.state not in (_NO_ROW, StudyState.RECEIVING, StudyState.SETTLING)


@dataclass(frozen=True)
class Tally:
    """What the server's processes have entered into the catalog since they began, whoever sent it."""

    new: int = 0
    known: int = 0
    """Objects that were there before, byte for byte."""


class Server:
    """The server at `base`, asked with `token`; without a base nothing is known of anything."""

    def __init__(self, base: str | None, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._base = None if base is None else base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s

    def tally(self) -> Tally | None:
        """What the server has counted until now; None where it does not tell."""
        answer = self._get(METRICS_PATH)
        if answer is None or answer.status_code != 200:
            return None
        counted: Counter[str] = Counter()
        for name, value in _COUNTED.findall(answer.text):
            counted[name] += int(float(value))
        return Tally(counted["committed"], counted["duplicates"])

    def known_of(self, before: Tally | None, sent: int, patience_s: float = PATIENCE_S) -> int | None:
        """Of `sent` images those that the server had before; None where that cannot be told for certain.

        Args:
            before: the tally before the first of them.
            sent: images that were answered with Success.
            patience_s: how long the server may take to count them.
        """
        if before is None:
            return None
        deadline = time.monotonic() + patience_s
        while (now := self.tally()) is not None:
            new, known = now.new - before.new, now.known - before.known
            if new + known == sent and min(new, known) >= 0:
                return known
            # More than we sent: somebody else sends too, and whose the known ones were is not told.
            if new + known > sent or time.monotonic() >= deadline:
                return None
            time.sleep(PAUSE_S)
        return None

    def fates(self, study_uids: Sequence[str], patience_s: float = PATIENCE_S) -> tuple[Fate, ...]:
        """What becomes of the first MAX_STUDIES of these studies; waits a moment for what is not decided yet."""
        deadline = time.monotonic() + patience_s
        found: dict[str, Fate] = {}
        waiting = list(study_uids[:MAX_STUDIES])
        while waiting:
            for uid in waiting:
                fate = self._fate(uid)
                if fate is None:
                    # It does not answer, or not to us: asking for the others would take as long each.
                    return _told(found, study_uids)
                found[uid] = fate
            waiting = [uid for uid in waiting if not found[uid].decided]
            if not waiting or time.monotonic() >= deadline:
                break
            time.sleep(PAUSE_S)
        return _told(found, study_uids)

    def _fate(self, study_uid: str) -> Fate | None:
        answer = self._ask(STUDY_PATH + quote(study_uid, safe=""))
        if answer is None:
            return None
        if not answer:
            return Fate(study_uid, _NO_ROW)
        try:
            study = answer["study"]
            fate = Fate(study_uid, str(study["state"]), uid_conflicts=int(study.get("uid_conflicts", 0)))
            completion = study.get("completion")
            if not completion:
                return fate
            fate = replace(fate, reason=str(completion["reason"]))
            if completion["closes_at"] is None:
                return fate
            now = datetime.fromisoformat(str(answer["server_now"]))
            closes_at = datetime.fromisoformat(str(completion["closes_at"]))
            return replace(fate, closes_in_s=max(0.0, (closes_at - now).total_seconds()))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def _ask(self, path: str) -> dict[str, Any] | None:
        """The answer; empty where there is no such thing (404), None where there is no answer for us."""
        answer = self._get(path)
        if answer is None or answer.status_code not in (200, 404):
            return None
        if answer.status_code == 404:
            return {}
        try:
            told = answer.json()
        except ValueError:
            return None
        return cast("dict[str, Any]", told) if isinstance(told, dict) else None

    def _get(self, path: str) -> httpx.Response | None:
        if self._base is None:
            return None
        try:
            # The environment's proxies are for the internet, not for this machine.
            with httpx.Client(timeout=self._timeout_s, trust_env=False) as client:
                return client.get(self._base + path, headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None


def _told(found: dict[str, Fate], study_uids: Sequence[str]) -> tuple[Fate, ...]:
    return tuple(found[uid] for uid in study_uids if uid in found and found[uid].state != _NO_ROW)
