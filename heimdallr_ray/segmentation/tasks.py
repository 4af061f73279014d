"""The segmentation tasks, what each needs, and which of them a study is worth.

Numbers, folders and trainers are those of TotalSegmentator 2.18 (`map_tasks_config.py`); a test compares this table
with the installed package. Pure: no torch, no disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from heimdallr_ray.errors import ModalityNotSupported, NotFound


@dataclass(frozen=True)
class ModelSpec:
    """One nnU-Net of TotalSegmentator.

    Attributes:
        dataset_id: number of the data set; the model's identity in provenance.
        dataset_folder: exact name of its folder in the registry.
        trainer: nnU-Net trainer class.
        configuration: nnU-Net configuration.
        plans: nnU-Net plans.
        fold: the one fold that is used.
    """

    dataset_id: int
    dataset_folder: str
    trainer: str
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    fold: int = 0

    @property
    def folder(self) -> str:
        """Where plans.json and dataset.json are, relative to the registry."""
        return f"{self.dataset_folder}/{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def checkpoint(self) -> str:
        """The file with the weights, relative to the registry."""
        return f"{self.folder}/fold_{self.fold}/checkpoint_final.pth"

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
        margin_mm: added on each side; upstream always uses 20 mm with its default crop model.
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
        resample_mm: isotropic spacing that the image is brought to first, or None where nnU-Net does it.
        modality: what the model reads.
        fast, fastest: TotalSegmentator's mode flags for the same result.
        tile_step: share of the patch between tiles (0.8 for `total` and `total_mr`, else 0.5).
        crop: rough segmentation to crop to.
        licence: True where TotalSegmentator's weights need a licence.
    """

    name: str
    upstream_task: str
    models: tuple[ModelSpec, ...]
    resample_mm: float | None = None
    modality: str = "CT"
    fast: bool = False
    fastest: bool = False
    tile_step: float = 0.5
    crop: CropSpec | None = None
    licence: bool = False


_TOTAL: Final = "nnUNetTrainer_4000epochs_NoMirroring"
_TOTAL_MR: Final = "nnUNetTrainer_2000epochs_NoMirroring"
_PARTS: Final = (
    (291, "part1_organs_1559subj"),
    (292, "part2_vertebrae_1532subj"),
    (293, "part3_cardiac_1559subj"),
    (294, "part4_muscles_1559subj"),
    (295, "part5_ribs_1559subj"),
)

FIRST_PASS: Final = "total_fastest"  # noqa: S105
TOTAL_FAST: Final = "total_fast"
TISSUE_TYPES: Final = "tissue_types"
CEREBRAL_BLEED: Final = "cerebral_bleed"
TOTAL_MR_FAST: Final = "total_mr_fast"

_ROWS: Final = (
    TaskSpec(
        FIRST_PASS,
        "total",
        (ModelSpec(298, "Dataset298_TotalSegmentator_total_6mm_1559subj", _TOTAL),),
        resample_mm=6.0,
        fastest=True,
        tile_step=0.8,
    ),
    TaskSpec(
        TOTAL_FAST,
        "total",
        (ModelSpec(297, "Dataset297_TotalSegmentator_total_3mm_1559subj", _TOTAL),),
        resample_mm=3.0,
        fast=True,
        tile_step=0.8,
    ),
    TaskSpec(
        "total",
        "total",
        tuple(
            ModelSpec(number, f"Dataset{number}_TotalSegmentator_{name}", "nnUNetTrainerNoMirroring")
            for number, name in _PARTS
        ),
        resample_mm=1.5,
        tile_step=0.8,
    ),
    TaskSpec(
        TISSUE_TYPES,
        "tissue_types",
        (ModelSpec(481, "Dataset481_tissue_1559subj", "nnUNetTrainer"),),
        resample_mm=1.5,
        licence=True,
    ),
    TaskSpec(
        CEREBRAL_BLEED,
        "cerebral_bleed",
        (ModelSpec(150, "Dataset150_icb_v0", "nnUNetTrainer"),),
        crop=CropSpec(FIRST_PASS, ("brain",)),
    ),
    TaskSpec(
        TOTAL_MR_FAST,
        "total_mr",
        (ModelSpec(852, "Dataset852_TotalSegMRI_total_3mm_1088subj", _TOTAL_MR),),
        resample_mm=3.0,
        modality="MR",
        fast=True,
        tile_step=0.8,
    ),
)
TASKS: Final[Mapping[str, TaskSpec]] = {row.name: row for row in _ROWS}

DEFAULT_WANTED: Final = (TOTAL_FAST, CEREBRAL_BLEED, TISSUE_TYPES)
"""What a CT study is offered; the plan leaves out what its anatomy, licence or weights do not allow."""
MR_WANTED: Final = (TOTAL_MR_FAST,)

