from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.errors import ModalityNotSupported, NotFound
from heimdallr_ray.segmentation.planner import (
    BRAIN_ML,
    DEFAULT_WANTED,
    LUMBAR_ML,
    MR_WANTED,
    Extra,
    LeftOut,
    LeftOutCode,
    Need,
    first_pass,
    in_order,
    plan,
    wanted_for,
)
from heimdallr_ray.segmentation.tasks import (
    CEREBRAL_BLEED,
    FIRST_PASS,
    TASKS,
    TISSUE_TYPES,
    TOTAL_FAST,
    TOTAL_MR_FAST,
)

ALL = tuple(TASKS)
HEAD = {"brain": 1300.0, "skull": 600.0}
ABDOMEN = {"liver": 1500.0, "vertebrae_L3": 50.0, "vertebrae_L2": 48.0}
CHEST = {"lung_upper_lobe_left": 1200.0, "vertebrae_T6": 40.0, "brain": 6.0}
CODE = LeftOutCode
MUSCLE = Need("muscle", (("tissue_types", "total"), ("abdominal_muscles", "trunk_cavities", "total")))


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
    fine = ("total_mr",)
    assert first_pass("MR", fine) is None and plan({}, "MR", fine, fine).run == fine
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


@pytest.mark.parametrize(
    ("licensed", "available", "run", "left_out"),
    [
        (ALL, ALL, (TOTAL_FAST, TISSUE_TYPES), {}),
        (
            (),
            ALL,
            (TOTAL_FAST, "abdominal_muscles", "trunk_cavities"),
            {TISSUE_TYPES: CODE.LICENCE},
        ),
        (
            (),
            tuple(name for name in ALL if name != "trunk_cavities"),
            (TOTAL_FAST,),
            {TISSUE_TYPES: CODE.LICENCE, "trunk_cavities": CODE.WEIGHTS_MISSING},
        ),
    ],
    ids=["the preferred set", "the next one, all of it", "none: what the preferred set still has"],
)
def test_of_a_need_the_first_set_that_can_run_is_taken(
    licensed: tuple[str, ...], available: tuple[str, ...], run: tuple[str, ...], left_out: dict[str, LeftOutCode]
) -> None:
    made = plan(ABDOMEN, "CT", available, licensed, (MUSCLE,))
    assert made.run == run
    assert {one.task: one.code for one in made.left_out} == left_out


def test_the_fine_parts_stand_in_for_the_3_mm_model_and_the_plan_says_so() -> None:
    anatomy = Need("organs", (("total",),))
    made = plan(ABDOMEN, "CT", (FIRST_PASS, "total"), (), (anatomy,))
    assert made.run == ("total",)
    assert [(one.task, one.code) for one in made.left_out] == [(TOTAL_FAST, CODE.WEIGHTS_MISSING)]
    neither = plan(ABDOMEN, "CT", (FIRST_PASS,), (), (anatomy,))
    assert neither.run == ()
    assert [one.task for one in neither.left_out] == [TOTAL_FAST]


def test_tasks_that_several_needs_share_run_once() -> None:
    bleed = Need("bleed", (("cerebral_bleed", "total"),))
    made = plan({**HEAD, **ABDOMEN}, "CT", ALL, ALL, (bleed, MUSCLE, "total_fast"))
    assert made.run == (TOTAL_FAST, CEREBRAL_BLEED, TISSUE_TYPES)
    assert made.left_out == ()


def test_what_is_not_asked_for_does_not_run() -> None:
    assert plan({**HEAD, **ABDOMEN}, "CT", ALL, ALL, (Need("organs", (("total",),)),)).run == (TOTAL_FAST,)
    assert plan(HEAD, "CT", ALL, ALL, ()).run == ()


def test_coarse_runs_before_fine_and_five_models_last() -> None:
    mixed = ("total", CEREBRAL_BLEED, TISSUE_TYPES, TOTAL_FAST, FIRST_PASS, CEREBRAL_BLEED)
    assert in_order(mixed) == (FIRST_PASS, TOTAL_FAST, CEREBRAL_BLEED, TISSUE_TYPES, "total")


