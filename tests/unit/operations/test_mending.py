"""A changed model of the demo is copied or checked out, never fetched; up says the folder and the command."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.config import load
from heimdallr_ray.operations import application, mending, supervisor
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, models_of
from heimdallr_ray.segmentation.weights import verify

BLEED = models_of(CEREBRAL_BLEED)[-1]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The demo's weights in a folder of the site, one byte of the bleed model changed."""
    folder = tmp_path / "my registry"
    shutil.copytree(weights_dir(), folder)
    file = folder / BLEED.checkpoint
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    return folder


def test_a_changed_copy_of_the_demos_weights_is_mended_by_the_command_that_is_named(
    tmp_path: Path, copied: Path
) -> None:
    told = mending.hint(load({}, data_dir=tmp_path, profile="demo"), copied)
    assert "fetch" not in told and "--profile demo" not in told
    command = told.partition("package: ")[2]
    assert BLEED.dataset_folder in command and "Dataset297" not in command
    subprocess.run(shlex.split(command), check=True, timeout=30)
    verify(copied)


@pytest.mark.parametrize("checkout", [True, False])
def test_the_packages_own_weights_are_never_fetched(
    tmp_path: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, checkout: bool
) -> None:
    monkeypatch.setattr(mending, "weights_dir", lambda: copied)
    monkeypatch.setattr("heimdallr_ray.segmentation.weights.weights_dir", lambda: copied)
    if checkout:
        (tmp_path / ".git").mkdir()
    told = mending.hint(load({}, data_dir=tmp_path, profile="demo"))
    assert "models fetch" not in told and "are not fetched" in told
    assert ("checkout" in told and BLEED.dataset_folder in told) if checkout else "pip install" in told


def test_up_with_a_changed_model_names_folder_model_and_command(
    tmp_path: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = f"Traceback\nheimdallr_ray.errors.WeightsTampered: {BLEED.checkpoint} differs from manifest.json"
    assert application.last_line(trace) == f"weights_tampered: {BLEED.checkpoint} differs from manifest.json"
    assert application.last_line("heimdallr_ray.errors.Nothing: x") == "heimdallr_ray.errors.Nothing: x"

    def run(_settings: Any, _clock: Any, progress: Any) -> int:
        progress(f"failed: not_ready: Segmenter failed: {application.last_line(trace)}")
        return 1

    monkeypatch.setattr(supervisor, "run", run)
    done = CliRunner().invoke(
        cli.app,
        ["up", "--data-dir", str(tmp_path), "--profile", "demo"],
        env={"HEIMDALLR_WEIGHTS_DIR": str(copied), "HEIMDALLR_PROFILE": ""},
    )
    assert done.exit_code == 1 and "heimdallr_ray.errors" not in done.output
    assert f"profile demo: {copied}" in done.output and "cp -r" in done.output and BLEED.dataset_folder in done.output
