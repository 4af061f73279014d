from __future__ import annotations

import pytest

from heimdallr_ray.errors import ModalityNotSupported, NotFound
from heimdallr_ray.segmentation.tasks import (
    BRAIN_ML,
    CEREBRAL_BLEED,
    DEFAULT_WANTED,
    FIRST_PASS,
    LUMBAR_ML,
    TASKS,
    TISSUE_TYPES,
    TOTAL_FAST,
    TOTAL_MR_FAST,
    LeftOutCode,
    first_pass,
    plan,
    task_spec,
)

ALL = tuple(TASKS)
HEAD = {"brain": 1300.0, "skull": 600.0}
ABDOMEN = {"liver": 1500.0, "vertebrae_L3": 50.0, "vertebrae_L2": 48.0}
CHEST = {"lung_upper_lobe_left": 1200.0, "vertebrae_T6": 40.0, "brain": 6.0}
CODE = LeftOutCode


@pytest.mark.parametrize(
    ("found", "run"),
    [
        (HEAD, (TOTAL_FAST, CEREBRAL_BLEED)),
        (ABDOMEN, (TOTAL_FAST, TISSUE_TYPES)),
        (CHEST, (TOTAL_FAST,)),
        ({**HEAD, **ABDOMEN}, (TOTAL_FAST, CEREBRAL_BLEED, TISSUE_TYPES)),
        ({}, ()),
    ],
    ids=["head", "abdomen", "chest", "whole body", "nothing known"],
)
def test_anatomy_decides(found: dict[str, float], run: tuple[str, ...]) -> None:
    made = plan(found, "CT", ALL, ALL)
    assert made.run == run
    assert {left.task: left.code for left in made.left_out} == {
        name: CODE.ANATOMY_ABSENT for name in DEFAULT_WANTED if name not in run
    }


@pytest.mark.parametrize(
    ("structure", "task", "bar_ml"), [("brain", CEREBRAL_BLEED, BRAIN_ML), ("vertebrae_L3", TISSUE_TYPES, LUMBAR_ML)]
)
def test_thresholds_are_inclusive(structure: str, task: str, bar_ml: float) -> None:
    assert task in plan({structure: bar_ml}, "CT", ALL, ALL).run
    assert task not in plan({structure: bar_ml - 0.1}, "CT", ALL, ALL).run


def test_without_a_licence_only_the_licensed_task_is_left_out() -> None:
    made = plan(ABDOMEN, "CT", ALL, licensed=())
    assert made.run == (TOTAL_FAST,)
    assert {left.task: left.code for left in made.left_out}[TISSUE_TYPES] == CODE.LICENCE


def test_missing_weights_name_their_folders() -> None:
    made = plan(HEAD, "CT", (FIRST_PASS, TOTAL_FAST), ALL)
    left = {left.task: left for left in made.left_out}[CEREBRAL_BLEED]
    assert left.code == CODE.WEIGHTS_MISSING
    assert "Dataset150_icb_v0" in left.detail and "Dataset298_TotalSegmentator_total_6mm_1559subj" in left.detail
    assert left.detail.endswith("run: heimdallr models fetch cerebral_bleed")


def test_mr_runs_its_own_model_or_is_refused() -> None:
    assert plan({}, "MR", ALL, ALL).run == (TOTAL_MR_FAST,)
    assert first_pass("MR", ALL) is None
    with pytest.raises(ModalityNotSupported):
        plan({}, "MR", (FIRST_PASS, TOTAL_FAST), ALL)


def test_a_ct_task_asked_for_on_mr_is_left_out_by_name() -> None:
    made = plan({}, "MR", ALL, ALL, wanted=(TISSUE_TYPES, TOTAL_MR_FAST))
    assert made.run == (TOTAL_MR_FAST,)
    assert [left.code for left in made.left_out] == [CODE.MODALITY]


@pytest.mark.parametrize("modality", ["PT", "US", ""])
def test_other_modalities_are_refused(modality: str) -> None:
    with pytest.raises(ModalityNotSupported):
        plan(ABDOMEN, modality, ALL, ALL)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(NotFound):
        task_spec("heart_of_gold")
