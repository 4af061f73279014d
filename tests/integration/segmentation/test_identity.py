"""The engine's masks are TotalSegmentator's: voxels, affine, header, every byte of the image it would have returned."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import pytest

from heimdallr_ray.segmentation.specs import RESIDENT
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TASKS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from tests.integration.segmentation import identity_nets
from tests.integration.segmentation.peer import Case, Geometry, assert_identical, run_upstream

pytestmark = pytest.mark.timeout(1800)

RESIDENT_TASKS = tuple(name for name, spec in TASKS.items() if spec.backend == RESIDENT)
GRIDS = (
    Geometry("LPS", (24, 22, 14), (2.4, 2.4, 4.0), "LPS"),
    Geometry("RAS", (22, 24, 19), (2.7, 2.5, 3.0), "RAS"),
    Geometry("PIR", (26, 18, 22), (2.2, 3.1, 2.6), "PIR"),
    Geometry("LAS", (26, 24, 16), (2.1, 2.3, 3.5), "LAS"),
    Geometry("oblique", (20, 26, 22), (2.9, 2.1, 2.6), "LPI", degrees=7.0),
)
TALL = Geometry("tall", (18, 16, 36), (2.8, 2.8, 3.0), "LPS")
COVERING = tuple(Case(task, GRIDS[k % len(GRIDS)]) for k, task in enumerate(RESIDENT_TASKS))
REST = tuple(Case(task, grid) for task in RESIDENT_TASKS for grid in GRIDS if Case(task, grid) not in COVERING)
SPLIT = (Case("total_mr", TALL, force_split=True), Case("trunk_cavities", TALL, force_split=True))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("random_weights"), RESIDENT_TASKS)


@pytest.fixture(scope="module")
def engine(weights: Path) -> ResidentEngine:
    return ResidentEngine(weights)


def answers(weights: Path, cases: Sequence[Case], factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("upstream")
    run_upstream(weights, cases, folder)
    return folder


@pytest.fixture(scope="module")
def covering(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers(weights, COVERING, tmp_path_factory)


@pytest.fixture(scope="module")
def rest(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers(weights, REST, tmp_path_factory)


@pytest.mark.parametrize("case", COVERING, ids=lambda case: case.name)
def test_each_task_once_and_each_orientation(engine: ResidentEngine, covering: Path, case: Case) -> None:
    assert_identical(engine, case, covering)


def test_the_quick_cases_cover_all_orientations() -> None:
    assert {case.geometry for case in COVERING} == set(GRIDS)
    assert {case.task for case in COVERING} == set(RESIDENT_TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=lambda case: case.name)
def test_every_task_in_every_orientation(engine: ResidentEngine, rest: Path, case: Case) -> None:
    assert_identical(engine, case, rest)


@pytest.mark.slow
def test_against_the_api_with_all_its_processes(weights: Path, engine: ResidentEngine, tmp_path: Path) -> None:
    case = Case(CEREBRAL_BLEED, GRIDS[4])
    run_upstream(weights, (case,), tmp_path, processes=True)
    assert_identical(engine, case, tmp_path)


@pytest.mark.slow
def test_every_task_against_the_api_with_all_its_processes(
    weights: Path, engine: ResidentEngine, tmp_path: Path
) -> None:
    cases = [Case(task, GRIDS[0]) for task in RESIDENT_TASKS]
    run_upstream(weights, cases, tmp_path, processes=True)
    for case in cases:
        assert_identical(engine, case, tmp_path)


def test_the_split_into_three_parts(weights: Path, tmp_path: Path) -> None:
    run_upstream(weights, SPLIT, tmp_path)
    split = ResidentEngine(weights, force_split=True)
    for case in SPLIT:
        assert_identical(split, case, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize(
    "task",
    [TOTAL_FAST, pytest.param(FIRST_PASS, marks=pytest.mark.slow), pytest.param(TISSUE_TYPES, marks=pytest.mark.slow)],
)
def test_tasks_on_a_real_scan(weights: Path, engine: ResidentEngine, tmp_path: Path, task: str) -> None:
    source = Path(os.environ["HEIMDALLR_TEST_DATA"]) / "totalsegmentator" / "example_ct_sm.nii.gz"
    case = Case(task, Geometry("real", (0, 0, 0), (0, 0, 0), ""))
    run_upstream(weights, (case,), tmp_path, images={case.name: nib.load(source)})
    assert_identical(engine, case, tmp_path)
