"""A replica whose models may take so much and no more."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import ModelOverBudget
from heimdallr_ray.segmentation import tasks
from heimdallr_ray.segmentation.engine import MemoryStep
from heimdallr_ray.segmentation.planner import Extra, LeftOutCode, Need
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import budget as budgets
from heimdallr_ray.segmentation.totalseg import store
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(300)
AFFINE = np.diag([-6.0, -6.0, 6.0, 1.0])
TASKS = (FIRST_PASS, TOTAL_FAST, "trunk_cavities")
KIB = 1024


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), TASKS)


@pytest.fixture(scope="module")
def image() -> Volume:
    return Volume(identity_nets.body((24, 22, 20), AFFINE), AFFINE, VolumeSource("CT", synthetic=True))


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of these tests are small, so the budget is told in KiB."""
    monkeypatch.setattr(store, "MIB", KIB)


def loaded(engine: ResidentEngine) -> list[str]:
    return [model.model_id.rpartition("/")[2] for model in engine.info().models]


def needs_kib(registry: Path) -> dict[str, int]:
    engine = ResidentEngine(registry, threads=1)
    engine.warm_up()
    return {name.rpartition("/")[2]: math.ceil(mib * KIB) for name, mib in engine.info().needs_mib.items()}


def test_what_each_model_needs_is_measured_at_the_start(registry: Path) -> None:
    engine = ResidentEngine(registry, threads=1)
    engine.warm_up()
    info = engine.info()
    assert sorted(info.needs_mib) == [f"totalsegmentator/{number}" for number in (297, 298, 343)]
    # one tile of 24 x 40 x 48 voxels, 118 float32 logits for each, and what leads to them
    least = 118 * 24 * 40 * 48 * 4 / (1 << 20)
    assert least < info.needs_mib["totalsegmentator/298"] < 1.5 * least
    assert (info.budget_mib, info.notes) == (0, ())


@pytest.mark.usefixtures("small_units")
def test_models_beyond_the_budget_take_turns_and_give_the_same_labels(registry: Path, image: Volume) -> None:
    plain = ResidentEngine(registry, threads=1)
    largest = max(needs_kib(registry).values())
    engine = ResidentEngine(registry, threads=1, memory_mib=largest)
    engine.warm_up()
    assert len(loaded(engine)) == 1
    for task in (FIRST_PASS, TOTAL_FAST, FIRST_PASS):
        again = Volume(image.array, AFFINE, image.source)
        made = engine.segment(again, task).label_map
        np.testing.assert_array_equal(made.array, plain.segment(again, task).label_map.array)
    assert loaded(engine) == ["298"]
    assert engine.info().notes == ()


