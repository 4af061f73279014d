"""Tasks outside the engine run in a child on verified weights: equal to upstream, offline, bounded, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import (
    Broken,
    LicenceRequired,
    MadeWay,
    OutOfMemory,
    OutOfTime,
    VertebraeJoined,
    WeightsMissing,
    WeightsTampered,
)
from heimdallr_ray.pipelines.describe import skipped_tasks
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.engine import MemoryStep, Timings
from heimdallr_ray.segmentation.planner import Extra, LeftOut, LeftOutCode, Need
from heimdallr_ray.segmentation.specs import UPSTREAM
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg import upstream, upstream_child
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.memory import Road
from heimdallr_ray.segmentation.totalseg.upstream import UpstreamRunner
from heimdallr_ray.segmentation.weights import write_manifest
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets
from tests.integration.segmentation.peer import Case, Geometry, assert_identical, run_upstream
from tests.support.bounds import within

pytestmark = pytest.mark.timeout(1200)

GRID = Geometry("PIR", (24, 20, 28), (2.6, 3.1, 2.6), "PIR")
PLAIN = "breasts"
CROPPED = "hip_implant"
LICENSED = "tissue_4_types"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # no bias: the rough model sees no hip
    return identity_nets.write_registry(
        tmp_path_factory.mktemp("weights"), ("total_fastest", PLAIN, CROPPED), brain_bias=-5.0
    )


def small() -> Volume:
    image = GRID.image("CT")
    return Volume(np.asanyarray(image.dataobj), np.asarray(image.affine), VolumeSource("CT", manifest_sha256="a" * 64))


def test_a_task_outside_is_upstreams_and_says_so(weights: Path, tmp_path: Path) -> None:
    assert TASKS[PLAIN].backend == UPSTREAM
    case = Case(PLAIN, GRID)
    run_upstream(weights, (case,), tmp_path)
    home = tmp_path / "engine"
    engine = ResidentEngine(weights, home_dir=home)
    made = assert_identical(engine, case, tmp_path)
    assert made.backend == made.model.backend == "upstream"
    assert made.model.model_id == "totalsegmentator/527" and made.model.synthetic
    assert made.timings.forward_s > 0
    assert [one.name for one in home.iterdir()] == ["config.json"], "a folder of a child was left"


def test_nothing_to_crop_to_gives_zeros_here_too(weights: Path) -> None:
    label_map = ResidentEngine(weights).segment(small(), CROPPED).label_map
    assert label_map.source_manifest_sha256 == "a" * 64
    assert not label_map.array.any() and label_map.array.shape == GRID.shape


def test_missing_and_changed_weights_never_reach_upstream(weights: Path, tmp_path: Path) -> None:
    engine = ResidentEngine(weights)
    assert "vertebrae_pp" not in engine.available_tasks and PLAIN in engine.available_tasks
    with pytest.raises(WeightsMissing, match="Dataset803_TotalSegmentator_vertebrae_inner_1559subj"):
        engine.segment(small(), "vertebrae_pp")
    own = identity_nets.write_registry(tmp_path, (PLAIN,))
    changed = ResidentEngine(own)
    checkpoint = own / TASKS[PLAIN].models[0].checkpoint
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsTampered):
        changed.segment(small(), PLAIN)


@pytest.fixture(scope="module")
def of_a_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a task that asks for a licence, not marked as made by us."""
    folder = Path(tmp_path_factory.mktemp("licensed"))
    identity_nets.write_registry(folder, (LICENSED,))
    for file in folder.glob("*/*/dataset.json"):
        file.write_text(file.read_text().replace("SYNTHETIC random weights", "tissue types"))
    write_manifest(folder, synthetic=False)
    return folder


def test_a_licensed_task_outside_needs_the_licence_as_well(of_a_site: Path) -> None:
    with pytest.raises(LicenceRequired):
        ResidentEngine(of_a_site).segment(small(), LICENSED)


@pytest.mark.slow
def test_a_licensed_task_outside_runs_where_the_site_has_the_licence(of_a_site: Path) -> None:
    made = ResidentEngine(of_a_site, licensed=True).segment(small(), LICENSED)
    assert made.backend == "upstream" and not made.model.synthetic and made.label_map.array.any()


def test_a_child_that_does_not_end_is_ended(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(weights, home_dir=tmp_path)
    monkeypatch.setattr(upstream, "LIMIT_S", 0.2)
    before = set(children())
    with pytest.raises(OutOfTime, match="did not end within"):
        engine.segment(small(), PLAIN)
    assert set(children()) <= before
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]


def test_a_child_that_nobody_waits_for_is_ended_once_other_work_waits(weights: Path, tmp_path: Path) -> None:
    engine = ResidentEngine(weights, home_dir=tmp_path)
    before, seen = set(children()), list[str]()

    def gives_way() -> bool:
        seen.extend(set(children()) - before)
        return bool(seen)

    with pytest.raises(MadeWay):
        engine.run_plan(small(), (PLAIN,), deadline=Deadline(gives_way=gives_way))
    assert seen and set(children()) <= before
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]


