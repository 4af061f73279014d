"""Whether a model that is about to be installed, or is, can be built and tells what its tasks need. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from heimdallr_ray.errors import BadArchive, Broken, OutOfMemory
from heimdallr_ray.segmentation.specs import RESIDENT, ModelSpec
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.checkpoint import read_checkpoint
from heimdallr_ray.segmentation.totalseg.labels import labels_of_model
from heimdallr_ray.segmentation.totalseg.network import built, parsed_json, require_resident
from heimdallr_ray.segmentation.weights import DATASET_NAME, WeightsSet

_SHAPES_ONLY: Final = torch.device("meta")


def require_buildable(root: Path, spec: ModelSpec, places: tuple[str, ...]) -> None:
    """The model below `root` is an nnU-Net of its folder's trainer; its weights fit its plans, its labels its tasks.

    Args:
        root: folder with the data sets' folders.
        spec: the model.
        places: its files, relative to `root`; their size was bounded when they were laid out.

    Raises:
        BadArchive: it is not.
        OutOfMemory: its weights do not fit into the host's memory.
        OSError: a file cannot be read.
    """
    try:
        _require(spec, places, lambda place: (root / place).read_bytes())
    except OutOfMemory:
        raise
    except Broken as error:
        raise BadArchive(error.detail) from error


def require_usable(weights: WeightsSet, spec: ModelSpec) -> None:
    """The same of a model of a registry, whose bytes are those of the manifest.

    Raises:
        WeightsMissing, WeightsTampered: as `WeightsSet.read`.
        Broken: it cannot be built.
        OutOfMemory: its weights do not fit into the host's memory.
    """
    try:
        _require(spec, tuple(weights.files), weights.read)
    except BadArchive as error:
        raise Broken(error.detail) from error


def _require(spec: ModelSpec, files: tuple[str, ...], read: Callable[[str], bytes]) -> None:
    plans, dataset = (parsed_json(read(name), name) for name in _descriptions(spec))
    checkpoints = [read_checkpoint(read(name), name) for name in spec.checkpoints(files)]
    if not checkpoints:
        raise Broken(f"{spec.folder} has no fold")
    network = built(spec, plans, dataset, checkpoints, _SHAPES_ONLY)
    for row in TASKS.values():
        if row.backend == RESIDENT and spec in row.models:
            require_resident(spec, network)
            lacking = sorted(set(labels_of_model(row, spec)) - network.labels)
            if lacking:
                raise Broken(f"{spec.folder}: its labels lack {lacking[0]}, which {row.name} needs")


def _descriptions(spec: ModelSpec) -> tuple[str, str]:
    return f"{spec.folder}/plans.json", f"{spec.folder}/{DATASET_NAME}"
