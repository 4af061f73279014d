"""Small random networks in TotalSegmentator's folders: the real loading and inference road, in a second, no data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from totalsegmentator import map_to_binary

from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.weights import write_manifest

FEATURES = [4, 8]
PATCH = [24, 40, 48]
NATIVE_ZYX = [3.0, 2.0, 2.0]
SAMPLE_MM = 60.0
SHARE = 0.05
RESAMPLE = "resample_data_or_seg_to_shape"
MASKED = 853
"""This model normalises over the filled body only, as nnU-Net plans it for MR with much air."""
INSTALLED_FOLDS = (0, 1, 2)
"""Written where a task takes the folds that are there."""


def _labels(spec: TaskSpec, model: ModelSpec) -> dict[int, str]:
    maps = cast(Any, map_to_binary)
    if spec.upstream_task == "total_mr" and len(spec.models) > 1:
        return maps.class_map_parts_mr[maps.map_taskid_to_partname_mr[model.dataset_id]]
    if len(spec.models) > 1:
        return maps.class_map_5_parts[maps.map_taskid_to_partname_ct[model.dataset_id]]
    return {**maps.class_map[spec.upstream_task], **maps.class_map.get(f"{spec.upstream_task}_auxiliary", {})}


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


def _plans(spec: TaskSpec, model: ModelSpec) -> dict[str, Any]:
    spacing = list(reversed(spec.spacing_mm)) if spec.spacing_mm else NATIVE_ZYX
    stages = len(FEATURES)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": FEATURES,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3] * 3] * stages,
            "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH,
        "median_image_size_in_voxels": [150.0, 120.0, 140.0],
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization" if spec.modality == "MR" else "CTNormalization"],
        "use_mask_for_norm": [model.dataset_id == MASKED],
        "resampling_fn_data": RESAMPLE,
        "resampling_fn_seg": RESAMPLE,
        "resampling_fn_probabilities": RESAMPLE,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": architecture,
        "batch_dice": True,
    }
    return {
        "dataset_name": model.dataset_folder,
        "plans_name": model.plans,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": [150, 120, 140],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {model.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": 0.0,
                "std": 300.0,
                "percentile_00_5": -1000.0,
                "percentile_99_5": 900.0,
                "min": -1024.0,
                "max": 3000.0,
                "median": 20.0,
            }
        },
    }


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


def _checkpoint(spec: TaskSpec, model: ModelSpec, plans: dict[str, Any], seed: int, bias: float) -> dict[str, Any]:
    labels = _labels(spec, model)
    architecture = plans["configurations"][model.configuration]["architecture"]
    torch.manual_seed(seed)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(labels) + 1,
        deep_supervision=False,
    )
    head = network.decoder.seg_layers[-1]
    wanted = [value for value, name in labels.items() if name in _cropped_to(spec)]
    with torch.no_grad():
        patch, inside = _sample(spec)
        logits = network.eval()(patch)[0][(slice(None), *inside)]
        centre = logits.mean(dim=(1, 2, 3))
        head.bias += _balanced(logits - centre[:, None, None, None], wanted) - centre
        head.bias[wanted] += bias
    return {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": model.configuration},
        "trainer_name": model.trainer,
        "inference_allowed_mirroring_axes": None,
    }


def write_model(folder: Path, spec: TaskSpec, model: ModelSpec, *, bias: float = 0.0) -> None:
    """A model folder with random weights; `bias` goes to what other tasks crop to."""
    plans, labels = _plans(spec, model), _labels(spec, model)
    dataset = {
        "channel_names": {"0": spec.modality},
        "labels": {"background": 0, **{name: value for value, name in labels.items()}},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "name": model.dataset_folder,
        "description": "SYNTHETIC random weights",
    }
    target = folder / model.folder
    target.mkdir(parents=True)
    (target / "plans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(json.dumps(dataset))
    for fold in model.folds or INSTALLED_FOLDS:
        file = folder / model.checkpoint_of(fold)
        file.parent.mkdir()
        torch.save(_checkpoint(spec, model, plans, 1000 * fold + model.dataset_id, bias), file)


def write_registry(folder: Path, tasks: Iterable[str], *, brain_bias: float = 0.0) -> Path:
    """A registry with random models for `tasks` and its manifest.

    Rough models tell some of what other tasks crop to, brain first; `brain_bias` makes that more, or nothing (-5).
    """
    for name in tasks:
        for model in TASKS[name].models:
            write_model(folder, TASKS[name], model, bias=brain_bias)
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
