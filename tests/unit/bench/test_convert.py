from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import convert, convert_worker

AFFINE = np.array([[-0.7, 0.0, 0.0, 90.0], [0.0, -0.7, 0.0, 80.0], [0.0, 0.0, 1.25, -40.0], [0.0, 0.0, 0.0, 1.0]])


def _values() -> np.ndarray:
    return np.random.default_rng(3).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


def test_the_same_image_in_other_axes_is_the_same_image():
    values = _values()
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    turned[0, 3] = values.shape[0] - 1
    found = convert_worker.compare((values[::-1], AFFINE @ turned), (values, AFFINE))
    assert convert.is_right(found)


@pytest.mark.parametrize(
    ("change", "voxels_wrong"),
    [
        (lambda values, affine: (values[::-1], affine), True),
        (lambda values, affine: (values + 1, affine), True),
        (lambda values, affine: (values[:, :, :-1], affine), True),
        (lambda values, affine: (values, affine + np.eye(4, k=3) * 0.02), False),
        (lambda values, affine: (values, affine * np.array([1.0, 1.0, 1.01, 1.0])), False),
    ],
    ids=["mirrored", "one HU more", "a slice less", "moved by 0.02 mm", "1 % longer"],
)
def test_a_converter_that_gets_voxels_or_geometry_wrong_is_not_right(change: Any, voxels_wrong: bool):
    values = _values()
    found = convert_worker.compare(change(values, AFFINE), (values, AFFINE))
    assert not convert.is_right(found)
    assert (found["voxels_wrong"] > 0) is voxels_wrong


@pytest.mark.parametrize("contender", sorted(convert_worker.CONTENDERS))
def test_every_converter_of_the_benchmark_answers_and_is_right_on_a_plain_series(contender: str, tmp_path: Path):
    values = np.asfortranarray(np.random.default_rng(4).integers(-1000, 1000, (24, 20, 60)).astype(np.int16))
    convert.write_series(tmp_path / "dicom", values, AFFINE)
    np.savez(tmp_path / "truth.npz", array=np.ascontiguousarray(values.transpose(2, 1, 0)), affine=AFFINE)
    done = subprocess.run(
        [sys.executable, convert_worker.__file__, contender, str(tmp_path / "dicom"), str(tmp_path / "truth.npz")],
        input="go\ngo\n",
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(convert.__file__).parents[1])},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [convert.is_right(answer) for answer in answers] == [True, True]
    assert all(answer["cpu_s"] > 0 for answer in answers)
