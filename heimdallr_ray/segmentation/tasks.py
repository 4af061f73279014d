"""The segmentation tasks by name and what each needs. Pure: no torch, no disk.

The rows are in `task_table.py`; which of them a study is worth, `planner.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from heimdallr_ray.errors import NotFound
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
    "FIRST_PASS",
    "TASKS",
    "TISSUE_TYPES",
    "TOTAL_FAST",
    "TOTAL_MR_FAST",
    "CropSpec",
    "ModelSpec",
    "TaskSpec",
    "models_of",
    "task_spec",
]


TASKS: Final[Mapping[str, TaskSpec]] = {row.name: row for row in ROWS}


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
