"""Why a stack did not start is in its log, which stays when the console has gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heimdallr_ray import logs
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.errors import NotReady
from heimdallr_ray.operations import supervisor


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
