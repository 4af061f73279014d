from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import heimdallr_ray

PROGRAM = """
import numpy as np
from heimdallr_ray.metrics import kernels
labels = np.ones((2, 3, 4), np.uint8)
rows = np.full(256, -1, np.int32); rows[1] = 0
tables = [np.zeros((1, n), np.int64) for n in (2, 3, 5)]
histogram = np.zeros((1, kernels.N_BINS), np.uint32)
kernels.tally(labels, np.zeros((2, 3, 4), np.int16), rows, histogram, *tables)
assert histogram.sum() == 24
"""


@pytest.mark.parametrize("writable", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_kernels_keep_no_machine_code_on_disk_and_need_no_folder_for_it(tmp_path: Path, writable: bool) -> None:
    """numba would keep a pickle there: docs/decisions/003-numba-cache.md."""
    source = Path(heimdallr_ray.__file__).parent
    package = tmp_path / "site" / "heimdallr_ray"
    (package / "metrics").mkdir(parents=True)
    for name in ("__init__.py", "metrics/__init__.py", "metrics/kernels.py"):
        (package / name).write_bytes((source / name).read_bytes())
    home = tmp_path / "home"
    if writable:
        home.mkdir()
    else:
        # Files where the cache folders would be: not even root can create folders of these names.
        (package / "metrics" / "__pycache__").write_bytes(b"")
        home.write_bytes(b"")
    before = set(tmp_path.rglob("*"))
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment.update(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), PYTHONPATH=str(tmp_path / "site"))
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,  # compiling takes seconds, on a machine full of other work half a minute
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(tmp_path.rglob("*")) == before
