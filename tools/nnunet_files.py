"""The files of one nnU-Net as TotalSegmentator installs them: plans.json, dataset.json and a checkpoint for each fold.

Everything that makes networks here (the demo weights, the benchmarks, the tests) writes them through this module, so
that what nnU-Net 2.8 wants to find is said once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from heimdallr_ray.segmentation.tasks import ModelSpec, TaskSpec
from heimdallr_ray.segmentation.weights import SYNTHETIC_MARKER

if TYPE_CHECKING:
    from torch import Tensor

RANDOM_MARKER = f"{SYNTHETIC_MARKER} random weights"
"""Description of a data set whose networks were never trained."""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Unet:
    """nnU-Net's PlainConvUNet, its tuples in the order `[z, y, x]`.

    Attributes:
        features: channels per stage.
        convolutions: in each stage of the encoder.
        decoder_convolutions: in each stage of the decoder; None: as in the encoder.
        kernels: of each stage; one for all where there is one.
        first_stride: from stage 0 to stage 1; further stages halve the grid.
        norm: torch's class of the norm.
    """

    features: tuple[int, ...]
    convolutions: int
    decoder_convolutions: int | None = None
    kernels: tuple[Triple, ...] = ((3, 3, 3),)
    first_stride: Triple = (2, 2, 2)
    norm: str = "InstanceNorm3d"

    def architecture(self) -> dict[str, Any]:
        """nnU-Net's description of the network.

        Raises:
            ValueError: neither one kernel nor one for each stage.
        """
        stages = len(self.features)
        kernels = self.kernels * stages if len(self.kernels) == 1 else self.kernels
        if len(kernels) != stages:
            raise ValueError(f"{len(kernels)} kernels for {stages} stages")
        decoder = self.convolutions if self.decoder_convolutions is None else self.decoder_convolutions
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(self.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [list(kernel) for kernel in kernels],
                "strides": [[1, 1, 1], list(self.first_stride)] + [[2, 2, 2]] * (stages - 2),
                "n_conv_per_stage": [self.convolutions] * stages,
                "n_conv_per_stage_decoder": [decoder] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.{_module_of(self.norm)}.{self.norm}",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def network(self, heads: int) -> Any:  # noqa: ANN401 - nnU-Net's modules have no types
        """The network with fresh weights of torch's random generator, background among its `heads`."""
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        described = self.architecture()
        return get_network_from_plans(
            described["network_class_name"],
            described["arch_kwargs"],
            described["_kw_requires_import"],
            1,
            heads,
            deep_supervision=False,
        )


def _module_of(norm: str) -> str:
    return {"InstanceNorm3d": "instancenorm", "BatchNorm3d": "batchnorm"}[norm]


@dataclass(frozen=True)
class Plan:
    """What `plans.json` says of a model besides its name.

    Attributes:
        unet: the network.
        patch_zyx: tile of the sliding window.
        spacing_zyx_mm: grid that the network sees.
        mean, std: of CT's normalisation, HU.
        clip_hu: limits of CT's normalisation.
        normalization: nnU-Net's scheme.
        masked: the scheme looks at the filled body only.
        median_shape_zyx: of the training images.
    """

    unet: Unet
    patch_zyx: Triple
    spacing_zyx_mm: tuple[float, float, float]
    mean: float
    std: float
    clip_hu: tuple[float, float]
    normalization: str = "CTNormalization"
    masked: bool = False
    median_shape_zyx: Triple = (150, 120, 140)

    def plans(self, dataset_name: str, plans_name: str, configuration: str) -> dict[str, Any]:
        """The smallest `plans.json` that nnU-Net 2.8 predicts with."""
        resample = "resample_data_or_seg_to_shape"
        image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        low, high = self.clip_hu
        intensity = {
            "mean": self.mean,
            "std": self.std,
            "percentile_00_5": low,
            "percentile_99_5": high,
            "min": -1024.0,
            "max": 3071.0,
            "median": 20.0,
        }
        one = {
            "data_identifier": f"{plans_name}_{configuration}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(self.patch_zyx),
            "median_image_size_in_voxels": [float(n) for n in self.median_shape_zyx],
            "spacing": list(self.spacing_zyx_mm),
            "normalization_schemes": [self.normalization],
            "use_mask_for_norm": [self.masked],
            "resampling_fn_data": resample,
            "resampling_fn_seg": resample,
            "resampling_fn_data_kwargs": image,
            "resampling_fn_seg_kwargs": image | {"is_seg": True, "order": 1},
            "resampling_fn_probabilities": resample,
            "resampling_fn_probabilities_kwargs": image | {"order": 1},
            "architecture": self.unet.architecture(),
            "batch_dice": True,
        }
        return {
            "dataset_name": dataset_name,
            "plans_name": plans_name,
            "original_median_spacing_after_transp": list(self.spacing_zyx_mm),
            "original_median_shape_after_transp": list(self.median_shape_zyx),
            "image_reader_writer": "NibabelIOWithReorient",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {configuration: one},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": intensity},
        }


def dataset(
    name: str, labels: Mapping[int, str], description: str, modality: str = "CT", cases: int = 1
) -> dict[str, Any]:
    """`dataset.json`: the labels (background is added) and, in `description`, that the weights are synthetic."""
    return {
        "channel_names": {"0": modality},
        "labels": {"background": 0} | {name: value for value, name in labels.items()},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
        "name": name,
        "description": description,
    }


def checkpoint(network_weights: Mapping[str, Tensor], trainer: str, configuration: str) -> dict[str, Any]:
    """What nnU-Net reads of a checkpoint."""
    return {
        "network_weights": dict(network_weights),
        "init_args": {"configuration": configuration},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": None,
    }


def upstream_labels(spec: TaskSpec, model: ModelSpec) -> dict[int, str]:
    """What the model was taught, by TotalSegmentator's own tables: of its part, or of the task with what it hides."""
    from totalsegmentator import map_to_binary

    maps = cast(Any, map_to_binary)
    if len(spec.models) > 1 and spec.upstream_task == "total_mr":
        return dict(maps.class_map_parts_mr[maps.map_taskid_to_partname_mr[model.dataset_id]])
    if len(spec.models) > 1:
        return dict(maps.class_map_5_parts[maps.map_taskid_to_partname_ct[model.dataset_id]])
    return {**maps.class_map[spec.upstream_task], **maps.class_map.get(f"{spec.upstream_task}_auxiliary", {})}


def write_untrained(
    registry: Path,
    spec: TaskSpec,
    model: ModelSpec,
    plan: Plan,
    labels: Mapping[int, str],
    folds: Mapping[int, Mapping[str, Tensor]],
) -> None:
    """The model's folder is there, marked as synthetic, with the weights of each fold."""
    import torch

    target = registry / model.folder
    target.mkdir(parents=True)
    plans = plan.plans(model.dataset_folder, model.plans, model.configuration)
    described = dataset(model.dataset_folder, labels, RANDOM_MARKER, spec.modality)
    (target / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    (target / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    for fold, weights in folds.items():
        file = registry / model.checkpoint_of(fold)
        file.parent.mkdir()
        torch.save(checkpoint(weights, model.trainer, model.configuration), file)