BRAIN_ML: Final = 100.0
"""Less brain than this is the edge of a neck or chest scan; a head has over 1,000 ml."""
LUMBAR_ML: Final = 20.0
"""Body composition is read at L3; one lumbar vertebra has 40 to 80 ml, so less than this is stray voxels."""
ANYTHING_ML: Final = 1.0
LUMBAR: Final = ("vertebrae_L1", "vertebrae_L2", "vertebrae_L3", "vertebrae_L4", "vertebrae_L5")


class LeftOutCode(StrEnum):
    """Why a wanted task does not run."""

    ANATOMY_ABSENT = "anatomy_absent"
    LICENCE = "licence"
    WEIGHTS_MISSING = "weights_missing"
    MODALITY = "modality"


@dataclass(frozen=True)
class LeftOut:
    """A task that does not run, and the reason for a person."""

    task: str
    code: LeftOutCode
    detail: str


@dataclass(frozen=True)
class Plan:
    """Tasks to run, in order, and those left out."""

    run: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def task_spec(name: str) -> TaskSpec:
    """The row of a task.

    Raises:
        NotFound: no such task.
    """
    try:
        return TASKS[name]
    except KeyError as error:
        raise NotFound(f"no segmentation task {name!r}") from error


def models_of(name: str) -> tuple[ModelSpec, ...]:
    """All models that a task needs, the rough segmentation's first."""
    spec = task_spec(name)
    return (models_of(spec.crop.task) if spec.crop else ()) + spec.models


def first_pass(modality: str, available: Collection[str]) -> str | None:
    """The task that finds out what is in the image, or None where the modality needs none.

    Raises:
        ModalityNotSupported: no installed model reads this modality.
    """
    if modality == "CT":
        return FIRST_PASS
    if modality == "MR" and TOTAL_MR_FAST in available:
        return None
    raise ModalityNotSupported(f"no installed model reads {modality or 'an unknown modality'}")


def _anatomy_reason(task: str, found_ml: Mapping[str, float]) -> str | None:
    if task == CEREBRAL_BLEED:
        brain_ml = found_ml.get("brain", 0.0)
        return None if brain_ml >= BRAIN_ML else f"brain {brain_ml:.0f} ml, needs {BRAIN_ML:.0f} ml"
    if task == TISSUE_TYPES:
        lumbar_ml = sum(found_ml.get(name, 0.0) for name in LUMBAR)
        return None if lumbar_ml >= LUMBAR_ML else f"lumbar spine {lumbar_ml:.0f} ml, needs {LUMBAR_ML:.0f} ml"
    return None if sum(found_ml.values()) >= ANYTHING_ML else "no known structure in the image"


def plan(
    found_volumes_ml: Mapping[str, float],
    modality: str,
    available_tasks: Collection[str],
    licensed: Collection[str],
    wanted: Iterable[str] = DEFAULT_WANTED,
) -> Plan:
    """Which of the wanted tasks run, and why each other one does not.

    Args:
        found_volumes_ml: structure name to ml, from the first pass; not looked at for MR.
        modality: DICOM Modality (0008,0060) of the image.
        available_tasks: tasks whose model folders are installed.
        licensed: tasks that may run here; open ones need not be named.
        wanted: what the study's purpose asks for, in the order in which it should run.

    Raises:
        ModalityNotSupported: no installed model reads this modality.
        NotFound: a wanted task is not in the table.
    """
    first_pass(modality, available_tasks)
    names = MR_WANTED if modality == "MR" and tuple(wanted) == DEFAULT_WANTED else tuple(wanted)
    run: list[str] = []
    left_out: list[LeftOut] = []
    for name in names:
        spec = task_spec(name)
        absent = _anatomy_reason(name, found_volumes_ml) if modality == "CT" else None
        if spec.modality != modality:
            left_out.append(LeftOut(name, LeftOutCode.MODALITY, f"reads {spec.modality}, the image is {modality}"))
        elif absent is not None:
            left_out.append(LeftOut(name, LeftOutCode.ANATOMY_ABSENT, absent))
        elif name not in available_tasks:
            folders = ", ".join(model.dataset_folder for model in models_of(name))
            left_out.append(LeftOut(name, LeftOutCode.WEIGHTS_MISSING, f"needs {folders}"))
        elif spec.licence and name not in licensed:
            left_out.append(LeftOut(name, LeftOutCode.LICENCE, "needs a TotalSegmentator licence of the site"))
        else:
            run.append(name)
    return Plan(tuple(run), tuple(left_out))