SLEEPER = """
import json, pathlib, sys, time
count = pathlib.Path({count!r})
with count.open("a") as stream:
    stream.write("started\\n")
time.sleep({sleep})
answer = {{"error": "OutOfMemoryError", "out_of_memory": True}}
(pathlib.Path(sys.argv[1]) / "answer.json").write_text(json.dumps(answer))
sys.exit(1)
"""


@pytest.fixture
def sleeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Callable[[], int]]:
    """Children of this test sleep and then say that memory ran out; tells how many were started."""

    def sleep(seconds: float) -> Callable[[], int]:
        count, folder = tmp_path / "started", tmp_path / "modules"
        folder.mkdir()
        (folder / "sleeping_child.py").write_text(SLEEPER.format(count=str(count), sleep=seconds))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(upstream_child, "MODULE", "sleeping_child")
        return lambda: len(count.read_text().splitlines()) if count.exists() else 0

    return sleep


def test_all_children_of_a_study_share_one_deadline(
    weights: Path, monkeypatch: pytest.MonkeyPatch, sleeping: Callable[[float], Callable[[], int]]
) -> None:
    engine, image = ResidentEngine(weights, threads=1), small()
    earlier = engine.run_plan(image, ("total_fastest",))
    started = sleeping(2.0)
    # three roads, as on an accelerator: on the device, there again without the models of this process, on the host
    monkeypatch.setattr(engine, "_device", torch.device("cuda"))
    began = time.monotonic()
    with pytest.raises(OutOfTime):
        engine.run_plan(image, ("total_fastest", PLAIN), earlier, Deadline(5.0))
    assert 5.0 <= time.monotonic() - began < 5.0 + 20.0
    assert 1 <= started() <= 3
    assert children() == []


def test_a_further_segmentation_that_takes_too_long_costs_only_itself(
    weights: Path, sleeping: Callable[[float], Callable[[], int]]
) -> None:
    engine, image = ResidentEngine(weights, threads=1), small()
    earlier = engine.run_plan(image, ("total_fastest",))
    started = sleeping(120.0)
    run = engine.run_plan(image, (Extra(PLAIN), "total_fastest"), earlier, Deadline(4.0))
    assert tuple(run.segmentations) == run.plan.run == ("total_fastest",)
    assert [(one.task, one.code) for one in run.plan.left_out] == [(PLAIN, LeftOutCode.OUT_OF_TIME)]
    assert [one.reason for one in skipped_tasks(run)] == ["out_of_time"]
    children_before = started()
    with pytest.raises(OutOfTime, match="no time was left"):
        engine.run_plan(image, ("total_fastest", PLAIN), earlier, Deadline(0.0))
    assert started() == children_before, "a child was started after the deadline"
    # the engine is none the worse for it
    assert engine.segment(small(), "total_fastest").label_map.array.shape == GRID.shape


def children() -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "--ppid", str(os.getpid()), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return [line for line in listed.stdout.splitlines() if upstream_child.MODULE in line]


