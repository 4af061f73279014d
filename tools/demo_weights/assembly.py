"""Put trained networks together into one weights folder with a manifest of digests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heimdallr_ray.segmentation.demo.evaluation import HEAD_SEEDS, TORSO_SEEDS
from heimdallr_ray.segmentation.weights import write_manifest
from tools.demo_weights.recipes import MARKER, RECIPES


def _quoted(scores: Sequence[Path]) -> dict[str, float]:
    """Mean Dice per structure, out of the last lines of evaluations."""
    means: dict[str, float] = {}
    for file in scores:
        means |= json.loads(file.read_text().splitlines()[-1])["mean_dice"]
    return means


def assemble(work: Path, out: Path, scores: Sequence[Path] = ()) -> dict[str, Any]:
    """Replace `out` by the exported networks and `manifest.json`; returns what the manifest says beside digests."""
    fresh, old = out.with_name(out.name + ".new"), out.with_name(out.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    models: dict[str, Any] = {}
    for dataset_id, recipe in sorted(RECIPES.items()):
        source = work / "export" / str(dataset_id)
        shutil.copytree(source / recipe.folder, fresh / recipe.folder)
        training = json.loads((source / "training.json").read_text())
        models[str(dataset_id)] = {"folder": recipe.folder, "task": recipe.task, "training": training}
    extra = {
        "description": MARKER,
        "models": models,
        "evaluation_seeds": {"torsos": list(TORSO_SEEDS), "heads": list(HEAD_SEEDS)},
        "mean_dice_on_evaluation_seeds": _quoted(scores),
    }
    write_manifest(fresh, synthetic=True, extra=extra)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return extra
