"""Studies are followed side by side; the seconds of their stages are what the stack wrote down, or not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from heimdallr_ray.catalog.states import TERMINAL
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.errors import NotReady
from heimdallr_ray.ids import Uid
from heimdallr_ray.operations import demo
from heimdallr_ray.operations.demo import Follower, stages_of
from heimdallr_ray.operations.demo_studies import DemoStudy

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


def study(label: str) -> DemoStudy:
    return DemoStudy(label, Uid(f"2.25.{len(label)}"), Path(), 1, {})


def answering(states: Mapping[str, Sequence[str]]) -> httpx.MockTransport:
    """An API that gives each study its next state at each question, and the last one for ever; "" is unknown."""
    left: dict[str, Iterator[str]] = {str(study(label).study_uid): iter(given) for label, given in states.items()}
    last: dict[str, str] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        uid = request.url.path.rsplit("/", 1)[1]
        last[uid] = next(left[uid], last.get(uid, ""))
        if not last[uid]:
            return httpx.Response(404)
        state, _, step = last[uid].partition(": ")
        return httpx.Response(200, json={"study": {"study_uid": uid, "state": state, "step": step, "reason": ""}})

    return httpx.MockTransport(answer)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "POLL_S", 0.001)
    monkeypatch.setattr(demo, "STUDY_S", 5.0)


def test_the_second_study_is_told_of_while_the_first_still_runs() -> None:
    told: list[str] = []
    states = {
        "long": ["queued", "queued", "running: segment", "running: segment", "running: render", "done"],
        "short one": ["", "running: segment", "done", "done"],
    }
    found = Follower("http://127.0.0.1", told.append, answering(states)).follow(study("long"), study("short one"))
    assert [one["study"]["study_uid"] for one in found] == ["2.25.4", "2.25.9"]
    assert told == [
        "long: queued",
        "short one: running: segment",
        "long: running: segment",
        "short one: done",
        "long: running: render",
        "long: done",
    ]


def test_the_demo_follows_all_its_studies_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[list[str]] = []

    class Recorder:
        def __init__(self, *_: object) -> None:
            """Nothing is asked."""

        def follow(self, *studies: DemoStudy) -> list[dict[str, Any]]:
            followed.append([one.label for one in studies])
            row = {"state": "failed", "urgency": None, "reason_code": "", "reason": ""}
            return [{"study": row, "artifacts": []} for _ in studies]

        def worklist(self) -> list[str]:
            return [str(study(label).study_uid) for label in reversed(demo.LABELS)]

    monkeypatch.setattr(demo, "Follower", Recorder)
    monkeypatch.setattr(demo, "write_demo_study", lambda label, *_: study(label))
    monkeypatch.setattr(demo, "send_folder", lambda *_, **__: SimpleNamespace(failed=0))
    supervisor: Any = SimpleNamespace(settings=SimpleNamespace(ae_title="A", dicom_port=1), url="")
    document = cast(Any, demo)._studies(supervisor, tmp_path, SystemClock(), lambda _: None)
    assert followed == [list(demo.LABELS)]
    assert [one["label"] for one in document["studies"]] == list(reversed(demo.LABELS))


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_every_terminal_state_ends_the_following(state: str) -> None:
    (found,) = Follower("http://127.0.0.1", lambda _: None, answering({"one": [state]})).follow(study("one"))
    assert found["study"]["state"] == state


def test_a_study_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STUDY_S", 0.2)
    follower = Follower("http://127.0.0.1", lambda _: None, answering({"one": ["done"], "other": ["running"]}))
    with pytest.raises(NotReady, match=r"^other was not finished"):
        follower.follow(study("one"), study("other"))


def test_an_api_that_answers_with_an_error_ends_the_following() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(500, text="no"))
    with pytest.raises(NotReady, match="the API answers 500: no"):
        Follower("http://127.0.0.1", lambda _: None, transport).follow(study("one"))
