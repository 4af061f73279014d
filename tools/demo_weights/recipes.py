"""What each demo network is: architecture, patch, intensity window, training cases; and its nnU-Net plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS
from totalsegmentator.map_to_binary import class_map

from tools.nnunet_files import Plan, Unet, dataset

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

    def unet(self) -> Unet:
        """The network: cheap 1x1x1 kernels at full resolution, batch norm frozen at the end.

        Instance norm would rescale each patch by its own content and lose absolute HU; batch norm keeps it.
        """
        return Unet(
            self.features,
            convolutions=2,
            decoder_convolutions=1,
            kernels=((1, 1, 1),) + ((3, 3, 3),) * (len(self.features) - 1),
            first_stride=self.first_stride,
            norm="BatchNorm3d",
        )

    def plans(self) -> dict[str, Any]:
        """`plans.json`."""
        plan = Plan(self.unet(), self.patch_zyx, self.spacing_zyx_mm, self.window_hu[0], self.scale_hu, self.window_hu)
        return plan.plans(self.folder, PLANS_NAME, CONFIGURATION)

    def dataset(self, cases: int) -> dict[str, Any]:
        """`dataset.json`; its description marks the weights as synthetic."""
        return dataset(self.folder, self.classes, MARKER, cases=cases)


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
