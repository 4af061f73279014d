"""A replica whose memory budget leaves nothing that measures says so wherever somebody looks, and what would help."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from typer.testing import CliRunner

from heimdallr_ray.api import health
from heimdallr_ray.cli import app
from heimdallr_ray.config import Settings, load, save_effective
from heimdallr_ray.deployments.app import AppArgs
from heimdallr_ray.deployments.segmenter import Segmenter
from heimdallr_ray.errors import ModelOverBudget, NotReady
from heimdallr_ray.operations import doctor, status
from heimdallr_ray.segmentation.notes import not_run, read_refusal
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import store
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(300)
KIB = 1024


def test_a_replica_of_which_the_budget_leaves_nothing_that_measures_is_not_ready_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MIB", KIB)  # the networks are small, so the budget is told in KiB
    for name in ("TOTALSEG_HOME_DIR", "TOTALSEG_WEIGHTS_PATH", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")
    registry = identity_nets.write_registry(tmp_path / "weights", (FIRST_PASS, TOTAL_FAST), large=(TOTAL_FAST,))
    measured = ResidentEngine(registry, threads=1)
    measured.warm_up()
    needs = {name.rpartition("/")[2]: math.ceil(mib * KIB) for name, mib in measured.info().needs_mib.items()}
    assert needs["298"] < needs["297"], "else the first pass is refused, which is another test"
    data_dir = tmp_path / "data"
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))

    def start(memory_mib: int) -> Settings:
        given = {"HEIMDALLR_SEGMENTER_MEMORY_MIB": str(memory_mib)}
        settings = load(given, data_dir=data_dir, weights_dir=registry, profile="demo", device="cpu", torch_threads=1)
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        file = settings.run_dir / "settings.json"
        save_effective(settings, file)
        replica = cast(Any, Segmenter).func_or_class(AppArgs(build="test", settings_file=str(file)))
        assert replica.info().over_budget == {}
        return settings

    with pytest.raises(ModelOverBudget, match=r"totalsegmentator/297 needs .* set HEIMDALLR_SEGMENTER_MEMORY_MIB to"):
        start(needs["297"] - 1)
    settings = load({}, data_dir=data_dir, weights_dir=registry, profile="demo", device="cpu")
    refused = read_refusal(settings.run_dir)
    assert refused.startswith("over_memory_budget: totalsegmentator/297 needs ")
    assert refused.endswith(f"set HEIMDALLR_SEGMENTER_MEMORY_MIB to {needs['297']} or more, or to 0 for no bound")
    with pytest.raises(NotReady, match=r"over_memory_budget: .*HEIMDALLR_SEGMENTER_MEMORY_MIB"):
        health.models_check(settings, {"Segmenter": "starting"})
    told, *_ = doctor.check_segmenter(settings)
    assert (told.ok, told.detail) == (False, refused)
    assert status.segmenter_notes(settings)["segmenter"]["refused"] == refused
    # the process of that replica is this one, which lives
    assert not_run(settings.run_dir) == {TOTAL_FAST: refused.partition(": ")[2]}
    listed = CliRunner().invoke(app, ["models", "list", "--data-dir", str(data_dir), "--profile", "demo"])
    assert f"the Segmenter does not run it: {refused.partition(': ')[2]}" in listed.output
    assert f"the Segmenter did not start with these models: {refused}" in listed.output

    settings = start(needs["297"])
    assert read_refusal(settings.run_dir) == "" and not_run(settings.run_dir) == {}
    assert health.models_check(settings, {"Segmenter": "ready"}) == "loaded"
