"""Networks with random weights in TotalSegmentator's folders, for measuring: the real architecture, patch and labels.

`FULL` is what TotalSegmentator's own models are: nnU-Net's PlainConvUNet of six stages up to 320 features, 31 million
parameters. `SMALL` is a network whose own time hardly counts, so that what is around it can be measured on images that
the full one would take hours for. Weights are written in the run to a temporary folder; nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from heimdallr_ray.segmentation.tasks import ModelSpec, TaskSpec

PATCH_3_MM = (96, 96, 128)
PATCH_1_5_MM = (128, 128, 128)
"""Patches `[z, y, x]` of TotalSegmentator's 3 mm and 1.5 mm models."""


@dataclass(frozen=True)
class Size:
    """Features and convolutions by stage; each stage but the first halves the grid."""

    features: tuple[int, ...]
    convolutions: int
    kernel: int = 3


FULL = Size((32, 64, 128, 256, 320, 320), 2)
SMALL = Size((2, 4), 1, 1)


def write_registry(folder: Path, tasks: Mapping[str, tuple[int, int, int]], size: Size) -> Path:
    """A registry with a network of `size` for every model of `tasks` (task to patch), and its manifest."""
    from heimdallr_ray.segmentation.tasks import task_spec
    from heimdallr_ray.segmentation.weights import write_manifest

    for name, patch in tasks.items():
        spec = task_spec(name)
        for model in spec.models:
            _write(folder / model.folder, folder / model.checkpoint, spec, model, patch, size)
    write_manifest(folder, synthetic=True)
    return folder


def parameters(checkpoint: Path) -> int:
    """How many weights a checkpoint holds; what is stored under two names counts once."""
    import torch

    weights = cast("dict[str, Any]", torch.load(checkpoint, weights_only=True)["network_weights"])
    return sum({tensor.data_ptr(): tensor.numel() for tensor in weights.values()}.values())


def _labels(spec: TaskSpec, model: ModelSpec) -> dict[int, str]:
    from totalsegmentator.map_to_binary import class_map, class_map_5_parts, map_taskid_to_partname_ct

    if len(spec.models) > 1:
        return dict(class_map_5_parts[map_taskid_to_partname_ct[model.dataset_id]])
    return dict(class_map[spec.upstream_task])


def _write(
    target: Path, checkpoint: Path, spec: TaskSpec, model: ModelSpec, patch: tuple[int, int, int], size: Size
) -> None:
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    labels = _labels(spec, model)
    if spec.spacing_mm is None:
        raise ValueError(f"{spec.name} has no spacing of its own")
    spacing = list(spec.spacing_mm)[::-1]
    architecture = _architecture(size)
    torch.manual_seed(model.dataset_id)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        len(labels) + 1,
        deep_supervision=False,
    )
    checkpoint.parent.mkdir(parents=True)
    plans = _plans(model, list(patch), spacing, architecture)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in labels.items()}},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "name": model.dataset_folder,
        "description": "SYNTHETIC random weights",
    }
    (target / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (target / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": model.configuration},
        "trainer_name": model.trainer,
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(content, checkpoint)


def _architecture(size: Size) -> dict[str, Any]:
    stages = len(size.features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(size.features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[size.kernel] * 3] * stages,
            "strides": [[1] * 3] + [[2] * 3] * (stages - 1),
            "n_conv_per_stage": [size.convolutions] * stages,
            "n_conv_per_stage_decoder": [size.convolutions] * (stages - 1),
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


def _plans(
    model: ModelSpec, patch: list[int], spacing_zyx: list[float], architecture: dict[str, Any]
) -> dict[str, Any]:
    resample = "resample_data_or_seg_to_shape"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [231.0, 210.0, 245.0],
        "spacing": spacing_zyx,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_seg": resample,
        "resampling_fn_probabilities": resample,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": architecture,
        "batch_dice": True,
    }
    intensities = {
        "mean": -50.0,
        "std": 400.0,
        "percentile_00_5": -1000.0,
        "percentile_99_5": 1000.0,
        "min": -1024.0,
        "max": 3000.0,
        "median": 20.0,
    }
    return {
        "dataset_name": model.dataset_folder,
        "plans_name": model.plans,
        "original_median_spacing_after_transp": spacing_zyx,
        "original_median_shape_after_transp": [231, 210, 245],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {model.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
