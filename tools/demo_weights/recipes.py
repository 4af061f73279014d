"""What each demo network is: architecture, patch, intensity window, training cases; and its nnU-Net plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS
from totalsegmentator.map_to_binary import class_map

MARKER = "SYNTHETIC phantom weights; not for clinical use"
CONFIGURATION = "3d_fullres"
PLANS_NAME = "nnUNetPlans"
UNUSED_BIAS = -300.0
"""Logit of classes that no phantom holds; times nnU-Net's Gaussian weight (10 a tile) it stays inside float16."""

Knots = tuple[tuple[float, float], ...]

_AIR_AND_FAT: Knots = ((-1000, 400), (-900, 150), (-700, 300), (-200, 100), (-105, 40), (-70, 40))
_SOFT: Knots = ((-20, 40), (10, 40), (28, 40), (42, 40), (55, 40), (75, 40))
_TORSO_16: Knots = (*_AIR_AND_FAT, *_SOFT, (110, 50), (180, 80), (300, 150), (600, 250))
_TORSO_8: Knots = ((-900, 300), (-200, 100), (-115, 40), (-80, 40), (0, 40), (40, 40), (70, 40), (150, 100))
_HEAD_8: Knots = ((-50, 30), (0, 20), (20, 15), (34, 12), (45, 12), (55, 12), (70, 15), (100, 30))


@dataclass(frozen=True)
class Recipe:
    """One network.

    Attributes:
        dataset_id: TotalSegmentator's dataset number.
        task: its task, which names the classes.
        trainer: nnU-Net trainer class named in the folder and the checkpoint.
        spacing_zyx_mm: grid the network sees; nnU-Net's axis order.
        patch_zyx: tile of the sliding window at inference. Norms are frozen, so it may differ from training patches.
        train_patches_zyx: patches drawn in training, in turn.
        features: channels per stage.
        window_hu: clip limits; the lower one is also the zero point, so that nnU-Net's zero padding reads as air.
        scale_hu: HU per unit of network input.
        knots: (HU, HU per unit) of the first layer's hinge functions, one per channel of stage 0.
        seed_base: first phantom seed; each further phantom takes the next.
        pool: phantoms held at a time.
        steps_per_phantom: steps after which the oldest phantom of the pool is replaced.
        learning_rate: peak of the cosine schedule.
        flips: array axes (z, y, x) along which training patches may be mirrored.
        first_stride: from stage 0 to stage 1.
        grown_from: data set whose trained network, at half the resolution, becomes all stages but the first.
    """

    dataset_id: int
    task: str
    trainer: str
    spacing_zyx_mm: tuple[float, float, float]
    patch_zyx: tuple[int, int, int]
    train_patches_zyx: tuple[tuple[int, int, int], ...]
    features: tuple[int, ...]
    window_hu: tuple[float, float]
    scale_hu: float
    knots: Knots
    seed_base: int
    pool: int
    steps_per_phantom: int
    learning_rate: float
    flips: tuple[int, ...] = ()
    first_stride: tuple[int, int, int] = (2, 2, 2)
    grown_from: int | None = None

    @property
    def folder(self) -> str:
        """TotalSegmentator's exact folder name, on which its download check depends."""
        return str(TASK_ID_WEIGHTS_CONFIGS[self.dataset_id]["foldername"])

    @property
    def model_path(self) -> str:
        """Folder of plans, dataset and fold below the weights folder."""
        return f"{self.folder}/{self.trainer}__{PLANS_NAME}__{CONFIGURATION}"

    @property
    def classes(self) -> dict[int, str]:
        """Label value to name, without background."""
        return {int(k): str(v) for k, v in class_map[self.task].items()}

    def architecture(self) -> dict[str, Any]:
        """nnU-Net's description of the network: cheap 1x1x1 kernels at full resolution, batch norm frozen at the end.

        Instance norm would rescale each patch by its own content and lose absolute HU; batch norm keeps it.
        """
        stages = len(self.features)
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(self.features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[1, 1, 1]] + [[3, 3, 3]] * (stages - 1),
                "strides": [[1, 1, 1], list(self.first_stride)] + [[2, 2, 2]] * (stages - 2),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def plans(self) -> dict[str, Any]:
        """The smallest `plans.json` that nnU-Net 2.8 predicts with."""
        resample = "resample_data_or_seg_to_shape"
        image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
        configuration = {
            "data_identifier": f"{PLANS_NAME}_{CONFIGURATION}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(self.patch_zyx),
            "median_image_size_in_voxels": [150.0, 120.0, 140.0],
            "spacing": list(self.spacing_zyx_mm),
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": resample,
            "resampling_fn_seg": resample,
            "resampling_fn_data_kwargs": image,
            "resampling_fn_seg_kwargs": image | {"is_seg": True, "order": 1},
            "resampling_fn_probabilities": resample,
            "resampling_fn_probabilities_kwargs": image | {"order": 1},
            "architecture": self.architecture(),
            "batch_dice": True,
        }
        low, high = self.window_hu
        intensity = {
            "mean": low,
            "std": self.scale_hu,
            "percentile_00_5": low,
            "percentile_99_5": high,
            "min": -1024.0,
            "max": 3071.0,
            "median": 20.0,
        }
        return {
            "dataset_name": self.folder,
            "plans_name": PLANS_NAME,
            "original_median_spacing_after_transp": list(self.spacing_zyx_mm),
            "original_median_shape_after_transp": [150, 120, 140],
            "image_reader_writer": "NibabelIOWithReorient",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {CONFIGURATION: configuration},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": intensity},
        }

    def dataset(self, cases: int) -> dict[str, Any]:
        """`dataset.json`; its description marks the weights as synthetic."""
        return {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {name: value for value, name in self.classes.items()},
            "numTraining": cases,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "NibabelIOWithReorient",
            "name": self.folder,
            "description": MARKER,
        }


_TOTAL_TRAINER = "nnUNetTrainer_4000epochs_NoMirroring"
_TORSO_WINDOW = (-1000.0, 1100.0)

RECIPES: dict[int, Recipe] = {
    297: Recipe(
        297, "total", _TOTAL_TRAINER, (3.0, 3.0, 3.0), (64, 112, 144), ((48, 96, 112), (64, 80, 96)),
        (16, 16, 32, 48, 64), _TORSO_WINDOW, 500.0, _TORSO_16, 297_000_000, 32, 6, 2e-3, grown_from=298,
    ),
    298: Recipe(
        298, "total", _TOTAL_TRAINER, (6.0, 6.0, 6.0), (64, 56, 72), ((48, 48, 64),),
        (16, 32, 48, 64), _TORSO_WINDOW, 500.0, _TORSO_16, 298_000_000, 96, 2, 3e-3,
    ),
    481: Recipe(
        481, "tissue_types", "nnUNetTrainer", (1.5, 1.5, 1.5), (64, 208, 272), ((48, 96, 128), (64, 96, 96)),
        (8, 16, 32, 32, 32), _TORSO_WINDOW, 500.0, _TORSO_8, 481_000_000, 24, 3, 3e-3, (0, 2),
    ),
    150: Recipe(
        150, "cerebral_bleed", "nnUNetTrainer", (3.0, 2.0, 2.0), (48, 112, 112), ((32, 80, 80), (48, 112, 96)),
        (8, 16, 32, 32), (-50.0, 150.0), 50.0, _HEAD_8, 150_000_000, 48, 6, 3e-3, (0, 1, 2), (1, 2, 2),
    ),
}  # fmt: skip
