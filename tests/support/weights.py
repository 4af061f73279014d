"""Archives of models as TotalSegmentator publishes them, with networks of a few thousand parameters."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from heimdallr_ray.segmentation.archives import archive_of
from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec, TaskSpec
from tools.nnunet_files import Plan, Unet, checkpoint, dataset, upstream_labels

UNET = Unet((2, 4), 1)
PLAN = Plan(UNET, (16, 16, 16), (6.0, 6.0, 6.0), 0.0, 300.0, (-1000.0, 900.0))
FIRST_WEIGHT = "encoder.stages.0.0.convs.0.conv.weight"
SAME_WEIGHT = f"decoder.{FIRST_WEIGHT}"
"""nnU-Net's state dicts name the encoder twice; its tensors stay one in the file."""


def row_of(dataset_id: int) -> TaskSpec:
    return next(row for row in TASKS.values() if dataset_id in [model.dataset_id for model in row.models])


def spec_of(dataset_id: int) -> ModelSpec:
    return next(model for model in row_of(dataset_id).models if model.dataset_id == dataset_id)


def labels_of(dataset_id: int) -> dict[int, str]:
    return upstream_labels(row_of(dataset_id), spec_of(dataset_id))


@cache
def _untrained(heads: int) -> Mapping[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(heads)
        return UNET.network(heads).state_dict()


def network(seed: int = 0, dataset_id: int = 298) -> dict[str, torch.Tensor]:
    """The weights of a model; those of two seeds differ in one tensor."""
    weights = dict(_untrained(max(labels_of(dataset_id)) + 1))
    weights[FIRST_WEIGHT] = weights[SAME_WEIGHT] = weights[FIRST_WEIGHT] + seed
    return weights


def saved(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def contents(dataset_id: int = 298, seed: int = 0, **more: Any) -> dict[str, Any]:
    """What nnU-Net reads of a checkpoint, with `more` in its place."""
    spec = spec_of(dataset_id)
    return checkpoint(network(seed, dataset_id), spec.trainer, spec.configuration) | more


def plain(dataset_id: int = 298, seed: int = 0, **more: Any) -> bytes:
    """A checkpoint that torch's restricted unpickler reads as it is."""
    return saved(contents(dataset_id, seed, **more))


def model_files(
    dataset_id: int,
    weights: bytes | None = None,
    description: str = "a model",
    *,
    plans: object | None = None,
    labels: Mapping[int, str] | None = None,
) -> dict[str, bytes]:
    """Path in the archive to bytes, with the rubbish that a training leaves beside a model."""
    spec, row = spec_of(dataset_id), row_of(dataset_id)
    folder = spec.folder
    made = PLAN.plans(spec.dataset_folder, spec.plans, spec.configuration)
    described = dataset(spec.dataset_folder, labels or labels_of(dataset_id), description, row.modality)
    return {
        f"{folder}/plans.json": json.dumps(made if plans is None else plans).encode(),
        f"{folder}/dataset.json": json.dumps(described).encode(),
        f"{folder}/fold_0/checkpoint_final.pth": plain(dataset_id) if weights is None else weights,
        f"{folder}/fold_0/progress.png": b"no picture",
        f"{folder}/fold_0/debug.json": b"{}",
        f"{folder}/postprocessing.pkl": b"never kept",
    }


def write_zip(target: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def model_zip(folder: Path, dataset_id: int, weights: bytes | None = None, **more: Any) -> Path:
    """The archive under the name that upstream gives it."""
    return write_zip(folder / archive_of(dataset_id).file_name, model_files(dataset_id, weights, **more))


def write_models(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder
