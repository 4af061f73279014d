"""Every row of our table says what the installed TotalSegmentator says, and no task of it is missing."""

from __future__ import annotations

from typing import Any, cast

import pytest
from totalsegmentator import map_tasks_config
from totalsegmentator.map_to_binary import class_map, commercial_models
from totalsegmentator.registry import task_modality

from heimdallr_ray.segmentation.specs import RESIDENT, UPSTREAM, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.task_table import ROWS
from heimdallr_ray.segmentation.tasks import TASKS, models_of

TASK_CONFIGS = cast("dict[str, dict[str, Any]]", map_tasks_config.TASK_CONFIGS)
WITHOUT_WEIGHTS = {"test", "total_highres_test"}
"""Upstream's own trials: their weights were never released."""
OURS = {
    "total",
    "total_fast",
    "total_fastest",
    "total_mr",
    "total_mr_fast",
    "total_mr_fastest",
    "body",
    "body_fast",
    "tissue_types",
    "cerebral_bleed",
    "lung_nodules",
    "pleural_pericard_effusion",
    "vertebrae_body",
    "liver_segments",
    "liver_lesions",
    "kidney_cysts",
    "lung_vessels",
    "ventricle_parts",
    "abdominal_muscles",
    "trunk_cavities",
    "headneck_bones_vessels",
}
COARSE = {"total", "total_v3", "total_mr"}
BY_ID = pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)


def mode_of(spec: TaskSpec) -> str:
    return "fast" if spec.fast else "fastest" if spec.fastest else "default"


def upstream_config(spec: TaskSpec) -> dict[str, Any]:
    """The installed package's own parameters for a row of ours."""
    config = dict(map_tasks_config.DEFAULT_CONFIG)
    row = TASK_CONFIGS[spec.upstream_task]
    config.update(row["sub_modes"][mode_of(spec)] if "sub_modes" in row else row)
    return config


def crop_model_id(spec: TaskSpec, config: dict[str, Any]) -> list[int]:
    """The model that `python_api.totalsegmentator` runs for the crop."""
    if config["crop_model"]:
        return [TASK_CONFIGS[config["crop_model"]]["task_id"]]
    if "body_trunc" in config["crop"]:
        return [300]
    if spec.upstream_task.endswith("_mr"):
        return [852]
    return [297 if config["robust_crop"] else 298]


@BY_ID
def test_models_and_spacing(spec: TaskSpec) -> None:
    config = upstream_config(spec)
    ids = config["task_id"] if isinstance(config["task_id"], list) else [config["task_id"]]
    assert [model.dataset_id for model in spec.models] == ids
    assert {model.trainer for model in spec.models} == {config["trainer"]}
    assert {model.configuration for model in spec.models} == {config["model"]}
    folds = config["folds"]
    assert {model.folds for model in spec.models} == {None if folds is None else tuple(folds)}
    want = config["resample"]
    assert spec.spacing_mm == (None if want is None else tuple(want) if isinstance(want, list) else (want,) * 3)
    assert spec.tile_step == (0.8 if spec.upstream_task in COARSE else 0.5)
    for model in spec.models:
        assert model.dataset_folder == map_tasks_config.TASK_ID_WEIGHTS_CONFIGS[model.dataset_id]["foldername"]


@BY_ID
def test_crop(spec: TaskSpec) -> None:
    config = upstream_config(spec)
    if config["crop"] is None:
        assert spec.crop is None
        return
    assert spec.crop is not None
    assert list(spec.crop.structures) == config["crop"]
    assert [model.dataset_id for model in TASKS[spec.crop.task].models] == crop_model_id(spec, config)
    assert spec.crop.margin_mm == (config["crop_addon"][0] if config["crop_model"] else 20.0)
    assert set(spec.crop.structures) <= set(class_map[TASKS[spec.crop.task].upstream_task].values())


@BY_ID
def test_modality_and_licence(spec: TaskSpec) -> None:
    assert spec.modality == task_modality(spec.upstream_task)
    assert spec.licence == upstream_config(spec)["commercial"] == (spec.upstream_task in commercial_models)


@BY_ID
def test_the_resident_engine_knows_all_that_a_row_asks_for(spec: TaskSpec) -> None:
    config = upstream_config(spec)
    special = bool(
        config["crop_model"] or config["cascade"] or config["remove_outside"] or "vertebrae_pp" in spec.upstream_task
    )
    assert not special or spec.backend == UPSTREAM


def test_nothing_of_upstream_is_missing() -> None:
    ours = {(spec.upstream_task, mode_of(spec)) for spec in ROWS}
    theirs = {(task, mode) for task, row in TASK_CONFIGS.items() for mode in row.get("sub_modes", {"default": None})}
    assert {pair for pair in theirs if pair[0] not in WITHOUT_WEIGHTS} == ours
    assert len(TASKS) == len(ROWS)


def test_what_runs_resident() -> None:
    assert {spec.name for spec in ROWS if spec.backend == RESIDENT} >= OURS


def test_body_is_cleaned_as_upstream_does() -> None:
    for spec in ROWS:
        cleaned = (("body_trunc",), (("body_extremities", 50_000.0),))
        assert (spec.largest_blob, spec.min_blob_mm3) == (cleaned if spec.upstream_task == "body" else ((), ()))


def test_all_models_of_a_task_are_named_once_rough_ones_first() -> None:
    assert [model.dataset_id for model in models_of("cerebral_bleed")] == [298, 150]
    assert [model.dataset_id for model in models_of("abdominal_muscles")] == [300, 952]
    assert [model.dataset_id for model in models_of("teeth")] == [298, 115, 113]
    assert [model.dataset_id for model in models_of("vertebrae_pp_refined")] == [305, 803]


def test_folds_come_in_upstreams_order() -> None:
    every = ModelSpec(315, "Dataset315_thoraxCT", "nnUNetTrainer", folds=None)
    files = [every.checkpoint_of(fold) for fold in (10, 2, 0, 1)]
    others = [f"{every.folder}/fold_all/checkpoint_final.pth", f"{every.folder}/fold_3/checkpoint_best.pth"]
    # nnU-Net sorts the folders' names
    assert every.checkpoints(files + others) == tuple(every.checkpoint_of(fold) for fold in (0, 1, 10, 2))
    assert every.checkpoints([]) == ()
    two = ModelSpec(1, "Dataset001_x", "nnUNetTrainer", folds=(0, 4))
    assert two.checkpoints([]) == (two.checkpoint_of(0), two.checkpoint_of(4))