@pytest.mark.usefixtures("small_units")
def test_a_model_that_does_not_fit_alone_is_refused_by_name_and_the_others_serve(
    tmp_path: Path, image: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    folder = identity_nets.write_registry(tmp_path / "weights", (TOTAL_FAST, "trunk_cavities"))
    needs = needs_kib(folder)
    assert needs["343"] < needs["297"]
    engine = ResidentEngine(folder, threads=1, memory_mib=needs["343"])
    engine.warm_up()
    assert loaded(engine) == ["343"]
    assert [note.partition(" needs ")[0] for note in engine.info().notes] == ["totalsegmentator/297"]
    assert "model.does_not_fit" in caplog.messages
    with pytest.raises(ModelOverBudget, match=r"totalsegmentator/297 needs \d+ MiB, the budget is \d+ MiB"):
        engine.segment(image, TOTAL_FAST)
    assert engine.segment(image, "trunk_cavities").label_map.array.shape == image.shape


@pytest.mark.usefixtures("small_units")
def test_a_replica_whose_first_pass_is_refused_is_not_ready(registry: Path) -> None:
    needs = needs_kib(registry)
    engine = ResidentEngine(registry, threads=1, memory_mib=needs["343"])
    with pytest.raises(ModelOverBudget, match=r"totalsegmentator/298 needs .* without the first pass"):
        engine.warm_up()


@pytest.mark.usefixtures("small_units")
def test_a_study_goes_on_without_the_task_whose_model_is_refused(tmp_path: Path, image: Volume) -> None:
    # the largest of the three is the one that is refused
    folder = identity_nets.write_registry(
        tmp_path / "weights", (FIRST_PASS, TOTAL_FAST, "trunk_cavities"), large=(TOTAL_FAST,)
    )
    needs = needs_kib(folder)
    assert max(needs["298"], needs["343"]) < needs["297"]
    engine = ResidentEngine(folder, threads=1, memory_mib=needs["297"] - 1)
    engine.warm_up()
    assert engine.available_tasks == (FIRST_PASS, "trunk_cavities")
    told = engine.info()
    assert list(told.over_budget) == [TOTAL_FAST]
    assert f"set HEIMDALLR_SEGMENTER_MEMORY_MIB to {needs['297']} or more, or to 0" in told.over_budget[TOTAL_FAST]
    run = engine.run_plan(image, (Need("liver_volume", (("total",),)), "trunk_cavities"))
    assert tuple(run.segmentations) == ("trunk_cavities",)
    assert [(one.task, one.code) for one in run.plan.left_out] == [(TOTAL_FAST, LeftOutCode.OVER_MEMORY_BUDGET)]
    assert run.plan.left_out[0].detail == told.over_budget[TOTAL_FAST]
    # and what the words say helps
    enough = ResidentEngine(folder, threads=1, memory_mib=needs["297"])
    enough.warm_up()
    assert enough.info().over_budget == {} and TOTAL_FAST in enough.available_tasks


@pytest.fixture
def fine_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`total` at 1.5 mm has one model here, which spares the test four more."""
    rows = {**tasks.TASKS, "total": replace(tasks.TASKS["total"], models=tasks.TASKS["total"].models[:1])}
    monkeypatch.setattr("heimdallr_ray.segmentation.tasks.TASKS", rows)


def two_resolutions(folder: Path) -> Path:
    identity_nets.write_model(folder, tasks.TASKS["total"], tasks.TASKS["total"].models[0])
    return identity_nets.write_registry(folder, (FIRST_PASS, TOTAL_FAST), large=(TOTAL_FAST,))


@pytest.mark.usefixtures("small_units", "fine_is_small")
def test_where_the_3_mm_model_is_refused_the_fine_one_is_loaded_and_serves(tmp_path: Path, image: Volume) -> None:
    folder = two_resolutions(tmp_path)
    needs = needs_kib(folder)
    # the first pass has to fit beside it, so the 3 mm model is the one that needs most
    assert max(needs["291"], needs["298"]) < needs["297"]
    engine = ResidentEngine(folder, threads=1, memory_mib=needs["297"] - 1)
    wanted = (Need("liver_volume", (("total",),)),)
    engine.warm_up(wanted)
    assert "291" in {name.rpartition("/")[2] for name in engine.info().needs_mib}, "it is met by the first study"
    run = engine.run_plan(image, wanted)
    assert run.segmentations["total"].model.model_id == "totalsegmentator/291"
    assert [(one.task, one.code) for one in run.plan.left_out] == [(TOTAL_FAST, LeftOutCode.OVER_MEMORY_BUDGET)]


@pytest.mark.usefixtures("small_units", "fine_is_small")
def test_a_lower_resolution_stands_in_for_a_refused_model_where_the_site_says_so(
    tmp_path: Path, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_resolutions(tmp_path)
    admit = store.ModelStore._admit  # pyright: ignore[reportPrivateUsage]

    def larger(self: store.ModelStore, model: ResidentModel) -> None:
        # the small networks of both resolutions need nearly the same; the fine one has to need more
        if model.spec.dataset_id == 291:
            model.activation_bytes = 64 * budget
            self._needs[291] = budgets.Need(model.weights_bytes, model.activation_bytes)  # pyright: ignore[reportPrivateUsage]
        admit(self, model)

    budget = 2 * max(needs_kib(folder).values()) * KIB
    monkeypatch.setattr(store.ModelStore, "_admit", larger)
    for allowed in (False, True):
        engine = ResidentEngine(folder, threads=1, memory_mib=budget // KIB, lower_resolution=allowed)
        engine.warm_up((Extra("total"),))
        info = engine.info()
        assert ("total" in info.over_budget, "total" in engine.available_tasks) == (not allowed, allowed)
        assert ("297" in loaded(engine)) is allowed
        run = engine.run_plan(image, (Extra("total"),))
        if not allowed:
            assert [one.code for one in run.plan.left_out] == [LeftOutCode.OVER_MEMORY_BUDGET]
            continue
        made = run.segmentations["total"]
        assert made.model.model_id == "totalsegmentator/297" and made.model.spacing_mm == 3.0
        assert made.steps == (MemoryStep("totalsegmentator/291", "memory_budget", TOTAL_FAST),)
