"""Seconds of a finished study's stages come from what the stack wrote down, or are not known."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from heimdallr_ray.operations.demo import stages_of

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def event(seconds: float, kind: str, new: str) -> dict[str, Any]:
    return {"at": at(seconds), "kind": kind, "new": new}


def detail(*history: dict[str, Any]) -> dict[str, Any]:
    row = {"first_received_at": at(0), "last_received_at": at(4), "closed_at": at(6), "done_at": at(30)}
    return {"study": row, "history": [event(7, "study.state", "running"), *history]}


RESULTS: dict[str, Any] = {"stage_seconds": {"segment": 15.0, "forward": 14.0, "render": 2.0}}


def test_the_commit_is_timed_by_its_own_step_whatever_the_other_stages_add_up_to() -> None:
    stages = stages_of(detail(event(28.5, "study.step", "commit")), RESULTS)
    assert stages == {
        "receive": 4.0,
        "settle": 2.0,
        "wait": 1.0,
        "segment": 15.0,
        "forward": 14.0,
        "render": 2.0,
        "commit": 1.5,
        "after_close": 24.0,
    }


def test_of_two_attempts_the_one_that_committed_counts() -> None:
    history = [
        event(12, "study.step", "commit"),
        event(14, "study.state", "running"),
        event(29, "study.step", "commit"),
    ]
    assert stages_of(detail(*history), RESULTS)["commit"] == 1.0


def test_a_commit_that_was_not_recorded_has_no_seconds() -> None:
    assert stages_of(detail(event(20, "study.step", "render")), RESULTS)["commit"] is None
