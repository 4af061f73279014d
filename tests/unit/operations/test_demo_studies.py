"""The demo shows bodies that its networks have never seen."""

from __future__ import annotations

import json

import pytest

from heimdallr_ray.operations.demo_studies import CHEST_ABDOMEN_SEED, HEAD_BLEED_SEED
from heimdallr_ray.segmentation.demo import evaluation, weights_dir


@pytest.mark.parametrize("seed", [CHEST_ABDOMEN_SEED, HEAD_BLEED_SEED])
def test_no_demo_study_was_trained_or_evaluated_on(seed: int) -> None:
    manifest = json.loads((weights_dir() / "manifest.json").read_text(encoding="utf-8"))
    evaluated = {number for numbers in manifest["evaluation_seeds"].values() for number in numbers}
    assert len(evaluated) >= 2 and seed not in evaluated
    assert seed not in {*evaluation.TORSO_SEEDS, *evaluation.HEAD_SEEDS}
    trained = {name: model["training"]["training_seeds"] for name, model in manifest["models"].items()}
    assert set(trained) == {"297", "298", "481", "150"}
    for name, seeds in trained.items():
        assert seeds["count"] > 0, name
        assert not seeds["first"] <= seed < seeds["first"] + seeds["count"], name


def test_the_two_demo_studies_are_two_bodies() -> None:
    assert CHEST_ABDOMEN_SEED != HEAD_BLEED_SEED
