"""Label tables of tasks, of their parts and of what a model tells besides, and the check that nothing else is told."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from totalsegmentator import map_to_binary

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.specs import ModelSpec, TaskSpec

_maps: Any = map_to_binary
_Table = Mapping[int, str]
_PARTS: Final[Mapping[str, tuple[Mapping[str, _Table], Mapping[int, str]]]] = {
    "total": (_maps.class_map_5_parts, _maps.map_taskid_to_partname_ct),
    "total_mr": (_maps.class_map_parts_mr, _maps.map_taskid_to_partname_mr),
}
"""Per task with parts: part name to its label table, and number of the part's data set to part name."""


def _class_map() -> Mapping[str, _Table]:
    return cast("Mapping[str, _Table]", _maps.class_map)


def labels_of(spec: TaskSpec) -> _Table:
    """TotalSegmentator's label table of a task."""
    return dict(_class_map()[spec.upstream_task])


def auxiliary_of(spec: TaskSpec) -> frozenset[int]:
    """Labels that the model was taught beside those of the task; upstream sets them to 0."""
    return frozenset(_class_map().get(f"{spec.upstream_task}_auxiliary", {}))


def labels_of_model(spec: TaskSpec, model: ModelSpec) -> _Table:
    """What the network of one model tells apart, background left out."""
    if len(spec.models) > 1:
        tables, names = _PARTS[spec.upstream_task]
        return dict(tables[names[model.dataset_id]])
    return {**labels_of(spec), **_class_map().get(f"{spec.upstream_task}_auxiliary", {})}


def table_for(spec: TaskSpec, model: ModelSpec) -> NDArray[np.uint8]:
    """Label of a model to label of the task, as a table of 256; auxiliary labels become 0."""
    values = {name: value for value, name in labels_of(spec).items()}
    table = np.zeros(256, np.uint8)
    for value, name in labels_of_model(spec, model).items():
        table[value] = 0 if value in auxiliary_of(spec) and len(spec.models) == 1 else values[name]
    return table


def require_known(labels: NDArray[np.uint8], known: Collection[int], what: str) -> None:
    """Nothing happens where `labels` holds 0 and values of `known` only.

    Raises:
        Broken: another value; such a voxel has no name, so nothing may be measured from the mask.
    """
    allowed = np.zeros(256, bool)
    allowed[[0, *known]] = True
    highest = int(labels.max(initial=0))
    if allowed[: highest + 1].all():
        return
    for plane in labels:
        outside = plane[~allowed[plane]]
        if outside.size:
            raise Broken(f"{what} gave label {int(outside[0])}, which its table does not hold")
