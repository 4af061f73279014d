from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import convert, convert_worker

AFFINE = np.array([[-0.7, 0.0, 0.0, 90.0], [0.0, -0.7, 0.0, 80.0], [0.0, 0.0, 1.25, -40.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("contender", sorted(convert_worker.CONTENDERS))
def test_every_converter_of_the_benchmark_answers_and_is_right_on_a_plain_series(contender: str, tmp_path: Path):
    values = np.asfortranarray(np.random.default_rng(4).integers(-1000, 1000, (24, 20, 60)).astype(np.int16))
    convert.write_series(tmp_path / "dicom", values, AFFINE)
    np.savez(tmp_path / "truth.npz", array=np.ascontiguousarray(values.transpose(2, 1, 0)), affine=AFFINE)
    done = subprocess.run(
        [sys.executable, convert_worker.__file__, contender, str(tmp_path / "dicom"), str(tmp_path / "truth.npz")],
        input="check\ngo\n",
        capture_output=True,
        check=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(Path(convert.__file__).parents[1])},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert convert.is_right(answers[0])
    assert [set(answer) for answer in answers[1:]] == [{"cpu_s", "wall_s"}]
    assert all(answer["cpu_s"] > 0 for answer in answers)
