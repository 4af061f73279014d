"""Label tables against upstream's lookup, and the refusal of a label that no table holds."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest
from totalsegmentator import map_to_binary

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.specs import RESIDENT
from heimdallr_ray.segmentation.task_table import ROWS
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.labels import labels_of, labels_of_model, require_known, table_for

maps = cast(Any, map_to_binary)


@pytest.mark.parametrize("spec", [row for row in ROWS if row.backend == RESIDENT], ids=lambda spec: spec.name)
def test_all_labels_of_a_task_come_from_its_models(spec: Any) -> None:
    assert labels_of(spec) == maps.class_map[spec.upstream_task]
    reached = np.concatenate([table_for(spec, model)[list(labels_of_model(spec, model))] for model in spec.models])
    assert set(reached.tolist()) - {0} == set(labels_of(spec))


@pytest.mark.parametrize(
    ("task", "tables", "names"),
    [
        ("total", maps.class_map_5_parts, maps.map_taskid_to_partname_ct),
        ("total_mr", maps.class_map_parts_mr, maps.map_taskid_to_partname_mr),
    ],
)
def test_parts_are_named_as_upstream_names_them(task: str, tables: Any, names: Any) -> None:
    whole = {name: value for value, name in maps.class_map[task].items()}
    for model in TASKS[task].models:
        table = table_for(TASKS[task], model)
        for value, name in tables[names[model.dataset_id]].items():
            assert table[value] == whole[name]


def test_auxiliary_labels_become_background() -> None:
    spec = TASKS["kidney_cysts"]
    (model,) = spec.models
    assert list(table_for(spec, model)[:6]) == [0, 1, 2, 0, 0, 0]
    assert set(labels_of_model(spec, model)) == {1, 2, 3, 4}


def test_a_label_outside_the_table_is_refused_by_number() -> None:
    labels = np.zeros((30, 20, 10), np.uint8)
    labels[4:9, 3, 2] = 2
    require_known(labels, {1, 2}, "totalsegmentator/789")
    require_known(np.zeros((0, 4, 4), np.uint8), {1}, "nothing")
    labels[29, 19, 9] = 200
    with pytest.raises(Broken, match="totalsegmentator/789 gave label 200"):
        require_known(labels, {1, 2}, "totalsegmentator/789")


def test_a_gap_in_the_table_is_no_label() -> None:
    labels = np.full((2, 2, 2), 3, np.uint8)
    require_known(labels, {1, 3}, "x")
    labels[0, 0, 0] = 2
    with pytest.raises(Broken, match="label 2"):
        require_known(labels, {1, 3}, "x")


def test_the_check_of_a_large_mask_takes_no_second() -> None:
    labels = np.ones((512, 512, 100), np.uint8)
    began = time.process_time()
    require_known(labels, range(1, 118), "x")
    assert time.process_time() - began < 1.0
