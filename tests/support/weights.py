"""Archives of models as TotalSegmentator publishes them, with a few tensors in the place of a network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from heimdallr_ray.segmentation.archives import archive_of
from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec


def spec_of(dataset_id: int) -> ModelSpec:
    return next(m for row in TASKS.values() for m in row.models if m.dataset_id == dataset_id)


def model_files(dataset_id: int, checkpoint: bytes, description: str = "a model") -> dict[str, bytes]:
    """Path in the archive to bytes, with the rubbish that a training leaves beside a model."""
    folder = spec_of(dataset_id).folder
    return {
        f"{folder}/plans.json": json.dumps({"plans_name": "nnUNetPlans"}).encode(),
        f"{folder}/dataset.json": json.dumps({"description": description, "labels": {"background": 0}}).encode(),
        f"{folder}/fold_0/checkpoint_final.pth": checkpoint,
        f"{folder}/fold_0/progress.png": b"no picture",
        f"{folder}/fold_0/debug.json": b"{}",
        f"{folder}/postprocessing.pkl": b"never kept",
    }


def write_zip(target: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def model_zip(folder: Path, dataset_id: int, checkpoint: bytes, **more: Any) -> Path:
    """The archive under the name that upstream gives it."""
    return write_zip(folder / archive_of(dataset_id).file_name, model_files(dataset_id, checkpoint, **more))


def write_models(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder
