"""What an earlier run of the same image made is not made again, and the answer is the same as without it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import GeometryMismatch
from heimdallr_ray.pipelines.steps import TIE_TASKS
from heimdallr_ray.segmentation.engine import SegmentationRun
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.volume import Volume
from tests.integration.segmentation import identity_nets
from tests.integration.segmentation.peer import Geometry, volume_of

pytestmark = pytest.mark.timeout(600)

GRID = Geometry("LPS", (26, 24, 20), (2.8, 2.8, 3.6), "LPS")
BODY = "trunk_cavities"
WANTED = (TOTAL_FAST, BODY)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ResidentEngine:
    folder: Path = tmp_path_factory.mktemp("weights")
    return ResidentEngine(identity_nets.write_registry(folder, (*TIE_TASKS, BODY)), threads=1)


def image() -> Volume:
    return volume_of(GRID.image("CT"), "CT")


@pytest.fixture(scope="module")
def tie(engine: ResidentEngine) -> SegmentationRun:
    return engine.run_plan(image(), TIE_TASKS)


@pytest.fixture(scope="module")
def whole(engine: ResidentEngine) -> SegmentationRun:
    return engine.run_plan(image(), WANTED)


def test_the_second_run_runs_what_is_new_alone(
    engine: ResidentEngine, tie: SegmentationRun, whole: SegmentationRun
) -> None:
    assert tie.plan.run == TIE_TASKS
    assert (whole.timings.loads, whole.timings.resamplings) == (1, 3)
    # As it comes back from another process: equal, and not the same objects.
    shared = engine.run_plan(image(), WANTED, copy.deepcopy(tie))
    assert (shared.timings.loads, shared.timings.canonical_views, shared.timings.resamplings) == (1, 1, 1)
    alone = shared.segmentations[BODY].timings
    assert (alone.resamplings, shared.timings.forward_s) == (1, alone.forward_s)
    assert shared.segmentations[TOTAL_FAST].timings.forward_s == 0.0
    assert shared.plan == whole.plan
    assert shared.found_ml == whole.found_ml
    for task in WANTED:
        mine, theirs = (one.segmentations[task].label_map for one in (shared, whole))
        assert np.array_equal(mine.array, theirs.array)
        assert (mine.labels, mine.model) == (theirs.labels, theirs.model)
        assert np.array_equal(mine.affine_ras, theirs.affine_ras)


def test_labels_of_other_models_are_made_anew(
    engine: ResidentEngine, tie: SegmentationRun, whole: SegmentationRun
) -> None:
    made = dict(tie.segmentations)
    for task in TIE_TASKS:
        labels = made[task].label_map
        other = replace(labels.model, weights_sha256="0" * 64)
        made[task] = replace(made[task], label_map=replace(labels, array=labels.array * np.uint8(0), model=other))
    again = engine.run_plan(image(), WANTED, replace(tie, segmentations=made, found_ml={}))
    assert again.timings.resamplings == 3
    assert again.found_ml == whole.found_ml
    assert np.array_equal(
        again.segmentations[TOTAL_FAST].label_map.array, whole.segmentations[TOTAL_FAST].label_map.array
    )


def test_labels_of_another_image_are_refused(engine: ResidentEngine, tie: SegmentationRun) -> None:
    shifted = np.array(image().affine_ras)
    shifted[0, 3] += 1.0
    with pytest.raises(GeometryMismatch):
        engine.run_plan(replace(image(), affine_ras=shifted), WANTED, tie)
    # Nothing of it stays with the engine.
    assert engine.run_plan(image(), (FIRST_PASS,)).timings.resamplings == 1
