"""Networks that run out of memory: what is tried next gives the labels, is recorded, and ends by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import OutOfMemory, OutOfTime
from heimdallr_ray.metrics.catalogue import Metric
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, Reading, measured
from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.pipelines.describe import memory_steps
from heimdallr_ray.pipelines.steps import measure
from heimdallr_ray.segmentation.deadline import STUDY_S, Deadline
from heimdallr_ray.segmentation.engine import MemoryStep
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import memory
from heimdallr_ray.segmentation.totalseg.checkpoint import read_checkpoint
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.memory import Road
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(600)

MODEL = "totalsegmentator/298"
AFFINE = np.diag([-6.0, -6.0, 6.0, 1.0])
SHAPE = (40, 36, 66)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), (FIRST_PASS,))


@pytest.fixture
def engine(registry: Path) -> ResidentEngine:
    return ResidentEngine(registry, threads=1)


@pytest.fixture(scope="module")
def image() -> Volume:
    return Volume(identity_nets.body(SHAPE, AFFINE), AFFINE, VolumeSource("CT", synthetic=True))


@pytest.fixture(scope="module")
def whole(registry: Path, image: Volume) -> np.ndarray:
    return ResidentEngine(registry, threads=1).segment(image, FIRST_PASS).label_map.array


@pytest.fixture(scope="module")
def in_parts(registry: Path, image: Volume) -> np.ndarray:
    return ResidentEngine(registry, threads=1, force_split=True).segment(image, FIRST_PASS).label_map.array


def fails(monkeypatch: pytest.MonkeyPatch, times: int, error: Callable[[], Exception]) -> list[int]:
    """The first `times` runs of any network end at their second tile, in `error`."""
    tiles = [0]
    failed: list[int] = []
    build = ResidentModel.__init__

    def after(_network: torch.nn.Module, _inputs: object) -> None:
        tiles[0] += 1
        if len(failed) < times and tiles[0] >= 2:
            tiles[0] = 0
            failed.append(1)
            raise error()

    def built(self: ResidentModel, *args: object) -> None:
        build(self, *args)  # type: ignore[arg-type]
        self.network.register_forward_pre_hook(after)

    monkeypatch.setattr(ResidentModel, "__init__", built)
    return failed


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """All roads are taken, with the host in the role of the device."""
    order = memory.roads
    monkeypatch.setattr(memory, "roads", lambda *, accelerated, splittable: order(accelerated=True, splittable=True))


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: MemoryError("host"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


def test_where_all_fits_there_are_no_steps(engine: ResidentEngine, image: Volume) -> None:
    assert engine.segment(image, FIRST_PASS).steps == ()


@pytest.mark.parametrize("error", ERRORS)
def test_a_host_that_is_full_takes_the_image_in_parts(
    engine: ResidentEngine,
    image: Volume,
    in_parts: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Exception],
) -> None:
    failed = fails(monkeypatch, 1, error)
    made = engine.segment(image, FIRST_PASS)
    assert failed
    assert made.steps == (MemoryStep(MODEL, Road.WHOLE, Road.CPU_PARTS),)
    np.testing.assert_array_equal(made.label_map.array, in_parts)


@pytest.mark.parametrize("failures", range(6))
def test_every_road_of_an_accelerator_gives_the_labels(
    engine: ResidentEngine,
    image: Volume,
    whole: np.ndarray,
    in_parts: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
) -> None:
    as_on_an_accelerator(monkeypatch)
    fails(monkeypatch, failures, ERRORS[0])
    made = engine.segment(image, FIRST_PASS)
    order = tuple(Road)
    assert [(step.failed, step.taken) for step in made.steps] == [
        (order[number], order[number + 1]) for number in range(failures)
    ]
    np.testing.assert_array_equal(made.label_map.array, in_parts if order[failures].in_parts else whole)
    assert whole.any()


def test_a_run_tells_of_its_first_pass_too(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, 1, ERRORS[1])
    run = engine.run_plan(image)
    assert run.memory_steps == {FIRST_PASS: (MemoryStep(MODEL, Road.WHOLE, Road.CPU_PARTS),)}
    assert memory_steps(run) == ({"task": FIRST_PASS, "model_id": MODEL, "failed": "whole", "taken": "cpu_parts"},)
    assert engine.run_plan(image).memory_steps == {}


def test_work_that_nobody_waits_for_tries_one_road_and_leaves_the_models_where_they_are(
    registry: Path, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_an_accelerator(monkeypatch)
    failed = fails(monkeypatch, 99, ERRORS[0])
    engine = ResidentEngine(registry, threads=1, lower_resolution=True)
    with pytest.raises(OutOfMemory, match=f"tried {Road.WHOLE}$"):
        engine.run_plan(image, (FIRST_PASS,), deadline=Deadline(gives_way=lambda: False))
    assert len(failed) == 1


def test_what_fits_nowhere_fails_by_name_and_the_next_image_is_served(
    engine: ResidentEngine, image: Volume, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_an_accelerator(monkeypatch)
    fails(monkeypatch, 6, ERRORS[0])
    with pytest.raises(OutOfMemory, match=f"{MODEL} did not fit: tried whole, host_sums, planes, parts, cpu, cpu_part"):
        engine.segment(image, FIRST_PASS)
    made = engine.segment(image, FIRST_PASS)
    assert made.steps == ()
    np.testing.assert_array_equal(made.label_map.array, whole)


def test_an_error_that_is_no_want_of_memory_is_not_tried_again(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = fails(monkeypatch, 9, lambda: RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        engine.segment(image, FIRST_PASS)
    assert len(failed) == 1


def test_a_model_that_does_not_fit_on_its_device_is_refused_by_name(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.nn.Module, *_: object) -> torch.nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(OutOfMemory, match=MODEL):
        engine.segment(image, FIRST_PASS)


def no_room(*_: object, **__: object) -> object:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("where", ["torch.load", "heimdallr_ray.segmentation.totalseg.network._trainer_class"])
def test_a_host_that_is_full_while_a_model_loads_is_not_called_damage(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, no_room)
    with pytest.raises(OutOfMemory, match=MODEL):
        engine.segment(image, FIRST_PASS)


def test_a_host_that_is_full_while_a_checkpoint_is_imported_is_not_a_bad_archive(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (registry / TASKS[FIRST_PASS].models[0].checkpoint).read_bytes()
    monkeypatch.setattr("torch.load", no_room)
    with pytest.raises(OutOfMemory, match="checkpoint"):
        read_checkpoint(content, "checkpoint_final.pth")


def test_an_image_that_is_too_large_for_the_host_is_out_of_memory_too(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("heimdallr_ray.segmentation.totalseg.study.Study.image", full)
    with pytest.raises(OutOfMemory, match="host"):
        engine.segment(image, FIRST_PASS)


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """`total` at 1.5 mm fits nowhere; a small row of its name spares the test five models at 1.5 mm."""
    rows = {**TASKS, "total": replace(TASKS["total"], models=TASKS["total"].models[:1])}
    monkeypatch.setattr("heimdallr_ray.segmentation.tasks.TASKS", rows)
    predict = ResidentModel.predict

    def full(self: ResidentModel, *args: object) -> object:
        if self.spec.dataset_id == 291:
            raise OutOfMemory("full")
        return predict(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ResidentModel, "predict", full)


@pytest.fixture(scope="module")
def two_resolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    identity_nets.write_model(folder, TASKS["total"], TASKS["total"].models[0])
    return identity_nets.write_registry(folder, (FIRST_PASS, TOTAL_FAST))


@pytest.mark.usefixtures("too_large")
def test_a_lower_resolution_stands_in_under_its_own_name_where_the_site_says_so(two_resolutions: Path) -> None:
    image = Volume(identity_nets.body((24, 22, 20), AFFINE), AFFINE, VolumeSource("CT", synthetic=True))
    engine = ResidentEngine(two_resolutions, threads=1, lower_resolution=True)
    made = engine.segment(image, "total")
    assert (made.task, made.model.task, made.model.model_id) == ("total", "total", "totalsegmentator/297")
    assert made.steps == (MemoryStep("totalsegmentator/291", "every_road", TOTAL_FAST),)
    np.testing.assert_array_equal(made.label_map.array, engine.segment(image, TOTAL_FAST).label_map.array)


@pytest.mark.usefixtures("too_large")
def test_what_needs_a_finer_model_refuses_the_one_that_stands_in_and_the_others_keep_their_numbers(
    two_resolutions: Path,
) -> None:
    image = Volume(identity_nets.body((24, 22, 20), AFFINE), AFFINE, VolumeSource("CT", synthetic=True))
    run = ResidentEngine(two_resolutions, threads=1, lower_resolution=True).run_plan(image, ("total",))

    def counting(quantity: Quantity) -> Metric:
        def count(context: MetricContext) -> tuple[Measurement, ...]:
            return (measured(context, quantity, lambda: Reading(float(context.label_map("total").array.any()), 1)),)

        return Metric(count, (quantity,))

    fine = Quantity("aortic_diameter", 1, "mm", ("total",), coarsest_mm=1.5)
    allowed = Quantity("anything_there", 1, "1", ("total",))
    refused, kept = measure(image, run, (counting(fine), counting(allowed)))
    assert (refused.value, refused.reasons) == (None, ("resolution_too_low",))
    assert refused.evidence == {"label_map": "total", "model_spacing_mm": 3.0, "coarsest_mm": 1.5}
    assert (kept.value, kept.status, kept.reasons) == (1.0, Status.OK, ())
    assert kept.provenance.model_id == "totalsegmentator/297"
    # today's catalogue loses nothing by it
    codes = {code for one in measure(image, run) for code in one.reasons}
    assert "resolution_too_low" not in codes


@pytest.mark.usefixtures("too_large")
def test_otherwise_no_resolution_is_lowered(two_resolutions: Path) -> None:
    image = Volume(identity_nets.body((24, 22, 20), AFFINE), AFFINE, VolumeSource("CT", synthetic=True))
    with pytest.raises(OutOfMemory, match="291"):
        ResidentEngine(two_resolutions, threads=1).segment(image, "total")


def test_a_network_that_is_slower_than_its_study_may_take_ends_between_two_tiles_and_the_next_study_is_done(
    engine: ResidentEngine, image: Volume, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile takes more than all that the study has: the second is not begun."""
    at, tiles = [0.0], [0]
    build = ResidentModel.__init__

    def slow(_network: torch.nn.Module, _inputs: object) -> None:
        at[0] += STUDY_S + 1.0
        tiles[0] += 1

    def built(self: ResidentModel, *args: object) -> None:
        build(self, *args)  # type: ignore[arg-type]
        self.network.register_forward_pre_hook(slow)

    monkeypatch.setattr(ResidentModel, "__init__", built)
    engine.warm_up()
    warm, at[0] = tiles[0], 0.0
    with pytest.raises(OutOfTime, match=f"{MODEL}"):
        engine.run_plan(image, deadline=Deadline(STUDY_S, lambda: at[0]))
    assert tiles[0] - warm == 1
    np.testing.assert_array_equal(engine.segment(image, FIRST_PASS).label_map.array, whole)
