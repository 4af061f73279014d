"""Networks with random weights in TotalSegmentator's folders, for measuring: the real architecture, patch and labels.

`FULL` is what TotalSegmentator's own models are: nnU-Net's PlainConvUNet of six stages up to 320 features, 31 million
parameters. `SMALL` is a network whose own time hardly counts, so that what is around it can be measured on images that
the full one would take hours for. Weights are written in the run to a temporary folder; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from heimdallr_ray.segmentation.tasks import task_spec
from heimdallr_ray.segmentation.weights import write_manifest
from tools.nnunet_files import Plan, Triple, Unet, upstream_labels, write_untrained

PATCH_3_MM = (96, 96, 128)
PATCH_1_5_MM = (128, 128, 128)
"""Patches `[z, y, x]` of TotalSegmentator's 3 mm and 1.5 mm models."""


FULL = Unet((32, 64, 128, 256, 320, 320), 2)
SMALL = Unet((1, 2), 1, kernels=((1, 1, 1),))


def write_registry(folder: Path, tasks: Mapping[str, Triple], unet: Unet) -> Path:
    """A registry with a network for every model of `tasks` (task to patch), and its manifest.

    Raises:
        ValueError: a task has no spacing of its own.
    """
    import torch

    for name, patch in tasks.items():
        spec = task_spec(name)
        if spec.spacing_mm is None:
            raise ValueError(f"{spec.name} has no spacing of its own")
        x, y, z = spec.spacing_mm
        plan = Plan(unet, patch, (z, y, x), -50.0, 400.0, (-1000.0, 1000.0), median_shape_zyx=(231, 210, 245))
        for model in spec.models:
            labels = upstream_labels(spec, model)
            torch.manual_seed(model.dataset_id)
            weights: Mapping[str, Any] = unet.network(len(labels) + 1).state_dict()
            folds = dict.fromkeys(model.folds or (0,), weights)
            write_untrained(folder, spec, model, plan, labels, folds)
    write_manifest(folder, synthetic=True)
    return folder


def parameters(checkpoint: Path) -> int:
    """How many weights a checkpoint holds; what is stored under two names counts once."""
    import torch

    weights = cast("dict[str, Any]", torch.load(checkpoint, weights_only=True)["network_weights"])
    return sum({tensor.data_ptr(): tensor.numel() for tensor in weights.values()}.values())
