"""Closing studies from a test as the watcher does it, by the clock that the test holds, with a verdict of its own.

The watcher itself, with what it asks of senders and rules, is not in it: `tests/load/test_late_images.py` and
`tests/integration/listener/test_completion.py` run that one.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlmodel import Session

from heimdallr_ray.catalog.closing import Change, apply_changes, open_studies
from heimdallr_ray.catalog.completeness import QUIET_S, CloseCode, Verdict
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, SourceRule


def policy(idle_s: float, *sources: SourceRule, max_open_s: float = 7200.0) -> CompletionPolicy:
    """One wait for everything, and `sources`."""
    return CompletionPolicy(CompletionRules(idle_s, idle_s, idle_s, max_open_s), sources)


def close_idle_studies(
    session: Session, now: datetime, idle_s: float, busy: Collection[str], max_attempts: int, actor: str
) -> list[str]:
    """Studies without an image for `idle_s` are closed and quiet ones settle, but for the `busy` ones; returns ids."""
    changes: list[Change] = []
    for study in open_studies(session):
        quiet_s = (now - study.last_received_at).total_seconds()
        verdict = Verdict(CloseCode.IDLE, idle_s - quiet_s, f"{idle_s:g} s without an image")
        if study.study_uid not in busy:
            changes.append(
                Change(study, verdict, now, close=verdict.in_s <= 0, settling=quiet_s >= min(QUIET_S, idle_s))
            )
    return apply_changes(session, changes, now=now, max_attempts=max_attempts, actor=actor)
