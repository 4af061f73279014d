from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import forward, nets, phantoms, segment, segment_large, segment_peers, segment_shared, segment_upstream
from bench.segment_peers import Case, Contest, Spent
from heimdallr_ray.segmentation.tasks import task_spec
from heimdallr_ray.segmentation.weights import verify
from tools.nnunet_files import Unet

TINY_PATCH = (32, 32, 32)


@pytest.fixture(scope="module")
def pair_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = dict.fromkeys(segment_shared.TASKS, TINY_PATCH)
    return nets.write_registry(tmp_path_factory.mktemp("pair") / "weights", tasks, nets.SMALL)


def test_medians_are_taken_over_what_lies_outside_the_network_turn_by_turn():
    found = segment_peers.medians([(10.0, 9.5), (12.0, 9.0), (11.0, 10.0)])
    assert (found.total_s, found.forward_s, found.outside_s) == (11.0, 9.5, 1.0)


def test_a_registry_of_random_nets_has_the_real_labels_and_patch_and_is_marked(tmp_path: Path):
    folder = nets.write_registry(tmp_path, {"total": nets.PATCH_1_5_MM}, nets.SMALL)
    registry = verify(folder)
    assert registry.synthetic
    labels = set()
    for model in task_spec("total").models:
        dataset = json.loads(registry.read(f"{model.folder}/dataset.json"))
        plans = json.loads(registry.read(f"{model.folder}/plans.json"))
        labels |= set(dataset["labels"]) - {"background"}
        assert "SYNTHETIC" in dataset["description"]
        assert plans["configurations"]["3d_fullres"]["patch_size"] == [128, 128, 128]
        assert 0 < nets.parameters(folder / model.checkpoint) < 2000
    assert len(labels) == 117


def test_a_full_network_is_as_large_as_totalsegmentators(tmp_path: Path):
    folder = nets.write_registry(tmp_path, {"total_fast": nets.PATCH_3_MM}, nets.FULL)
    (model,) = task_spec("total_fast").models
    assert 30_000_000 < nets.parameters(folder / model.checkpoint) < 32_000_000


def test_a_task_without_a_spacing_of_its_own_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cerebral_bleed"):
        nets.write_registry(tmp_path, {"cerebral_bleed": nets.PATCH_3_MM}, nets.SMALL)


def test_the_long_trunk_is_the_size_that_is_promised_at_the_models_spacing():
    hu, affine = phantoms.long_trunk(60)
    assert hu.shape == (512, 512, 60)
    assert hu.flags.f_contiguous
    assert hu.dtype == np.int16
    # 750 slices of 2 mm are 1000 of 1.5 mm
    assert np.allclose(np.diag(affine), [-1.5, -1.5, 2.0, 1.0])
    assert 750 * affine[2, 2] == 1000 * 1.5


def test_the_largest_study_is_told_in_the_units_of_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = {"peak_gib": 8.0, "before_gib": 2.0, "total_s": 9.0, "forward_s": 7.0, "labels": 3, "tiles": 5, "models": 1}
    monkeypatch.setattr(segment, "finished", lambda _command: f"{json.dumps(found)}\n")
    units = {str(one["figure"]): str(one["unit"]) for one in segment.largest(tmp_path)}
    assert units["segment.memory_large_gib"].startswith("GiB, ")
    assert units["segment.memory_large_before_gib"] == "GiB"
    assert units["segment.memory_large_total_s"] == units["segment.memory_large_forward_s"] == "s"


def test_the_largest_of_all_models_is_held_against_the_bar():
    first, *rest = segment.outside_figures({"a": 0.2, "b": 0.5, "c": 0.1})
    assert first["value"] == 0.5 and first["bar"] == "<=0.6" and str(first["unit"]).endswith("largest of 3: b")
    assert [line["value"] for line in rest] == [0.2, 0.5, 0.1]
    assert all("bar" not in line for line in rest)


