"""Small random networks in TotalSegmentator's folders: the real loading and inference road, in a second, no data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch

from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.weights import write_manifest
from tools.nnunet_files import Plan, Unet, upstream_labels, write_untrained

UNET = Unet((4, 8), 1)
LARGE = Unet((32, 64), 1)
"""Needs more memory than any other network here."""
PATCH = (24, 40, 48)
NATIVE_MM = (2.0, 2.0, 3.0)
SAMPLE_MM = 60.0
SHARE = 0.05
MASKED = 853
"""This model normalises over the filled body only, as nnU-Net plans it for MR with much air."""
INSTALLED_FOLDS = (0, 1, 2)
"""Written where a task takes the folds that are there."""
SPARSE = 0.8
"""Added to the background's logit: one label of many is left of the random ones."""
_labels = upstream_labels


def _cropped_to(spec: TaskSpec) -> set[str]:
    """One structure of each set that other tasks crop to."""
    sets = [row.crop.structures for row in TASKS.values() if row.crop and row.crop.task == spec.name]
    return {structures[0] for structures in sets}


def _sample(spec: TaskSpec) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """A small body at the task's spacing as a network is given it, in the middle of a patch, and where it is."""
    edge = round(SAMPLE_MM / min(spec.spacing_mm or (2.0,)))
    inside = tuple(slice((n - min(n, edge)) // 2, (n - min(n, edge)) // 2 + min(n, edge)) for n in PATCH)
    sizes = [part.stop - part.start for part in inside]
    values = body((sizes[2], sizes[1], sizes[0]), np.eye(4)).clip(-1000, 900) / 300.0
    patch = torch.zeros(PATCH)
    patch[inside] = torch.from_numpy(values.astype(np.float32).transpose(2, 1, 0).copy())
    return patch[None, None], inside


def _plan(spec: TaskSpec, model: ModelSpec, unet: Unet) -> Plan:
    x, y, z = spec.spacing_mm or NATIVE_MM
    scheme = "ZScoreNormalization" if spec.modality == "MR" else "CTNormalization"
    masked = model.dataset_id == MASKED
    return Plan(unet, PATCH, (z, y, x), 0.0, 300.0, (-1000.0, 900.0), normalization=scheme, masked=masked)


def _balanced(logits: torch.Tensor, wanted: list[int]) -> torch.Tensor:
    """What to add to each channel so that every wanted label wins a share of the voxels."""
    offsets = torch.zeros(len(logits))
    for _ in range(400):
        won = (logits + offsets[:, None, None, None]).argmax(0)
        scarce = [value for value in wanted if (won == value).float().mean() < SHARE]
        if not scarce:
            break
        offsets[scarce] += 0.02
    return offsets


def _weights(
    spec: TaskSpec, labels: dict[int, str], seed: int, bias: float, background: float, unet: Unet
) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = unet.network(len(labels) + 1)
    head = network.decoder.seg_layers[-1]
    wanted = [value for value, name in labels.items() if name in _cropped_to(spec)]
    with torch.no_grad():
        patch, inside = _sample(spec)
        logits = network.eval()(patch)[0][(slice(None), *inside)]
        centre = logits.mean(dim=(1, 2, 3))
        head.bias += _balanced(logits - centre[:, None, None, None], wanted) - centre
        head.bias[wanted] += bias
        head.bias[0] += background
    return network.state_dict()


def write_model(
    folder: Path, spec: TaskSpec, model: ModelSpec, *, bias: float = 0.0, background: float = 0.0, unet: Unet = UNET
) -> None:
    """A model folder with random weights; `bias` goes to what other tasks crop to, `background` to label 0."""
    labels = _labels(spec, model)
    folds = {
        fold: _weights(spec, labels, 1000 * fold + model.dataset_id, bias, background, unet)
        for fold in model.folds or INSTALLED_FOLDS
    }
    write_untrained(folder, spec, model, _plan(spec, model, unet), labels, folds)


def write_registry(
    folder: Path,
    tasks: Iterable[str],
    *,
    brain_bias: float = 0.0,
    sparse: Collection[str] = (),
    large: Collection[str] = (),
) -> Path:
    """A registry with random models for `tasks` and its manifest.

    Rough models tell some of what other tasks crop to, brain first; `brain_bias` makes that more, or nothing (-5).
    Models of `sparse` tasks leave so much to the background that what they tell does not touch; those of `large` ones
    need more memory than the others.
    """
    for name in tasks:
        for model in TASKS[name].models:
            background = SPARSE if name in sparse else 0.0
            unet = LARGE if name in large else UNET
            write_model(folder, TASKS[name], model, bias=brain_bias, background=background, unet=unet)
    write_manifest(folder, synthetic=True)
    return folder


def body(shape: tuple[int, int, int], affine: np.ndarray, seed: int = 0) -> np.ndarray:
    """An int16 image: air, an ellipsoid of tissue with a dense core and a gas-filled part, noise."""
    rng = np.random.default_rng(seed)
    axes = (np.linspace(-1, 1, n) for n in shape)
    i, j, k = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(i**2 + (j / 0.8) ** 2 + (k / 0.95) ** 2)
    hu = np.where(radius < 0.95, 40.0, -1000.0)
    hu[(i - 0.3) ** 2 + j**2 + (k + 0.2) ** 2 < 0.08] = 700.0
    hu[(i + 0.4) ** 2 + (j - 0.1) ** 2 + (k - 0.3) ** 2 < 0.06] = -850.0
    return (hu + rng.normal(0, 15, shape)).astype(np.int16)


def mr_body(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A float32 image with fractions: nothing (0) around a bright ellipsoid with a hole of 0 in it."""
    rng = np.random.default_rng(seed)
    axes = (np.linspace(-1, 1, n) for n in shape)
    i, j, k = np.meshgrid(*axes, indexing="ij")
    signal = 300.0 + 150.0 * np.sin(4 * i) * np.cos(5 * j) + rng.normal(0, 12.5, shape)
    inside = i**2 + (j / 0.8) ** 2 + (k / 0.9) ** 2 < 0.7
    hole = (i - 0.2) ** 2 + j**2 + k**2 < 0.02
    return np.where(inside & ~hole, signal, 0.0).astype(np.float32)
