"""What a Segmenter replica refuses before it loads anything."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from typer.testing import CliRunner

from heimdallr_ray.cli import app
from heimdallr_ray.config import load, save_effective
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.segmenter import Segmenter
from heimdallr_ray.errors import BadSetting, WeightsMissing
from heimdallr_ray.operations.application import serve_config_path
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS
from heimdallr_ray.segmentation.totalseg.engine import STUDIES_AT_ONCE
from heimdallr_ray.segmentation.weights import MANIFEST_NAME, SYNTHETIC_MARKER, write_manifest


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine sets upstream's variables in the process that it runs in."""
    for name in ("TOTALSEG_HOME_DIR", "TOTALSEG_WEIGHTS_PATH", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """The first-pass model as the demo weights have it; it is never loaded here, so a few bytes are its checkpoint."""
    (model,) = TASKS[FIRST_PASS].models
    folder = tmp_path / "weights"
    checkpoint = folder / model.checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    dataset = {"description": f"{SYNTHETIC_MARKER} phantom weights; not for clinical use"}
    (folder / model.folder / "dataset.json").write_text(json.dumps(dataset))
    write_manifest(folder, synthetic=True)
    return folder


def start(data_dir: Path, weights_dir: Path) -> object:
    """A replica of the profile `site`, as Serve makes it, without Serve."""
    settings = load({}, data_dir=data_dir, weights_dir=weights_dir, profile="site", device="cpu", torch_threads=1)
    settings.run_dir.mkdir(parents=True)
    save_effective(settings, settings.run_dir / "settings.json")
    return cast(Any, Segmenter).func_or_class(
        AppArgs(build="test", settings_file=str(settings.run_dir / "settings.json"))
    )


def test_site_refuses_demo_weights(tmp_path: Path, registry: Path) -> None:
    with pytest.raises(BadSetting, match="synthetic"):
        start(tmp_path / "data", registry)


def test_site_refuses_a_copy_of_demo_weights_whose_manifest_lies(tmp_path: Path, registry: Path) -> None:
    document = json.loads((registry / MANIFEST_NAME).read_text())
    (registry / MANIFEST_NAME).write_text(json.dumps(document | {"synthetic": False}))
    with pytest.raises(BadSetting, match="synthetic"):
        start(tmp_path / "data", registry)


def test_site_refuses_demo_checkpoints_whose_marker_was_edited_out(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights_dir(), folder)
    for dataset in folder.rglob("dataset.json"):
        dataset.write_text(json.dumps(json.loads(dataset.read_text()) | {"description": "CT, 1559 subjects"}))
    write_manifest(folder, synthetic=False)
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(document | {"synthetic": False}))
    with pytest.raises(BadSetting, match="synthetic"):
        start(tmp_path / "data", folder)


def test_models_manifest_does_not_launder_demo_weights(tmp_path: Path, registry: Path) -> None:
    (registry / MANIFEST_NAME).unlink()
    written = CliRunner().invoke(app, ["models", "manifest", str(registry)])
    assert written.exit_code == 0 and "DEMO WEIGHTS" in written.stdout
    assert json.loads((registry / MANIFEST_NAME).read_text())["synthetic"] is True
    with pytest.raises(BadSetting, match="synthetic"):
        start(tmp_path / "data", registry)


def test_models_verify_names_demo_weights_whose_manifest_lies(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads((registry / MANIFEST_NAME).read_text())
    (registry / MANIFEST_NAME).write_text(json.dumps(document | {"synthetic": False}))
    monkeypatch.setenv("HEIMDALLR_WEIGHTS_DIR", str(registry))
    verified = CliRunner().invoke(app, ["models", "verify", "--profile", "site"])
    assert verified.exit_code == 0 and "DEMO WEIGHTS" in verified.stdout


def test_a_replica_is_given_as_many_studies_as_its_engine_takes() -> None:
    config = yaml.safe_load(serve_config_path().read_text(encoding="utf-8"))
    (entry,) = [one for one in config["applications"][0]["deployments"] if one["name"] == "Segmenter"]
    assert entry["max_ongoing_requests"] == STUDIES_AT_ONCE
    assert entry["autoscaling_config"]["target_ongoing_requests"] == STUDIES_AT_ONCE


def test_the_health_check_takes_no_thread_of_a_study() -> None:
    # Serve runs other methods in as many threads as there are studies at once, so that it would wait for one of them.
    assert inspect.iscoroutinefunction(cast(Any, Segmenter).func_or_class.check_health)


def test_each_replica_has_a_private_folder_for_upstreams_settings(tmp_path: Path, registry: Path) -> None:
    with pytest.raises(BadSetting):
        start(tmp_path / "data", registry)
    (home,) = (tmp_path / "data" / "run" / "totalsegmentator").iterdir()
    assert json.loads((home / "config.json").read_text())["send_usage_stats"] is False


def test_a_site_without_the_models_of_a_ct_study_is_told_what_to_run(tmp_path: Path, registry: Path) -> None:
    (registry / MANIFEST_NAME).unlink()
    with pytest.raises(WeightsMissing, match="run: heimdallr models fetch total_fast"):
        start(tmp_path / "empty", registry)
    for dataset in registry.rglob("dataset.json"):
        dataset.write_text(json.dumps({"description": "CT, 1559 subjects"}))
    write_manifest(registry, synthetic=False)
    with pytest.raises(WeightsMissing, match=f"total_fast not installed.*Dataset297.*--into {registry}"):
        start(tmp_path / "first pass only", registry)


def test_the_engine_is_what_the_settings_say(tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Stopped(Exception):
        pass

    def engine(_folder: Path, **options: object) -> None:
        asked.update(options)
        raise Stopped

    monkeypatch.setattr("heimdallr_ray.segmentation.totalseg.engine.ResidentEngine", engine)
    data_dir = tmp_path / "data"
    settings = load(
        {"HEIMDALLR_SEGMENTER_MODE": "turbo", "HEIMDALLR_SEGMENTER_MEMORY_MIB": "6000"},
        data_dir=data_dir,
        weights_dir=registry,
        device="cpu",
        lower_resolution=True,
    )
    settings.run_dir.mkdir(parents=True)
    save_effective(settings, settings.run_dir / "settings.json")
    with pytest.raises(Stopped):
        cast(Any, Segmenter).func_or_class(AppArgs(build="test", settings_file=str(settings.run_dir / "settings.json")))
    assert (asked["mode"], asked["memory_mib"], asked["lower_resolution"]) == ("turbo", 6000, True)
    assert asked["compile_dir"].parent == settings.run_dir
