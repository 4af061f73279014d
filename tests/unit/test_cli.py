"""What the commands tell a person: folder, profile, the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from heimdallr_ray import cli, cli_common
from heimdallr_ray.clients import upload
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.operations import supervisor
from heimdallr_ray.operations.demo import kept_words
from tests.support.intake import write_study


def invoke(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, list(words), env={"HEIMDALLR_PROFILE": "", "HEIMDALLR_DATA_DIR": ""})
    return done.exit_code, done.output


def test_models_verify_names_folder_profile_and_the_way_out(tmp_path: Path) -> None:
    status, said = invoke("models", "verify", "--data-dir", str(tmp_path))
    assert status == 1
    assert "weights_missing" in said and f"{tmp_path / 'weights'} (profile site)" in said
    assert "--profile demo" in said and "docs/weights.md" in said


def test_models_verify_of_the_demo(tmp_path: Path) -> None:
    status, said = invoke("models", "verify", "--data-dir", str(tmp_path), "--profile", "demo")
    assert status == 0
    assert "(profile demo)" in said and "DEMO WEIGHTS" in said


def test_up_without_weights_says_where_they_belong_and_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_settings: Any, _clock: Any, progress: Any) -> int:
        progress("failed: weights_missing: no manifest.json")
        return 1

    monkeypatch.setattr(supervisor, "run", run)
    status, said = invoke("up", "--data-dir", str(tmp_path))
    assert status == 1
    assert str(tmp_path / "weights") in said and "--profile demo" in said and "docs/weights.md" in said


def test_an_upload_to_a_stack_that_is_down_names_the_address_and_the_way_out(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 1)
    status, said = invoke("upload", str(tmp_path / "study"), "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "not_ready: http://127.0.0.1:9 does not answer" in said and "`heimdallr status` tells" in said
    assert "uploading" not in said  # no bar where nobody watches one


def test_an_upload_to_a_server_that_says_why_not_now_does_not_ask_whether_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = {"error": {"code": "database_busy", "detail": "the database is locked"}}
    monkeypatch.setattr(upload, "PAUSE_FIRST_S", 0.0)
    monkeypatch.setattr(httpx.Client, "post", lambda *_, **__: httpx.Response(503, json=busy))
    write_study(tmp_path / "study", 1)
    status, said = invoke("upload", str(tmp_path / "study"))
    assert status == 1
    assert "the database is locked" in said and "is the stack up" not in said


def test_a_line_beside_the_output_names_its_zone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 3, 1, 23, 30, 15, tzinfo=timezone(timedelta(hours=-2)))
    monkeypatch.setattr(SystemClock, "now", lambda _: at.astimezone(UTC))
    cli_common.say("ready")
    assert capsys.readouterr().err == "01:30:15 UTC ready\n"
    assert cli_common.stamp(at) == "2026-03-02 01:30:15 UTC"
    assert {len(cli_common.stamp(one)) for one in (at, None)} == {cli_common.STAMP_CHARS}


def test_the_demo_says_what_becomes_of_its_data() -> None:
    assert "removed" in kept_words(None) and "--keep FOLDER" in kept_words(None)
    assert kept_words(Path("/kept")) == "the data stays in /kept"
    _, said = invoke("demo", "--help")
    words = " ".join(said.split())
    assert "temporary folder that is removed at the end" in words and "HEIMDALLR_DATA_DIR" in words


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "[red]notes").write_text("no DICOM")
    status, said = invoke("send", str(tmp_path))
    assert status == 1
    assert "empty_input" in said and "[red]notes: neither" in said


def test_up_refuses_series_rules_that_are_not_valid_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "run", lambda *_: pytest.fail("started"))
    monkeypatch.setenv("HEIMDALLR_SERIES_RULES", str(tmp_path / "none.toml"))
    status, said = invoke("up", "--data-dir", str(tmp_path))
    assert status == 1
    assert "bad_setting" in said and "none.toml" in said


@pytest.mark.parametrize("command", ["send", "upload", "demo"])
def test_help_is_wrapped_by_the_window_and_not_by_the_source(command: str) -> None:
    said = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    text = [line.strip() for line in said.partition("\u256d")[0].splitlines()][2:]
    for line, following in pairwise(text):
        if line and following:
            assert len(line) + 1 + len(following.split()[0]) > 76, line
