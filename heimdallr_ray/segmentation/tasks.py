"""The segmentation tasks by name, what each needs, and which of them a study is worth. Pure: no torch, no disk.

The rows are in `task_table.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from heimdallr_ray.errors import ModalityNotSupported, NotFound
from heimdallr_ray.segmentation.archives import fetch_command
from heimdallr_ray.segmentation.specs import CropSpec, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.task_table import (
    BODY_FAST,
    CEREBRAL_BLEED,
    FIRST_PASS,
    ROWS,
    TISSUE_TYPES,
    TOTAL_FAST,
    TOTAL_MR_FAST,
)

__all__ = [
    "BODY_FAST",
    "CEREBRAL_BLEED",
    "DEFAULT_WANTED",
    "FIRST_PASS",
    "TASKS",
    "TISSUE_TYPES",
    "TOTAL_FAST",
    "TOTAL_MR_FAST",
    "CropSpec",
    "LeftOut",
    "LeftOutCode",
    "ModelSpec",
    "Plan",
    "TaskSpec",
    "first_pass",
    "models_of",
    "plan",
    "task_spec",
]


TASKS: Final[Mapping[str, TaskSpec]] = {row.name: row for row in ROWS}

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
    """All models that a task needs, each once, the rough segmentation's first."""
    spec = task_spec(name)
    others = (spec.crop.task,) if spec.crop else ()
    rough = tuple(model for other in others + spec.needs for model in models_of(other))
    return tuple(dict.fromkeys(rough + spec.models))


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
        return None if brain_ml >= BRAIN_ML else f"brain {brain_ml:.0f} mL, needs {BRAIN_ML:.0f} mL"
    if task == TISSUE_TYPES:
        lumbar_ml = sum(found_ml.get(name, 0.0) for name in LUMBAR)
        return None if lumbar_ml >= LUMBAR_ML else f"lumbar spine {lumbar_ml:.0f} mL, needs {LUMBAR_ML:.0f} mL"
    return None if sum(found_ml.values()) >= ANYTHING_ML else "the model found no structure that it knows"


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
            left_out.append(
                LeftOut(name, LeftOutCode.WEIGHTS_MISSING, f"needs {folders}; run: {fetch_command((name,))}")
            )
        elif spec.licence and name not in licensed:
            left_out.append(LeftOut(name, LeftOutCode.LICENCE, "needs a TotalSegmentator licence of the site"))
        else:
            run.append(name)
    return Plan(tuple(run), tuple(left_out))
