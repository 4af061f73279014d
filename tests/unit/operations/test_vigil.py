"""Trouble is told once it has outlasted Ray's own restart, and its end is told too."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from heimdallr_ray.config import load
from heimdallr_ray.operations import ports
from heimdallr_ray.operations.application import DISK, failing
from heimdallr_ray.operations.vigil import Vigil, Watch, application_trouble, trouble_of

PART = "DICOM listener"


@pytest.fixture
def vigil() -> Vigil:
    return Vigil({PART: 20.0})


def test_a_restart_is_not_told(vigil: Vigil) -> None:
    assert [vigil.observe(PART, reason, at) for at, reason in ((0, ""), (5, "gone"), (24, "gone"), (25, ""))] == [
        None
    ] * 4
    assert vigil.observe(PART, "gone", 30) is None
    assert vigil.observe(PART, "gone", 45) is None, "the clock of new trouble starts anew"
    assert vigil.lost == {}


def test_lasting_trouble_is_told_once_with_its_latest_reason_and_so_is_its_end(vigil: Vigil) -> None:
    assert vigil.observe(PART, "does not answer", 100) is None
    change = vigil.observe(PART, "has ended", 120)
    assert change is not None
    assert (change.part, change.reason, change.seconds) == (PART, "has ended", 20)
    assert vigil.observe(PART, "port taken", 125) is None
    assert vigil.lost == {PART: "port taken"}
    mended = vigil.observe(PART, "", 130)
    assert mended is not None
    assert (mended.reason, mended.seconds) == ("", 30)
    assert vigil.lost == {}
    assert vigil.observe(PART, "", 135) is None


def document(**components: str) -> dict[str, Any]:
    checks = [{"name": "database", "ok": True, "detail": "answers"}, {"name": "intake", "ok": True, "detail": "open"}]
    return {"ready": True, "checks": checks, "components": components}


def test_what_readiness_tells_of_trouble() -> None:
    assert trouble_of(document(Segmenter="ready", MedGemma="idle", DicomListener="absent"), draining=False) == ""
    told = trouble_of(document(Segmenter="starting", StudyConsumer="no answer"), draining=False)
    assert told == "Segmenter: starting; StudyConsumer: no answer"
    body = document()
    body["checks"][1] |= {"ok": False, "detail": "draining"}
    assert trouble_of(body, draining=True) == ""
    assert trouble_of(body, draining=False) == "intake: draining"
    body["checks"][0] |= {"ok": False, "detail": "database_busy: locked"}
    assert trouble_of(body, draining=True) == "database: database_busy: locked"


def test_a_start_waits_for_all_but_room_on_the_disk() -> None:
    body = document(Segmenter="ready")
    body["checks"].append({"name": "disk", "ok": False, "detail": "storage_full: 99 % used"})
    assert failing(httpx.Response(503, json=body), {DISK}) == ""
    assert trouble_of(body, draining=False) == "disk: storage_full: 99 % used"
    body["checks"][0] |= {"ok": False, "detail": "database_busy: locked"}
    body["components"]["Segmenter"] = "starting"
    assert failing(httpx.Response(503, json=body), {DISK}) == "database: database_busy: locked; Segmenter: starting"
    for answer in (httpx.Response(502, text="bad gateway"), httpx.Response(503, json=["no document"])):
        assert failing(answer, {DISK}).endswith(f"answers {answer.status_code} without a readiness document")


class Answers(http.server.BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield running
        running.shutdown()
        thread.join(5)


def test_an_application_that_is_not_there_or_answers_nonsense_is_in_trouble(
    tmp_path: Path, server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (free,) = ports.pick_free(1)
    gone = load({}, data_dir=tmp_path, server_port=free)
    assert application_trouble(gone, draining=False) == "HTTP does not answer: ConnectError"
    there = load({}, data_dir=tmp_path, server_port=server.server_port)
    for nonsense in (b"<html>", b"[]", b"{}"):
        monkeypatch.setattr(Answers, "body", nonsense)
        assert "without a readiness document" in application_trouble(there, draining=False)
    monkeypatch.setattr(Answers, "body", json.dumps(document(Segmenter="ready")).encode())
    assert application_trouble(there, draining=False) == ""


class Sick:
    """A listener that tells of itself what it is told to."""

    def __init__(self, trouble: str, *, answers: bool) -> None:
        self.reason, self.answers, self.restarts = trouble, answers, 0

    def trouble(self) -> str:
        return self.reason

    def restart(self) -> None:
        self.restarts += 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_look_notes_the_state_and_restarts_only_a_listener_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    now, said, noted = [0.0], list[str](), list[tuple[str, str]]()
    monkeypatch.setattr("heimdallr_ray.operations.vigil.time.monotonic", lambda: now[0])
    monkeypatch.setattr("heimdallr_ray.operations.vigil.application_trouble", lambda *_, **__: "")
    listener = Sick("one of its threads has ended", answers=answers)
    watch = Watch(load({}, data_dir=tmp_path), listener, said.append, lambda *state: noted.append(state))
    for now[0] in range(1, 60):
        watch.look(draining=False)
    assert len(noted) == 6, "asked every 10 s"
    assert noted[1] == ("ready", "")
    assert noted[-1] == ("degraded", "DICOM listener: one of its threads has ended")
    assert listener.restarts == answers
    listener.reason = ""
    now[0] = 70
    watch.look(draining=False)
    assert noted[-1] == ("ready", "")
    assert said == [
        "degraded: DICOM listener does not work since 20 s: one of its threads has ended",
        "DICOM listener works again after 69 s",
        "ready",
    ]
    now[0] = 80
    watch.look(draining=True)
    assert noted[-1] == ("draining", "")
