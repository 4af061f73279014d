"""What a row of the task table says: a task, its models, and what is done before and after them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

Spacing = float | tuple[float, float, float]
"""Millimetres along x, y, z; one number where all three are equal."""

RESIDENT: Final = "resident"
UPSTREAM: Final = "upstream"

_CHECKPOINT: Final = "checkpoint_final.pth"
_FOLD_PREFIX: Final = "fold_"


@dataclass(frozen=True)
class ModelSpec:
    """One nnU-Net of TotalSegmentator.

    Attributes:
        dataset_id: number of the data set; the model's identity in provenance.
        dataset_folder: exact name of its folder in the registry.
        trainer: nnU-Net trainer class.
        configuration: nnU-Net configuration.
        plans: nnU-Net plans.
        folds: the folds whose logits are averaged; None: all that are installed.
    """

    dataset_id: int
    dataset_folder: str
    trainer: str
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    folds: tuple[int, ...] | None = (0,)

    @property
    def folder(self) -> str:
        """Where plans.json and dataset.json are, relative to the registry."""
        return f"{self.dataset_folder}/{self.trainer}__{self.plans}__{self.configuration}"

    def checkpoint_of(self, fold: int) -> str:
        """The file with the weights of one fold, relative to the registry."""
        return f"{self.folder}/{_FOLD_PREFIX}{fold}/{_CHECKPOINT}"

    @property
    def checkpoint(self) -> str:
        """The file with the weights of the first fold (0 where the folds are those that are installed)."""
        return self.checkpoint_of(self.folds[0] if self.folds else 0)

    def checkpoints(self, files: Collection[str]) -> tuple[str, ...]:
        """The files with the weights, in the order in which upstream sums the folds.

        Upstream takes the folds it finds in the order of their folders' names, `fold_all` left out.

        Args:
            files: paths in the registry, relative to it.
        """
        if self.folds is not None:
            return tuple(map(self.checkpoint_of, self.folds))
        prefix = f"{self.folder}/{_FOLD_PREFIX}"
        found = (name for name in files if name.startswith(prefix) and name.endswith(f"/{_CHECKPOINT}"))
        folds = sorted(name[len(prefix) :].split("/")[0] for name in found)
        return tuple(self.checkpoint_of(int(fold)) for fold in folds if fold.isdecimal())

    @property
    def model_id(self) -> str:
        """For `ModelRef.model_id`."""
        return f"totalsegmentator/{self.dataset_id}"


@dataclass(frozen=True)
class CropSpec:
    """The image is cut to structures of a rough segmentation before the model sees it.

    Attributes:
        task: the rough segmentation.
        structures: what is kept.
        margin_mm: added on each side. With its default crop models upstream ignores a task's own `crop_addon` and uses
            20 mm (`python_api.py`).
    """

    task: str
    structures: tuple[str, ...]
    margin_mm: float = 20.0


@dataclass(frozen=True)
class TaskSpec:
    """One row of the table.

    Attributes:
        name: ours; unique.
        upstream_task: TotalSegmentator's task name, which also names the label table.
        models: one, or the parts whose labels are merged in this order.
        resample_mm: spacing that the image is brought to first, or None where nnU-Net does it.
        modality: what the model reads.
        fast, fastest: TotalSegmentator's mode flags for the same result.
        tile_step: share of the patch between tiles (0.8 for `total` and `total_mr`, else 0.5).
        crop: rough segmentation to crop to.
        licence: True where TotalSegmentator's weights need a licence.
        largest_blob: structures of which only the largest connected part is kept.
        min_blob_mm3: structures and the size up to which their connected parts are dropped.
        needs: further tasks whose models the task runs.
        backend: `resident`, or `upstream` where TotalSegmentator's own entry point runs the task.
    """

    name: str
    upstream_task: str
    models: tuple[ModelSpec, ...]
    resample_mm: Spacing | None = None
    modality: str = "CT"
    fast: bool = False
    fastest: bool = False
    tile_step: float = 0.5
    crop: CropSpec | None = None
    licence: bool = False
    largest_blob: tuple[str, ...] = ()
    min_blob_mm3: tuple[tuple[str, float], ...] = ()
    needs: tuple[str, ...] = ()
    backend: str = RESIDENT

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """`resample_mm` along x, y, z."""
        one = self.resample_mm
        return (one, one, one) if isinstance(one, float | int) else one
