"""A replica whose models may take so much and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import ModelOverBudget
from heimdallr_ray.segmentation.planner import LeftOutCode
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import store
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
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
    return {name.rpartition("/")[2]: int(mib * KIB) + 1 for name, mib in engine.info().needs_mib.items()}


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
    assert "model does not fit" in caplog.messages
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
    folder = identity_nets.write_registry(tmp_path / "weights", (FIRST_PASS, "trunk_cavities", CEREBRAL_BLEED))
    needs = needs_kib(folder)
    others = {name: need for name, need in needs.items() if name != "298"}
    assert max(others.values()) < needs["298"]
    engine = ResidentEngine(folder, threads=1, memory_mib=needs["298"])
    engine.warm_up()
    run = engine.run_plan(image, ("trunk_cavities",))
    assert "trunk_cavities" in run.segmentations
    # what is refused is a property of the store; the plan of a study reads it from there
    engine._store._refused[343] = "totalsegmentator/343 needs 9 MiB, the budget is 8 MiB"  # pyright: ignore[reportPrivateUsage]
    run = engine.run_plan(image, ("trunk_cavities",))
    assert [(one.task, one.code) for one in run.plan.left_out] == [("trunk_cavities", LeftOutCode.OVER_MEMORY_BUDGET)]
    assert "budget" in run.plan.left_out[0].detail
