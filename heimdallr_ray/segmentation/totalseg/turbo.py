"""Which of the faster ways a model may take: those that are faster here and leave its labels as they are.

Each step is tried on one tile of a phantom, beside the exact network on the same tile. It is kept where it saves time
and every label that either of them tells has a Dice of at least `LEAST_DICE`; else the model goes on without it, and
with no step at all it runs in exact mode. Of every step it is told whether it was kept, and why.

Each model has seconds of its own for this, so that what it may do does not depend on which models came before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import OutOfMemory
from heimdallr_ray.segmentation.demo import phantom
from heimdallr_ray.segmentation.specs import TaskSpec
from heimdallr_ray.segmentation.totalseg.device import require_computing
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN, PREPARED_S, Recipe, steps_for

LEAST_DICE: Final = 0.999
LEAST_SAVING: Final = 0.05
"""Share of the time that a step has to save; less is noise."""
MODEL_S: Final = 20.0
"""Longest that one model looks for faster ways."""
START_S: Final = 60.0
"""In which a stack has to be ready, where the site has not given it longer."""
START_SHARE: Final = 0.5
"""Of these seconds, those for which all models of a starting replica together look at most."""
_TRIAL_TILES: Final = 6
"""So many tiles go through a network until a step is judged, see `_tried`; a few more where they are quick."""
_QUICK_S: Final = 2.0
TRIED_ON: Final = 2001
"""Seed of the phantom; what is to prove something about a step needs another image."""
_HEAD_MM, _CHEST_MM, _TRUNK_MM = 702.0, 430.0, 250.0
"""Where along the phantom's long axis (see `demo.anatomy`) a tile shows brain, lungs, or liver, kidneys and spine."""


@dataclass(frozen=True)
class Verdict:
    """What a model may do.

    Attributes:
        recipe: the steps that were kept.
        exact_s: seconds of one tile in exact mode.
        turbo_s: seconds of one tile by `recipe`.
        notes: one sentence for each step: that it was kept, or why not.
    """

    recipe: Recipe
    exact_s: float
    turbo_s: float
    notes: tuple[str, ...]


def seconds_for(models: int, start_s: float = START_S) -> float:
    """How long each of `models` that are warmed up at one start of `start_s` may look for faster ways."""
    return min(MODEL_S, START_SHARE * start_s / max(1, models))


def worst_dice(one: NDArray[np.integer], other: NDArray[np.integer]) -> tuple[int, float] | None:
    """The label on which two label arrays agree least, and its Dice; None where neither holds any but 0."""
    both = np.bincount(one[one == other].ravel(), minlength=1)
    size = max(int(one.max(initial=0)), int(other.max(initial=0))) + 1
    sums = np.bincount(one.ravel(), minlength=size) + np.bincount(other.ravel(), minlength=size)
    shared = np.zeros(size, np.int64)
    shared[: len(both)] = both
    seen = [label for label in range(1, size) if sums[label]]
    if not seen:
        return None
    scores = {label: 2.0 * float(shared[label]) / float(sums[label]) for label in seen}
    label = min(scores, key=lambda one: scores[one])
    return label, scores[label]


def phantom_tile(model: ResidentModel, row: TaskSpec) -> torch.Tensor:
    """`[1, 1, *patch]` on the host, as the model is given a tile: the part of a phantom that its task looks at."""
    crop = "" if row.crop is None else row.crop.structures[0]
    middle = _HEAD_MM if crop == "brain" else _CHEST_MM if crop.startswith("lung") else _TRUNK_MM
    dz, dy, dx = model.spacing_zyx
    pz, py, px = model.patch
    # one voxel more than a patch on each side, so that rounding never leaves too few
    z_mm, y_mm, x_mm = (pz + 2) * dz, (py + 2) * dy, (px + 2) * dx
    body = phantom.make(
        TRIED_ON,
        (dx, dy, dz),
        (middle - z_mm / 2, middle + z_mm / 2),
        fov_mm=(x_mm, y_mm),
        bleed_ml=(30.0,) if crop == "brain" else (),
    )
    zyx = np.ascontiguousarray(body.hu.transpose(2, 1, 0)[:pz, :py, :px], dtype=np.float32)
    if row.modality == "MR":
        # signal is never below 0
        zyx += 1024.0
    return model.normalised(zyx)[None]


