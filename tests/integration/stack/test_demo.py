"""`heimdallr demo --once --json`: both studies travel the whole road and measure what was painted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from heimdallr_ray.operations.demo import demo_settings

ORGANS = ("liver_volume", "spleen_volume", "kidney_right_volume", "kidney_left_volume")
STAGES = {"receive", "settle", "wait", "select", "prepare", "segment", "measure", "triage", "render", "commit"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What the command printed, in an environment that belongs to a site: nothing of it may reach the demo."""
    hostile = {
        "HEIMDALLR_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/production",
        "HEIMDALLR_WEIGHTS_DIR": "/nonexistent",
        "HEIMDALLR_API_TOKEN": "a-token-of-the-site-itself",
        "http_proxy": "http://127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "heimdallr_ray.cli", "demo", "--once", "--json"],
        env={**os.environ, **hostile, "HEIMDALLR_SERVER_PORT": "", "HEIMDALLR_DICOM_PORT": ""},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return cast(dict[str, Any], json.loads(done.stdout))


def _study(document: dict[str, Any], label: str) -> dict[str, Any]:
    return next(study for study in document["studies"] if study["label"] == label)


def _measured(study: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {measurement["id"]: measurement for measurement in study["measurements"]}


@pytest.mark.timeout(1000)
def test_the_bleed_is_first_and_critical_the_other_is_not(document: dict[str, Any]) -> None:
    assert [study["label"] for study in document["studies"]] == ["head-bleed", "chest-abdomen"]
    assert [study["state"] for study in document["studies"]] == ["done", "done"]
    assert _study(document, "head-bleed")["urgency"] == "P0"
    assert _study(document, "chest-abdomen")["urgency"] in {"P1", "P2", "P3"}


def test_volumes_are_what_was_painted(document: dict[str, Any]) -> None:
    torso, head = (_measured(_study(document, label)) for label in ("chest-abdomen", "head-bleed"))
    for organ in ORGANS:
        assert torso[organ]["truth"] > 0
        assert torso[organ]["status"] == "ok", (organ, torso[organ])
        assert torso[organ]["value"] == pytest.approx(torso[organ]["truth"], rel=0.10), organ
    bleed = head["intracranial_hemorrhage_volume"]
    assert bleed["value"] == pytest.approx(bleed["truth"], rel=0.25)


def test_what_a_head_does_not_hold_has_no_value(document: dict[str, Any]) -> None:
    head = _measured(_study(document, "head-bleed"))
    assert {head[organ]["value"] for organ in ORGANS} == {None}
    assert _measured(_study(document, "chest-abdomen"))["intracranial_hemorrhage_volume"]["value"] is None


def test_stages_and_artifacts_are_told(document: dict[str, Any]) -> None:
    for study in document["studies"]:
        assert study["stages"].keys() >= STAGES
        names = set(study["artifacts"])
        assert {"id.json", "results.json", "resultados.json", "labels-total.nii.gz", "display.nii.gz"} <= names
        assert any(name.endswith("_overlay.png") for name in names)


def test_the_demo_takes_nothing_of_a_sites_environment(tmp_path: Path) -> None:
    settings = demo_settings(
        tmp_path,
        {
            "HEIMDALLR_DATABASE_URL": "postgresql://production",
            "HEIMDALLR_WEIGHTS_DIR": "/models",
            "HEIMDALLR_CONFIG": "/nonexistent.toml",
            "HEIMDALLR_SERVER_HOST": "0.0.0.0",
            "HEIMDALLR_LOG_LEVEL": "DEBUG",
        },
    )
    assert settings.resolved_database_url == f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    assert settings.resolved_weights_dir is None
    assert settings.server_host == "127.0.0.1"
    assert settings.profile == "demo"
    assert settings.log_level == "DEBUG"