@pytest.mark.parametrize(
    ("task", "found", "runs"),
    [
        ("lung_nodules", CHEST, True),
        ("lung_nodules", HEAD, False),
        ("liver_segments", ABDOMEN, True),
        ("liver_segments", CHEST, False),
        ("kidney_cysts", ABDOMEN, False),
        ("kidney_cysts", {**ABDOMEN, "kidney_left": 140.0}, True),
        ("ventricle_parts", CHEST, False),
        ("abdominal_muscles", CHEST, False),
        ("abdominal_muscles", ABDOMEN, True),
        ("trunk_cavities", CHEST, True),
    ],
)
def test_a_task_needs_what_it_looks_at(task: str, found: dict[str, float], runs: bool) -> None:
    made = plan(found, "CT", ALL, ALL, (task,))
    assert (made.run == (task,)) is runs
    assert [one.code for one in made.left_out] == ([] if runs else [CODE.ANATOMY_ABSENT])


def test_mr_without_measurements_is_offered_its_anatomy() -> None:
    assert wanted_for("MR", ()) == MR_WANTED
    assert wanted_for("CT", ()) == ()
    assert wanted_for("CT", (MUSCLE,)) == (MUSCLE,)


def test_a_need_of_an_unknown_label_map_is_refused() -> None:
    with pytest.raises(NotFound):
        plan(ABDOMEN, "CT", ALL, ALL, (Need("x", (("heart_of_gold",),)),))


@pytest.mark.parametrize("folder", [None, Path("/srv/other weights")])
def test_what_is_missing_is_named_with_the_command_that_fills_this_registry(folder: Path | None) -> None:
    made = plan(ABDOMEN, "CT", (FIRST_PASS,), ALL, ("total",), registry=folder)
    (left,) = made.left_out
    place = "" if folder is None else " --into '/srv/other weights'"
    assert left.detail.endswith(f"; run: heimdallr models fetch total{place}")


def test_a_task_whose_model_cannot_be_built_says_so_and_another_stands_in() -> None:
    aside = {TOTAL_FAST: "Dataset297 is set aside"}
    available = tuple(name for name in ALL if name != TOTAL_FAST)
    made = plan(ABDOMEN, "CT", available, ALL, (Need("organs", (("total",),)),), set_aside=aside)
    assert made.run == ("total",)
    assert [(left.task, left.code, left.detail) for left in made.left_out] == [
        (TOTAL_FAST, LeftOutCode.MODEL_UNUSABLE, "Dataset297 is set aside")
    ]


def test_what_nothing_is_made_from_is_told_apart() -> None:
    made = plan(
        {**HEAD, **ABDOMEN}, "CT", ALL, ALL, (MUSCLE, Extra("lung_vessels"), Extra(TISSUE_TYPES), Extra("breasts"))
    )
    assert made.run == (TOTAL_FAST, TISSUE_TYPES, "breasts")
    assert made.extra == ("breasts",)
    assert {left.task: left.code for left in made.left_out} == {"lung_vessels": CODE.ANATOMY_ABSENT}
    assert plan(HEAD, "CT", ALL, ALL, ("breasts",)).extra == ()


def test_an_extra_is_checked_like_any_task() -> None:
    made = plan(ABDOMEN, "CT", (TOTAL_FAST, TISSUE_TYPES), (TOTAL_FAST,), tuple(map(Extra, EXTRAS)))
    assert made.run == ()
    assert {left.task: left.code for left in made.left_out} == {
        "total_mr": CODE.MODALITY,
        "cerebral_bleed": CODE.ANATOMY_ABSENT,
        "breasts": CODE.WEIGHTS_MISSING,
        TISSUE_TYPES: CODE.LICENCE,
    }


EXTRAS = ("total_mr", "cerebral_bleed", "breasts", TISSUE_TYPES)


def test_a_plan_without_what_failed_says_so() -> None:
    made = plan(ABDOMEN, "CT", ALL, ALL, (MUSCLE, Extra("breasts"), Extra("body")))
    failed = LeftOut("breasts", CODE.FAILED, "broken: it ended")
    after = made.without([failed])
    assert after.run == tuple(name for name in made.run if name != "breasts")
    assert after.extra == ("body",)
    assert after.left_out == (*made.left_out, failed)
    assert made.without([]) == made


def test_what_nothing_is_made_from_takes_no_time_from_what_is_measured() -> None:
    made = plan(ABDOMEN, "CT", ALL, ALL, (Extra("breasts"), Extra("body"), "total", Extra(TOTAL_FAST), MUSCLE))
    assert made.run == (TOTAL_FAST, TISSUE_TYPES, "total", "breasts", "body")
    assert made.extra == ("breasts", "body")


@pytest.mark.parametrize(("code", "told"), [("out_of_time", CODE.OUT_OF_TIME), ("broken", CODE.FAILED)])
def test_an_error_with_a_code_of_its_own_keeps_it(code: str, told: LeftOutCode) -> None:
    assert LeftOutCode.of(code) is told
