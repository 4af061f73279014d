"""What the commands tell a person: folder, profile, the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.operations import supervisor


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
