"""The live stream over real HTTP: what is committed arrives soon, once, in order, also after a break."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.api.events import build_router
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.transitions import transition
from heimdallr_ray.events.reader import CatalogEvents
from tests.support.seeded import add_study
from tests.support.server import serving

UID = "1.2.826.0.1.3680043.10.1338.77"
TIMEOUT = httpx.Timeout(30.0)


def messages(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Parsed messages, comments and retry lines left out."""
    message: dict[str, Any] = {}
    for line in response.iter_lines():
        if line == "" and "data" in message:
            yield message
            message = {}
        elif line.startswith("id: "):
            message["id"] = int(line[4:])
        elif line.startswith("event: "):
            message["event"] = line[7:]
        elif line.startswith("data: "):
            message["data"] = json.loads(line[6:])


def move(made: ApiServices, study_id: str, *states: StudyState) -> None:
    for state in states:
        with made.database.write() as session:
            transition(session, study_id, state, now=made.clock.now(), actor="test")


def test_a_change_arrives_within_a_second(empty: ApiServices):
    with empty.database.write() as session:
        study_id = add_study(session, UID, empty.clock.now()).id
    with serving(create_app(empty)) as base, httpx.stream("GET", f"{base}/api/v1/events", timeout=TIMEOUT) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache, no-transform"
        stream = messages(response)
        first = next(stream)
        assert first["event"] == "resync"
        move(empty, study_id, StudyState.RUNNING)
        committed = time.monotonic()
        change = next(stream)
        waited_s = time.monotonic() - committed
        assert change["event"] == "study"
        assert change["data"]["study_uid"] == UID
        assert (change["data"]["old"], change["data"]["new"]) == ("queued", "running")
        assert set(change["data"]) == {"id", "at", "kind", "study_uid", "old", "new"}
        assert waited_s < 5  # 0.4 s plus a query; the bound leaves room for a loaded machine


def test_after_a_restart_the_stream_goes_on_after_the_last_event(empty: ApiServices):
    with empty.database.write() as session:
        study_id = add_study(session, UID, empty.clock.now()).id
    with serving(create_app(empty)) as base, httpx.stream("GET", f"{base}/api/v1/events", timeout=TIMEOUT) as response:
        last = next(messages(response))["id"]
    move(empty, study_id, StudyState.RUNNING, StudyState.DONE)
    headers = {"Last-Event-ID": str(last)}
    with (
        serving(create_app(empty)) as base,
        httpx.stream("GET", f"{base}/api/v1/events", headers=headers, timeout=TIMEOUT) as response,
    ):
        stream = messages(response)
        missed = [next(stream), next(stream)]
    assert [message["data"]["new"] for message in missed] == ["running", "done"]
    assert missed[0]["id"] > last
    assert missed[1]["id"] > missed[0]["id"]


def test_other_requests_are_served_while_streams_are_open(empty: ApiServices):
    with serving(create_app(empty)) as base, httpx.Client(base_url=base, timeout=TIMEOUT) as client:
        opened = [client.stream("GET", "/api/v1/events") for _ in range(8)]
        try:
            # A reader that is dropped closes its stream: they are kept until the end.
            readers = [messages(stream.__enter__()) for stream in opened]
            assert [next(reader)["event"] for reader in readers] == ["resync"] * 8
            assert client.get("/api/v1/health").json() == {"status": "alive"}
        finally:
            for stream in opened:
                stream.__exit__(None, None, None)


def test_too_many_streams_are_refused_with_a_time_to_come_back(empty: ApiServices, monkeypatch: pytest.MonkeyPatch):
    from heimdallr_ray.api import app as module

    monkeypatch.setattr(module.events, "build_router", lambda feed: build_router(feed, max_streams=1))
    with serving(create_app(empty)) as base, httpx.stream("GET", f"{base}/api/v1/events", timeout=TIMEOUT) as response:
        stream = messages(response)
        next(stream)
        refused = httpx.get(f"{base}/api/v1/events", timeout=TIMEOUT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "not_ready"
        assert int(refused.headers["retry-after"]) > 0


def test_the_reader_names_studies_by_uid(empty: ApiServices):
    reader = CatalogEvents(empty.database)
    assert reader.latest() == 0
    with empty.database.write() as session:
        add_study(session, UID, empty.clock.now())
    assert [event.study_uid for event in reader.after(0, 10)] == [UID]
    assert reader.after(reader.latest(), 10) == []
