"""What of the accelerator's benchmark can be run without one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import nets, segment_cuda
from bench.__main__ import completed
from bench.segment_cuda import Measured
from heimdallr_ray.segmentation.totalseg import turbo

TINY_PATCH = (32, 32, 32)
KEYS = ("bench", "figure", "value", "unit", "peer", "peer_value", "ratio", "bar", "ok")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nets.write_registry(tmp_path_factory.mktemp("cuda") / "weights", {"total_fast": TINY_PATCH}, nets.SMALL)


@pytest.fixture
def image() -> tuple[np.ndarray, np.ndarray]:
    hu = np.random.default_rng(3).normal(0, 200, (40, 40, 30)).astype(np.int16)
    return hu, np.diag([-3.0, -3.0, 3.0, 1.0])


@pytest.mark.parametrize("mode", segment_cuda.MODES)
def test_a_study_is_measured_in_each_mode(registry: Path, image: tuple[np.ndarray, np.ndarray], mode: str) -> None:
    found = segment_cuda.study(registry, "total_fast", image, "cpu", mode, repeats=1)
    assert 0 < found.forward_s < found.total_s
    assert 0 < found.share < 1
    assert (found.memory_gib, found.uploads) == (0.0, 0.0)
    assert found.labels.shape == (40, 40, 30)
    assert mode == "turbo" or found.steps == ()


def test_noise_is_judged_by_time_in_the_seconds_of_the_package_and_the_gate_is_as_it_was_afterwards() -> None:
    before = turbo.LEAST_DICE, turbo.MODEL_S, turbo.START_SHARE
    with segment_cuda.judged_by_time_alone():
        assert (0.0, *before[1:]) == (turbo.LEAST_DICE, turbo.MODEL_S, turbo.START_SHARE)
    assert before == (turbo.LEAST_DICE, turbo.MODEL_S, turbo.START_SHARE)


def measured(total_s: float, forward_s: float, steps: tuple[str, ...] = ()) -> Measured:
    return Measured(total_s, forward_s, 1.0, 9.0, 3.5, 1.0, steps, None)


def test_the_bar_is_on_the_share_of_exact_mode_alone() -> None:
    found = {"exact": measured(2.0, 1.7), "turbo": measured(1.5, 0.9, ("channels_last_3d", "4 tiles at once"))}
    lines = {str(one["figure"]): one for one in segment_cuda.on_accelerator("3 mm", "a device", found)}
    assert len(lines) == 12
    assert completed("segment", lines["segment.cuda_forward_share 3 mm exact"])["ok"] is True
    assert {name for name, one in lines.items() if "bar" in one} == {"segment.cuda_forward_share 3 mm exact"}
    assert lines["segment.cuda_forward_share 3 mm exact"]["value"] == 0.85
    assert "channels_last_3d, 4 tiles at once" in str(lines["segment.cuda_study_s 3 mm turbo"]["unit"])


def test_without_an_accelerator_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert segment_cuda.main([]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no accelerator here" in captured.err


def test_the_two_modes_are_compared_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3] = 5

    def study(_weights: Path, _task: str, _image: object, device: str, mode: str, _repeats: int) -> Measured:
        assert device == "cpu"
        steps = ("channels_last_3d",) if mode == "turbo" else ()
        return Measured(2.0, 1.5, 3.0 if mode == "exact" else 2.5, 4.0, 0.0, 0.0, steps, labels)

    monkeypatch.setattr(segment_cuda, "study", study)
    assert segment_cuda.main(["cpu"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3 * len(segment_cuda.DEMO_TASKS)
    dice = [one for one in lines if one["figure"].startswith("segment.turbo_dice")]
    assert {one["value"] for one in dice} == {1.0}
    assert lines[0]["peer_value"] == 3.0
    assert all(list(one) == [*KEYS] for one in lines)
    labels[3] = 6
    made = iter([labels, np.roll(labels, 1, 0)] * len(segment_cuda.DEMO_TASKS))
    monkeypatch.setattr(segment_cuda, "study", lambda *_: replace(measured(2.0, 1.5), labels=next(made)))
    assert segment_cuda.main(["cpu"]) == 1
