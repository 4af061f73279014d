"""Deployments without a model abstain, and say why; they never give an empty answer that reads as a negative one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from heimdallr_ray.config import load, save_effective
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.cxr import MedGemma
from heimdallr_ray.deployments.report_builder import ReportBuilder


@pytest.fixture
def args(tmp_path: Path) -> AppArgs:
    """Of an installation of its own: a replica logs into it as soon as it is made."""
    settings = load({}, data_dir=tmp_path / "data")
    settings.run_dir.mkdir(parents=True)
    save_effective(settings, settings.run_dir / "settings.json")
    return AppArgs(build="test-1", settings_file=str(settings.run_dir / "settings.json"))


def test_medgemma_without_a_model_abstains(args: AppArgs) -> None:
    replica = cast(Any, MedGemma).func_or_class(args)
    answer = replica.read("a" * 64)
    assert answer == {
        "instance_sha256": "a" * 64,
        "status": "abstained",
        "reason": "model_not_installed",
        "findings": None,
        "backend": "none",
        "build": "test-1",
    }
    assert json.loads(json.dumps(answer)) == answer
    assert replica.info() == {"backend": "none", "model": None, "reason": "model_not_installed"}


def test_report_builder_without_a_writer_abstains(args: AppArgs) -> None:
    replica = cast(Any, ReportBuilder).func_or_class(args)
    answer = replica.draft("1.2.3")
    assert answer == {
        "study_uid": "1.2.3",
        "status": "abstained",
        "reason": "writer_not_configured",
        "text": None,
        "backend": "none",
        "build": "test-1",
    }
    assert json.loads(json.dumps(answer)) == answer
    assert replica.info() == {"backend": "none", "reason": "writer_not_configured"}
