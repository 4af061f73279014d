"""Small random networks in TotalSegmentator's folders: the real loading and inference road, in a second, no data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from totalsegmentator.map_to_binary import class_map, class_map_5_parts, map_taskid_to_partname_ct

from heimdallr_ray.segmentation.tasks import TASKS, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.weights import write_manifest

FEATURES = [8, 16]
PATCH = [24, 32, 40]
NATIVE_ZYX = [3.0, 2.0, 2.0]
BRAIN = 90
RESAMPLE = "resample_data_or_seg_to_shape"


def _labels(spec: TaskSpec, model: ModelSpec) -> dict[int, str]:
    if len(spec.models) > 1:
        return cast("dict[int, str]", class_map_5_parts[map_taskid_to_partname_ct[model.dataset_id]])
    return cast("dict[int, str]", class_map[spec.upstream_task])


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
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
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


def write_model(folder: Path, spec: TaskSpec, model: ModelSpec, *, brain_bias: float = 0.0) -> None:
    """A model folder with random weights; `brain_bias` makes the 6 mm model call some voxels brain."""
    plans, labels = _plans(spec, model), _labels(spec, model)
    architecture = plans["configurations"][model.configuration]["architecture"]
    torch.manual_seed(model.dataset_id)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(labels) + 1,
        deep_supervision=False,
    )
    head = network.decoder.seg_layers[-1]
    with torch.no_grad():
        if brain_bias:
            head.bias[BRAIN] += brain_bias
    dataset = {
        "channel_names": {"0": "CT"},
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
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": model.configuration},
        "trainer_name": model.trainer,
        "inference_allowed_mirroring_axes": None,
    }
    (folder / model.checkpoint).parent.mkdir()
    torch.save(checkpoint, folder / model.checkpoint)


def write_registry(folder: Path, tasks: Iterable[str], *, brain_bias: float = 0.35) -> Path:
    """A registry with random models for `tasks` and its manifest."""
    for name in tasks:
        for model in TASKS[name].models:
            write_model(folder, TASKS[name], model, brain_bias=brain_bias if model.dataset_id == 298 else 0.0)
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
