"""The packaged demo weights: whole, small, honest about their origin, and good enough on bodies they never saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from heimdallr_ray.operations.demo_studies import CHEST_ABDOMEN_SEED, HEAD_BLEED_SEED
from heimdallr_ray.segmentation.demo import evaluation, phantom, weights_dir
from heimdallr_ray.segmentation.demo.evaluation import MIN_MEAN_DICE, Score
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, TISSUE_TYPES, TOTAL_FAST, models_of
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.weights import SYNTHETIC_MARKER, verify

MAX_BYTES = 12 * 1024 * 1024
TISSUES = {"subcutaneous_fat", "torso_fat", "skeletal_muscle"}
TASKS = (TOTAL_FAST, TISSUE_TYPES, CEREBRAL_BLEED)


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((weights_dir() / "manifest.json").read_text())


@pytest.fixture(scope="module")
def engine() -> Iterator[ResidentEngine]:
    yield ResidentEngine(weights_dir(), "cpu")


def _checkpoints() -> list[Path]:
    return sorted(weights_dir().glob("*/*/fold_0/checkpoint_final.pth"))


def test_every_file_is_the_one_of_the_manifest() -> None:
    weights = verify(weights_dir())
    on_disk = {p.relative_to(weights_dir()).as_posix() for p in weights_dir().rglob("*") if p.is_file()}
    assert on_disk - {"manifest.json"} == set(weights.files)
    assert all(weights.has_folder(model.folder) for task in TASKS for model in models_of(task))


def test_all_together_stay_small() -> None:
    assert sum(p.stat().st_size for p in weights_dir().rglob("*") if p.is_file()) <= MAX_BYTES


def test_they_say_that_they_are_synthetic(manifest: dict[str, Any]) -> None:
    assert manifest["synthetic"] is True
    datasets = list(weights_dir().glob("*/*/dataset.json"))
    assert len(datasets) == 4
    for dataset in datasets:
        assert SYNTHETIC_MARKER in json.loads(dataset.read_text())["description"]


def test_no_training_seed_is_an_evaluation_seed(manifest: dict[str, Any]) -> None:
    held_out = set(manifest["evaluation_seeds"]["torsos"]) | set(manifest["evaluation_seeds"]["heads"])
    assert held_out == set(evaluation.TORSO_SEEDS) | set(evaluation.HEAD_SEEDS)
    assert len(held_out) == 40
    held_out |= {CHEST_ABDOMEN_SEED, HEAD_BLEED_SEED}
    assert set(manifest["models"]) == {"297", "298", "481", "150"}
    for model in manifest["models"].values():
        seeds = model["training"]["training_seeds"]
        assert seeds["count"] > 0
        assert not held_out & set(range(seeds["first"], seeds["first"] + seeds["count"]))
        assert model["training"]["steps"] > 0


def test_checkpoints_hold_tensors_and_no_program() -> None:
    assert len(_checkpoints()) == 4
    for file in _checkpoints():
        state = torch.load(file, map_location="cpu", weights_only=True)
        assert state["init_args"] == {"configuration": "3d_fullres"}
        assert all(torch.isfinite(tensor.float()).all() for tensor in state["network_weights"].values())


def _assert_bars(cases: list[dict[str, Score]], expected: set[str]) -> None:
    means = evaluation.mean_dice(cases)
    assert set(means) == expected
    missed = {name: round(value, 3) for name, value in means.items() if value < MIN_MEAN_DICE[name]}
    assert not missed, missed


def _assert_volumes(scores: Mapping[str, Score], made: phantom.Phantom) -> None:
    for name in evaluation.VOLUME_STRUCTURES:
        assert scores[name].found_ml == pytest.approx(made.truth.volumes_ml[name], rel=0.10), name


def test_two_unseen_torsos_and_heads(engine: ResidentEngine) -> None:
    torsos = [evaluation.torso_case(seed) for seed in evaluation.TORSO_SEEDS[:2]]
    organs = [evaluation.score_total(engine, made) for made in torsos]
    _assert_bars(organs, set(evaluation.TOTAL_STRUCTURES))
    for scores, made in zip(organs, torsos, strict=True):
        _assert_volumes(scores, made)
    slabs = [evaluation.score_tissue(engine, evaluation.slab_case(seed)) for seed in evaluation.TORSO_SEEDS[:2]]
    _assert_bars(slabs, TISSUES)
    heads = [evaluation.score_head(engine, evaluation.head_case(seed)) for seed in evaluation.HEAD_SEEDS[:2]]
    assert heads[0]["bleed"].truth_ml == 0.0
    assert heads[0]["bleed"].found_ml == 0.0
    _assert_bars(heads, {"brain", "bleed"})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_unseen_torsos_and_heads(engine: ResidentEngine) -> None:
    organs: list[dict[str, Score]] = []
    tissues: list[dict[str, Score]] = []
    for seed in evaluation.TORSO_SEEDS:
        torso = evaluation.torso_case(seed)
        organs.append(evaluation.score_total(engine, torso))
        tissues.append(evaluation.score_tissue(engine, torso))
    heads = [evaluation.score_head(engine, evaluation.head_case(seed)) for seed in evaluation.HEAD_SEEDS]
    _assert_bars(organs, set(evaluation.TOTAL_STRUCTURES))
    _assert_bars(tissues, TISSUES)
    _assert_bars(heads, {"brain", "bleed"})
    without = [scores["bleed"] for scores in heads if scores["bleed"].truth_ml == 0]
    assert len(without) == 5
    assert [score.found_ml for score in without] == [0.0] * 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_studies_measure_true(engine: ResidentEngine) -> None:
    """The very bodies that `heimdallr demo` sends."""
    torso = phantom.chest_abdomen(CHEST_ABDOMEN_SEED)
    _assert_volumes(evaluation.score_total(engine, torso), torso)
    _assert_bars([evaluation.score_tissue(engine, torso)], TISSUES)
    head = phantom.head_bleed(HEAD_BLEED_SEED)
    bleed = evaluation.score_head(engine, head)["bleed"]
    assert bleed.found_ml == pytest.approx(head.truth.bleed_ml, rel=0.25)
    none = evaluation.score_head(engine, phantom.head_bleed(HEAD_BLEED_SEED, with_bleed=False))["bleed"]
    assert none.found_ml == 0.0


def _train(work: Path, minutes: float) -> list[str]:
    command = [sys.executable, "-m", "tools.train_demo_weights", "fit", "298", "--work", str(work)]
    return [*command, "--minutes", str(minutes), "--checkpoint-seconds", "2"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_goes_on_after_a_kill(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen(_train(tmp_path, 30), cwd=root, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + 300
            while not (tmp_path / "298.state.pt").exists() and time.monotonic() < deadline:
                assert trainer.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
        finally:
            trainer.kill()
            trainer.wait(30)
    done = subprocess.run(
        _train(tmp_path, 0.0001), cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert events[0]["event"] == "start"
    assert events[0]["step"] > 0
    assert events[-1]["step"] == events[0]["step"]
    exported = next((tmp_path / "export" / "298").glob("*/*/fold_0/checkpoint_final.pth"))
    assert torch.load(exported, map_location="cpu", weights_only=True)["trainer_name"].startswith("nnUNetTrainer")