def tuned(
    model: ResidentModel, tile: torch.Tensor, deadline: float, now: Callable[[], float] = time.perf_counter
) -> Verdict:
    """The steps that `model` may take; it goes on by them.

    A model that ends with no step kept, but some tried, has its weights laid out anew and must be loaded again for
    exact mode. One tile goes through the exact network in any case; a step is tried only where its trial is foreseen to
    end before the deadline.

    Args:
        model: loaded, exact, and warm.
        tile: as from `phantom_tile`.
        deadline: moment of `now` at which the seconds of this model are spent.
        now: a clock, seconds.

    Raises:
        OutOfMemory: the exact network's tile does not fit.
    """
    began = now()
    model.use(PLAIN)
    expected = model.tile_labels(tile)
    exact_s = now() - began
    if worst_dice(expected, expected) is None:
        return Verdict(PLAIN, exact_s, exact_s, ("the phantom shows this model nothing, so nothing was compared",))
    if now() + _TRIAL_TILES * exact_s <= deadline:
        exact_s = _seconds(model, PLAIN, tile, now)
    kept, best_s = PLAIN, exact_s
    notes: list[str] = []
    for name, step in steps_for(model.device).items():
        foreseen_s = PREPARED_S.get(name, 0.0) + _TRIAL_TILES * best_s * step(kept).tiles
        left_s = max(0.0, deadline - now())
        if foreseen_s > left_s:
            notes.append(f"{name}: not tried, budget spent: it takes about {foreseen_s:.1f} s, {left_s:.1f} s are left")
            continue
        why, seconds = _tried(model, (kept, step(kept)), tile, expected, best_s, now)
        if why:
            notes.append(f"{name}: {why}")
        else:
            notes.append(f"{name}: kept, {seconds:.3f} s instead of {best_s:.3f} s for a tile")
            kept, best_s = step(kept), seconds
    if kept != PLAIN:
        model.use(kept)
    return Verdict(kept, exact_s, best_s, tuple(notes))


def _tried(
    model: ResidentModel,
    recipes: tuple[Recipe, Recipe],
    tile: torch.Tensor,
    expected: NDArray[np.uint8],
    best_s: float,
    now: Callable[[], float],
) -> tuple[str, float]:
    """Why the second recipe is not taken instead of the first (empty where it is), and its seconds for one tile."""
    kept, recipe = recipes
    try:
        labels, seconds = _measured(model, recipe, tile, now)
    except OutOfMemory:
        return "does not fit into memory", best_s
    except (RuntimeError, OSError, ImportError) as error:
        require_computing(model.device)
        return f"failed with {type(error).__name__}", best_s
    if model.device.type == "cpu":
        # others may have been busy on this host when the recipe so far was measured
        best_s = min(best_s, _measured(model, kept, tile, now)[1])
    worst = worst_dice(expected, labels)
    if worst is None or worst[1] < LEAST_DICE:
        label, score = worst or (0, 0.0)
        return f"changes labels: Dice {score:.4f} of label {label}", best_s
    if seconds > best_s * (1.0 - LEAST_SAVING):
        return f"saves nothing: {seconds:.3f} s instead of {best_s:.3f} s for a tile", best_s
    return "", seconds


def _measured(
    model: ResidentModel, recipe: Recipe, tile: torch.Tensor, now: Callable[[], float]
) -> tuple[NDArray[np.uint8], float]:
    """Labels of the tile by a recipe, and the seconds of one tile once everything is warm."""
    model.use(recipe)
    labels = model.tile_labels(tile)
    return labels, _seconds(model, recipe, tile, now)


def _seconds(model: ResidentModel, recipe: Recipe, tile: torch.Tensor, now: Callable[[], float]) -> float:
    """Seconds of one tile of a model that is warm and used by `recipe`; the least of a few."""
    seconds: list[float] = []
    for _ in range(3):
        began = now()
        model.tile_labels(tile)
        seconds.append((now() - began) / recipe.tiles)
        if sum(seconds) > _QUICK_S:
            break
    return min(seconds)
