"""What a site may ask for is known before its models are loaded."""

from __future__ import annotations

import pytest

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.metrics.catalogue import CATALOGUE
from heimdallr_ray.pipelines.steps import ever_wanted
from heimdallr_ray.segmentation.asked import askable, extras
from heimdallr_ray.segmentation.planner import Extra, Need, rows_of
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TASKS, TISSUE_TYPES, TOTAL_FAST, TOTAL_MR_FAST
from heimdallr_ray.segmentation.totalseg.memory import COARSER

ALL = tuple(TASKS)


def test_names_are_those_of_the_table() -> None:
    assert extras(("breasts", "lung_vessels", "breasts")) == (Extra("breasts"), Extra("lung_vessels"))
    with pytest.raises(BadSetting, match=r"segmentations: there is no 'brests', 'Total'; known are .*breasts"):
        extras(("brests", "total", "Total"))


def test_of_rows_of_one_name_only_the_one_that_would_run_is_loaded() -> None:
    liver = Need("liver_volume", (("total",),))
    assert askable((liver,), ALL) == (FIRST_PASS, TOTAL_FAST)
    assert askable((liver,), tuple(name for name in ALL if name != TOTAL_FAST)) == (FIRST_PASS, "total")


def test_each_alternative_of_a_need_may_be_asked_for() -> None:
    muscle = Need("muscle", (("tissue_types", "total"), ("abdominal_muscles", "total")))
    assert {TOTAL_FAST, TISSUE_TYPES, "abdominal_muscles"} <= set(askable((muscle,), ALL))


def test_what_a_task_is_cropped_by_comes_along() -> None:
    for name, row in TASKS.items():
        crops = {row.crop.task} if row.crop else set()
        assert crops | set(row.needs) | {name} <= set(askable((Extra(name),), ALL)), name


def test_what_cannot_run_here_is_not_loaded() -> None:
    assert askable((Extra(CEREBRAL_BLEED),), (FIRST_PASS,)) == (FIRST_PASS,)
    assert askable((Extra(TOTAL_MR_FAST),), ALL) == (TOTAL_MR_FAST,)


def test_a_site_that_asks_for_nothing_special_may_need_what_its_numbers_and_ties_are_made_from() -> None:
    assert set(askable(ever_wanted((), ()), ALL)) == {
        FIRST_PASS,
        TOTAL_FAST,
        CEREBRAL_BLEED,
        TISSUE_TYPES,
        TOTAL_MR_FAST,
    }
    bleed = askable(ever_wanted(("intracranial_hemorrhage_volume",), ("lung_vessels",)), ALL)
    assert TISSUE_TYPES not in bleed
    assert {CEREBRAL_BLEED, "lung_vessels"} <= set(bleed)


def test_a_name_that_is_none_stops_the_start() -> None:
    with pytest.raises(BadSetting, match="segmentations"):
        ever_wanted((), ("liver",))
    with pytest.raises(BadSetting, match="measurements"):
        ever_wanted(("liver",), ())


def test_no_map_that_is_measured_is_coarser_than_every_quantity_allows() -> None:
    """A stand-in is one of these rows too, so today's quantities lose no number by a lower resolution."""
    coarsest_mm = {
        label_map: max((max(TASKS[row].spacing_mm or (0.0,)) for row in rows_of(label_map)), default=0.0)
        for label_map in ("total", "total_mr")
    }
    assert coarsest_mm == {"total": 3.0, "total_mr": 3.0}
    assert {max(TASKS[row].spacing_mm or (0.0,)) for row in COARSER.values()} == {3.0}
    quantities = [one for metric in CATALOGUE for one in metric.quantities]
    rows = {one.id: [row for label_map in one.tasks for row in rows_of(label_map)] for one in quantities}
    for one in quantities:
        spacings = [max(TASKS[row].spacing_mm or (0.0,)) for row in rows[one.id]]
        assert max(spacings) <= one.coarsest_mm, one.id
