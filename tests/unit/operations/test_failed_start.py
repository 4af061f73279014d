"""Why a stack did not start is in its log, which stays when the console has gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heimdallr_ray import logs
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.errors import AlreadyRunning, HeimdallrError, NotReady
from heimdallr_ray.operations import doctor, failures, status, supervisor


def test_a_start_that_fails_says_why_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_self: supervisor.Supervisor) -> None:
        raise NotReady("Segmenter is UPDATING after 60 s")

    monkeypatch.setattr(supervisor.Supervisor, "start", start)
    settings = load({}, data_dir=tmp_path / "data")
    said: list[str] = []
    try:
        assert supervisor.run(settings, SystemClock(), said.append) == 1
    finally:
        logs.close()
    lines = [
        json.loads(line) for line in (settings.log_dir / "supervisor.log").read_text(encoding="ascii").splitlines()
    ]
    [failed] = [line for line in lines if line["event"] == "stack.failed"]
    assert failed["level"] == "ERROR"
    assert failed["fields"] == {"code": "not_ready", "detail": "Segmenter is UPDATING after 60 s"}
    assert said[0] == "failed: not_ready: Segmenter is UPDATING after 60 s"
    # Also where nobody looks into the log.
    told = status.collect(settings)["failed"]
    assert told.endswith("+00:00 not_ready: Segmenter is UPDATING after 60 s")
    (finding,) = doctor.check_last_end(settings)
    assert not finding.ok and told in finding.detail
    failures.forget(settings.run_dir)
    assert "failed" not in status.collect(settings)
    assert list(doctor.check_last_end(settings)) == []


@pytest.mark.parametrize("error", [AlreadyRunning("by pid 1"), NotReady(supervisor.STOPPED)])
def test_who_was_stopped_or_came_second_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HeimdallrError
) -> None:
    def start(_self: supervisor.Supervisor) -> None:
        raise error

    monkeypatch.setattr(supervisor.Supervisor, "start", start)
    settings = load({}, data_dir=tmp_path / "data")
    try:
        assert supervisor.run(settings, SystemClock(), lambda _: None) == 1
    finally:
        logs.close()
    assert failures.read(settings.run_dir) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_damaged_note_of_a_failure_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "failure.json").write_bytes(content)
    assert failures.read(tmp_path) is None
