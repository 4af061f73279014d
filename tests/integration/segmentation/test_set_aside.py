"""A model that cannot be built costs the tasks that need it, and says so; the others serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.planner import LeftOutCode
from heimdallr_ray.segmentation.tasks import FIRST_PASS
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.weights import write_manifest
from tests.integration.segmentation.peer import Geometry, volume_of
from tests.support.weights import labels_of, model_files, plain, spec_of, write_models

pytestmark = pytest.mark.timeout(600)

GRID = Geometry("LPS", (26, 24, 20), (2.8, 2.8, 3.6), "LPS")
CAVITIES, SPINE = 343, 305
"""Data sets of `trunk_cavities` and `vertebrae_body`."""


def bad_files(dataset_id: int, kind: str) -> dict[str, bytes]:
    if kind == "plans":
        return model_files(dataset_id, plans={"a": 1})
    if kind == "labels":
        return model_files(dataset_id, labels=dict(list(labels_of(dataset_id).items())[:-1]))
    return model_files(dataset_id, plain(dataset_id, trainer_name="nnUNetTrainer_5epochs"))


def engine_of(folder: Path, *models: dict[str, bytes]) -> ResidentEngine:
    for files in models:
        write_models(folder, files)
    write_manifest(folder, synthetic=True)
    return ResidentEngine(folder, threads=1)


@pytest.mark.parametrize("kind", ["plans", "labels", "trainer"])
def test_a_bad_model_leaves_with_its_task_and_the_rest_serve(tmp_path: Path, kind: str) -> None:
    engine = engine_of(tmp_path, model_files(298), bad_files(CAVITIES, kind), model_files(SPINE))
    assert "trunk_cavities" in engine.available_tasks
    engine.warm_up()
    assert engine.available_tasks == (FIRST_PASS, "vertebrae_body")
    told = engine.info()
    assert list(told.set_aside) == ["trunk_cavities"]
    (words,) = told.notes
    assert spec_of(CAVITIES).dataset_folder in words and "--replace" in words
    image = volume_of(GRID.image("CT"), "CT")
    with pytest.raises(Broken, match=spec_of(CAVITIES).dataset_folder):
        engine.segment(image, "trunk_cavities")
    run = engine.run_plan(image, ("trunk_cavities", "vertebrae_body"))
    assert run.plan.run == ("vertebrae_body",)
    (left,) = run.plan.left_out
    assert (left.task, left.code, left.detail) == ("trunk_cavities", LeftOutCode.MODEL_UNUSABLE, words)


@pytest.mark.parametrize("kind", ["plans", "labels", "trainer"])
def test_without_the_first_pass_nothing_starts_and_the_folder_is_named(tmp_path: Path, kind: str) -> None:
    engine = engine_of(tmp_path, bad_files(298, kind), model_files(SPINE))
    with pytest.raises(Broken, match=spec_of(298).dataset_folder):
        engine.warm_up()
