"""The training loop: time-bounded, resumable, cosine schedule, norms frozen for its last part."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.demo_weights import boxes
from tools.demo_weights.cases import Pool
from tools.demo_weights.network import Trainee, class_indices, sampled_loss
from tools.demo_weights.recipes import RECIPES, Recipe

_EXPORT_EVERY_S = 240.0
_FREEZE_NORMS_AT = 0.2
_WARM_UP_STEPS = 30
_BALANCED, _UNIFORM = 12_000, 24_000
_BOOST, _BOOST_UNTIL = 0.5, 0.5


@dataclass(frozen=True)
class Options:
    """How long and where.

    Attributes:
        seconds: training time in all, earlier runs of the same checkpoint included.
        work: folder of checkpoints and exports.
        device: torch device.
        restart_learning_rate: starts another cosine from the checkpoint with this peak; None resumes the old one.
        box_weights: weights folder holding the 298 that crops heads for 150.
        checkpoint_every_s: seconds that a kill may cost.
    """

    seconds: float
    work: Path
    device: str
    restart_learning_rate: float | None
    box_weights: Path
    checkpoint_every_s: float = 60.0


@dataclass
class Progress:
    """What a checkpoint remembers beside tensors."""

    step: int = 0
    elapsed_s: float = 0.0
    from_s: float = 0.0
    until_s: float = 0.0
    peak: float = 0.0
    phantoms: int = 0
    restarts: int = 0
    loss: float = 0.0

    def fraction(self) -> float:
        """Part of the present cosine that is done."""
        return min(1.0, (self.elapsed_s - self.from_s) / max(1.0, self.until_s - self.from_s))


def _save(path: Path, trainee: Trainee, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    temporary = path.with_suffix(".tmp")
    state = {"trainee": trainee.state_dict(), "optimiser": optimiser.state_dict(), "progress": vars(progress)}
    torch.save(state, temporary)
    os.replace(temporary, path)  # noqa: PTH105


def _export(trainee: Trainee, progress: Progress, options: Options) -> None:
    recipe = trainee.recipe
    folder = options.work / "export" / str(recipe.dataset_id)
    trainee.export(folder / recipe.model_path, progress.phantoms)
    low, count = recipe.seed_base, progress.phantoms
    record = {
        "dataset_id": recipe.dataset_id,
        "from": f"grown from {recipe.grown_from} of this set" if recipe.grown_from else "scratch",
        "steps": progress.step,
        "training_seconds": round(progress.elapsed_s, 1),
        "warm_restarts": progress.restarts,
        "final_loss": round(progress.loss, 4),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "training_seeds": {"first": low, "count": count},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _start(trainee: Trainee, options: Options, path: Path) -> tuple[torch.optim.Optimizer, Progress]:
    recipe = trainee.recipe
    optimiser = torch.optim.AdamW(trainee.trained_parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    progress = Progress(until_s=options.seconds, peak=recipe.learning_rate)
    if not path.exists() and recipe.grown_from is not None:
        coarse = Trainee(RECIPES[recipe.grown_from]).to(options.device)
        source = torch.load(options.work / f"{recipe.grown_from}.state.pt", options.device, weights_only=True)
        coarse.load_state_dict(source["trainee"])
        trainee.grow_from(coarse)
    if path.exists():
        state = torch.load(path, map_location=options.device, weights_only=True)
        trainee.load_state_dict(state["trainee"])
        optimiser.load_state_dict(state["optimiser"])
        progress = Progress(**state["progress"])
        if options.restart_learning_rate is not None:
            progress.from_s, progress.peak = progress.elapsed_s, options.restart_learning_rate
            progress.restarts += 1
        progress.until_s = options.seconds
    return optimiser, progress


def fit(recipe: Recipe, options: Options) -> None:
    """Train until `options.seconds` are used; leaves a checkpoint and an export in `options.work`."""
    torch.manual_seed(recipe.dataset_id)
    path = options.work / f"{recipe.dataset_id}.state.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    trainee = Trainee(recipe)
    trainee.to(device=torch.device(options.device), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser, progress = _start(trainee, options, path)
    lookup = class_indices(trainee)
    rng = np.random.default_rng((recipe.dataset_id, progress.step))
    brain_box = boxes.predicted_brain_box(options.box_weights) if recipe.dataset_id == 150 else None
    pool = Pool(recipe, progress.phantoms, brain_box)
    statistics = {name: buffer.clone() for name, buffer in trainee.net.named_buffers()}
    mark = saved = exported = time.monotonic()
    while len(pool.cases) < max(4, recipe.pool // 4):
        pool.grow()
    _say(event="start", dataset=recipe.dataset_id, parameters=sum(p.numel() for p in trainee.net.parameters()),
         step=progress.step, elapsed_s=round(progress.elapsed_s), until_s=options.seconds)  # fmt: skip
    while progress.elapsed_s < progress.until_s:
        done = progress.fraction()
        frozen = done > _FREEZE_NORMS_AT or progress.restarts > 0 or recipe.grown_from is not None
        if frozen != trainee.norms_frozen or not trainee.training or progress.step == 0:
            trainee.norms_frozen = frozen
            trainee.train()
        warm = min(1.0, (progress.step + 1) / _WARM_UP_STEPS)
        for group in optimiser.param_groups:
            group["lr"] = progress.peak * warm * (0.5 * (1 + math.cos(math.pi * done)) + 0.01)
        if progress.step % (recipe.steps_per_phantom if len(pool.cases) >= recipe.pool else 2) == 0:
            pool.grow()
        size = recipe.train_patches_zyx[progress.step % len(recipe.train_patches_zyx)]
        image, label = pool.patch(rng, size)
        x = torch.from_numpy(image)[None, None].to(options.device, memory_format=torch.channels_last_3d)
        y = torch.from_numpy(lookup[label])[None].to(options.device)
        with torch.autocast(torch.device(options.device).type, torch.bfloat16):
            features = trainee.features(x)
        boost = _BOOST if done < _BOOST_UNTIL and progress.restarts == 0 else 0.0
        loss = sampled_loss(trainee, features, y, balanced=_BALANCED, uniform=_UNIFORM, boost=boost)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainee.trained_parameters(), 5.0)
        value = float(loss.detach())
        if math.isfinite(value) and bool(torch.isfinite(norm)):
            optimiser.step()
            statistics = {name: buffer.clone() for name, buffer in trainee.net.named_buffers()}
        else:  # a patch without contrast has no variance to divide by; its statistics must not stay in the norms
            _say(event="skipped", dataset=recipe.dataset_id, step=progress.step)
            for name, buffer in trainee.net.named_buffers():
                buffer.copy_(statistics[name])
            value = progress.loss
        progress.step += 1
        progress.phantoms = pool.used
        progress.loss = value if progress.step == 1 else 0.97 * progress.loss + 0.03 * value
        now = time.monotonic()
        progress.elapsed_s += now - mark
        mark = now
        if progress.step % 50 == 0 or progress.step <= 3:
            _say(dataset=recipe.dataset_id, step=progress.step, elapsed_s=round(progress.elapsed_s, 1),
                 loss=round(progress.loss, 4), phantoms=pool.used, frozen=frozen)  # fmt: skip
        if now - saved > options.checkpoint_every_s:
            _save(path, trainee, optimiser, progress)
            saved = now
        if now - exported > _EXPORT_EVERY_S:
            _export(trainee, progress, options)
            exported = now
    _save(path, trainee, optimiser, progress)
    _export(trainee, progress, options)
    _say(event="done", dataset=recipe.dataset_id, step=progress.step, elapsed_s=round(progress.elapsed_s, 1))