@pytest.mark.parametrize("name", ["demo 3 mm", "full-size 3 mm"])
def test_a_case_is_compared_outside_the_network_and_must_give_the_apis_labels(name: str, tmp_path: Path):
    case = Case(name, tmp_path, "total_fast", (None, None), (), 1)
    lines = list(
        segment.compared(case, Contest(Spent(9.0, 8.0, 1.0), Spent(20.0, 10.0, 10.0), Spent(30.0, 9.0, 21.0), 4))
    )
    figures = {str(line["figure"]): line for line in lines}
    # the figure of record is that of the packaged nets
    overhead = figures["segment.overhead_vs_api" if name == "demo 3 mm" else f"segment.overhead_vs_api {name}"]
    assert (overhead["value"], overhead["peer_value"], overhead["bar"]) == (1.0, 10.0, "<=0.125")
    assert figures[f"segment.voxels_unlike_api {name}"]["value"] == 4
    assert figures[f"segment.voxels_unlike_api {name}"]["bar"] == "==0"
    assert figures[f"segment.total_s {name}: TotalSegmentator 2.18 command line"]["value"] == 30.0


def test_a_second_task_adds_no_load_view_or_resampling(pair_registry: Path):
    engine = segment_peers.warm_engine(pair_registry)
    rng = np.random.default_rng(5)
    image = rng.integers(-1000, 1000, (30, 28, 20)).astype(np.int16), np.diag([-2.0, -2.0, 3.0, 1.0])
    alone = segment_shared.calls_of(segment_shared.alone(engine, image))
    second = segment_shared.calls_of(segment_shared.after(engine, image))
    assert (alone.loads, alone.views, alone.resamplings) == (1, 1, 1)
    assert second.total == 0
    for alone_first in (True, False):
        measured = segment_shared.pair(engine, image, alone_first=alone_first)
        assert measured.alone_s > 0 and measured.after_s > 0


def test_what_is_saved_is_told_by_the_least_of_each_side():
    pairs = [segment_shared.Pair(1.5, 1.25), segment_shared.Pair(1.0, 9.0), segment_shared.Pair(3.0, 0.75)]
    assert segment_shared.saved_s(pairs) == 0.25


def test_seconds_inside_the_networks_do_not_count_as_outside():
    network = Unet((1, 2), 1).network(3)
    tile = torch.zeros(1, 1, 8, 8, 8)

    def busy(seconds: float) -> None:
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass

    def work() -> None:
        network(tile)
        busy(0.05)

    inside = network.register_forward_pre_hook(lambda *_: busy(0.3))
    spent = forward.outside_cpu_s(work)
    inside.remove()
    assert 0.05 <= spent < 0.3


def test_what_is_counted_are_calls_and_only_while_they_are_counted():
    from heimdallr_ray.segmentation.totalseg import geometry

    image = geometry.Image(np.zeros((4, 4, 4), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    with segment_shared.counted() as calls:
        geometry.canonical(image)
        geometry.canonical(image)
    geometry.canonical(image)
    assert (calls.loads, calls.views, calls.resamplings, calls.total) == (0, 2, 0, 2)


def test_a_full_net_works_once_beside_the_tile_that_was_named_and_is_not_counted():
    small, large = Unet((1, 2), 1).network(3), Unet((2, 4), 1).network(3)
    shapes: list[tuple[int, ...]] = []

    def work(tile: Any) -> None:
        shapes.append(tuple(large(tile).shape))

    beside = segment_large.Beside(2, work)
    with torch.inference_mode(), beside.watching():
        for _ in range(3):
            small(torch.zeros(1, 1, 8, 8, 8))
    small(torch.zeros(1, 1, 8, 8, 8))
    assert beside.tiles == 3
    assert shapes == [(1, 3, 8, 8, 8)]


def test_the_peak_is_that_of_this_program():
    before = segment_large.peak_gib()
    held = np.ones(64 << 20, np.uint8)
    assert held.sum() and 0 < before <= segment_large.peak_gib() < 64


def test_what_a_command_says_before_it_fails_is_told():
    assert segment_peers.finished([sys.executable, "-c", "print(7)"]) == "7\n"
    with pytest.raises(ValueError, match=r"ended with 3: no such weights"):
        segment_peers.finished([sys.executable, "-c", "import sys; sys.stderr.write('no such weights'); sys.exit(3)"])


def test_upstream_is_told_the_mode_of_a_task_by_its_flags():
    assert segment_upstream.FLAGS["total_fast"] == {"task": "total", "fast": True}
    for name, flags in segment_upstream.FLAGS.items():
        spec = task_spec(name)
        assert flags == {"task": spec.upstream_task} | {key: True for key in ("fast", "fastest") if getattr(spec, key)}