def test_a_failure_of_upstream_is_named_and_carries_no_message(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(weights)
    # a task that upstream does not know
    row = TASKS[PLAIN]
    monkeypatch.setattr(upstream, "models_of", lambda _name: row.models)
    runner = engine._upstream
    with pytest.raises(Broken, match=r"upstream failed with ValueError$"):
        runner.run(small(), replace(row, upstream_task="patient name"), Deadline())


def full(monkeypatch: pytest.MonkeyPatch, engine: ResidentEngine, device: str, times: int) -> list[tuple[bool, int]]:
    """The first `times` children run out of memory; of each child, whether it ran on the host and how many models were
    loaded here."""
    monkeypatch.setattr(engine, "_device", torch.device(device))
    seen: list[tuple[bool, int]] = []

    def run(
        _self: UpstreamRunner, volume: Volume, _spec: object, _deadline: object, *, on_host: bool = False
    ) -> tuple[object, ...]:
        seen.append((on_host, len(engine.info().models)))
        if len(seen) <= times:
            raise OutOfMemory("full")
        return np.ones(volume.shape, np.uint8), volume.affine_ras, Timings(forward_s=1.0)

    monkeypatch.setattr(UpstreamRunner, "run", run)
    return seen


@pytest.mark.parametrize(
    ("failures", "seen"),
    [(0, [(False, 1)]), (1, [(False, 1), (False, 0)]), (2, [(False, 1), (False, 0), (True, 0)])],
)
def test_a_device_without_room_is_cleared_and_then_given_up(
    weights: Path, monkeypatch: pytest.MonkeyPatch, failures: int, seen: list[tuple[bool, int]]
) -> None:
    engine, image = ResidentEngine(weights, threads=1), small()
    engine.segment(image, "total_fastest")
    called = full(monkeypatch, engine, "cuda", failures)
    made = engine.segment(image, PLAIN)
    assert called == seen
    taken = MemoryStep("totalsegmentator/527", Road.WHOLE, Road.CPU)
    assert made.steps == ((taken,) if seen[-1][0] else ())
    assert made.label_map.array.all()


@pytest.mark.parametrize(("device", "tried"), [("cuda", "whole, cpu"), ("cpu", "whole")])
def test_what_fits_nowhere_outside_is_out_of_memory(
    weights: Path, monkeypatch: pytest.MonkeyPatch, device: str, tried: str
) -> None:
    engine = ResidentEngine(weights, threads=1)
    called = full(monkeypatch, engine, device, 99)
    with pytest.raises(OutOfMemory, match=f"totalsegmentator/527 did not fit: tried {tried}$"):
        engine.segment(small(), PLAIN)
    assert [on_host for on_host, _ in called] == ([False, True] if device == "cuda" else [False])


def test_a_task_from_which_nothing_is_made_may_fail(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Broken("breasts: upstream failed with IndexError")

    monkeypatch.setattr(UpstreamRunner, "run", fails)
    engine, image = ResidentEngine(weights, threads=1), small()
    run = engine.run_plan(image, ("total_fastest", Extra(PLAIN)))
    assert tuple(run.segmentations) == run.plan.run == ("total_fastest",)
    why = "broken: breasts: upstream failed with IndexError"
    assert run.plan.left_out == (LeftOut(PLAIN, LeftOutCode.FAILED, why),)
    assert skipped_tasks(run)[0].reason == "failed"
    with pytest.raises(Broken, match="IndexError"):
        engine.run_plan(image, ("total_fastest", PLAIN))

    def too_large(*_: object, **__: object) -> None:
        raise OutOfMemory("full")

    monkeypatch.setattr(UpstreamRunner, "run", too_large)
    with pytest.raises(OutOfMemory):
        engine.run_plan(image, ("total_fastest", Extra(PLAIN)))


def test_a_start_loads_what_may_be_asked_for(weights: Path) -> None:
    engine = ResidentEngine(weights, threads=1)
    engine.warm_up((Extra(PLAIN), Need("lungs", (("lung_vessels",),))))
    assert [model.model_id for model in engine.info().models] == ["totalsegmentator/298"]
    idle = ResidentEngine(weights, threads=1)
    idle.warm_up((Extra("total_mr"),))
    assert idle.info().models == ()


NETWORK = """
import sys, socket
from heimdallr_ray.segmentation.totalseg.upstream_child import refuse_network
sys.addaudithook(refuse_network)
refused = 0
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", 9), 1),
    lambda: socket.getaddrinfo("example.org", 443),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
):
    try:
        attempt()
    except RuntimeError as error:
        refused += "no network" in str(error)
left, right = socket.socketpair()
left.sendall(b"x"); assert right.recv(1) == b"x"
print(refused)
"""


def test_the_child_cannot_reach_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", NETWORK], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "3"


PARENT = """
import subprocess, sys, time
child = "import os; from heimdallr_ray.segmentation.totalseg.upstream_child import end_with; end_with(os.getppid()); "
child += "print(os.getpid(), flush=True); import time; time.sleep(120)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(120)
"""


def test_the_child_ends_with_the_process_that_asked() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.wait(30)
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)
    # closed only here: a full or broken pipe is no reason to end
    parent.stdout.close()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_whose_parent_is_gone_does_nothing() -> None:
    # in a process of its own: what it asks of the kernel stays with it
    call = "from heimdallr_ray.segmentation.totalseg.upstream_child import end_with; end_with(-1)"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "is gone" in done.stderr


def test_a_refusal_takes_no_second(weights: Path) -> None:
    engine = ResidentEngine(weights)
    flat = Volume(np.zeros((64, 64, 64), np.int16), np.eye(4), VolumeSource("CT"))
    with within(), pytest.raises(Exception, match="same value"):
        engine.segment(flat, PLAIN)


ROADS = {
    "teeth": ("total_fastest", "craniofacial_structures", "teeth"),
    "vertebrae_pp_refined": ("vertebrae_body", "vertebrae_pp"),
    "heartchambers_highres": ("total_fast", "heartchambers_highres"),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ROADS)
def test_tasks_with_roads_of_their_own(task: str, tmp_path: Path) -> None:
    registry = identity_nets.write_registry(tmp_path / "weights", ROADS[task], sparse=("vertebrae_pp",))
    made = ResidentEngine(registry).segment(small(), task)
    assert made.backend == "upstream" and made.label_map.array.any()


@pytest.mark.slow
def test_one_lump_of_touching_vertebrae_is_refused_as_upstream_refuses_it(tmp_path: Path) -> None:
    """TotalSegmentator 2.18 cannot tell the vertebrae of a single component apart; no mask is better than one name."""
    engine = ResidentEngine(identity_nets.write_registry(tmp_path / "weights", ("vertebrae_pp",)))
    with pytest.raises(VertebraeJoined, match="vertebrae_pp: all vertebrae touch"):
        engine.segment(small(), "vertebrae_pp")


@pytest.mark.parametrize(
    ("device", "word"),
    [
        ("cpu", "cpu"),
        (torch.device("cpu"), "cpu"),
        (torch.device("cuda"), "gpu"),
        (torch.device("cuda", 1), "gpu:1"),
        (torch.device("mps"), "mps"),
    ],
)
def test_a_rough_segmentation_runs_where_its_task_was_told_to_run(device: object, word: str) -> None:
    assert upstream_child.device_word(device) == word
