"""No network from where the models run: the engine, and upstream behind it, on weights that came in as archives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.operations import models as work
from heimdallr_ray.segmentation.specs import RESIDENT, UPSTREAM
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, models_of
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(1200)

OUTSIDE = "hip_implant"
ABSENT = "trunk_cavities"
ABSENT_OUTSIDE = "breasts"
LIMIT_S = 900
ROOT = Path(__file__).resolve().parents[3]

HOOK = """
import os, sys
LOG = os.environ.get("NETWORK_LOG") or {log!r}
ASKED = {{"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"}}

def note(line):
    with open(LOG, "a") as stream:
        stream.write(line + "\\n")

def hook(event, arguments):
    if event in ASKED and not (event == "socket.connect" and isinstance(arguments[1], (str, bytes))):
        note("network " + event)
        raise RuntimeError("the network was asked for")

note("process " + " ".join(sys.orig_argv[1:4]).replace("\\n", " ")[:200])
sys.addaudithook(hook)
"""

RUN = """
import json, sys
from pathlib import Path
import numpy as np
from heimdallr_ray.errors import WeightsMissing
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation.peer import Geometry
folder, tasks, absent = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")
engine = ResidentEngine(folder, threads=1)
image = Geometry("PIR", (24, 20, 28), (2.6, 3.1, 2.6), "PIR").image("CT")
array, affine = np.asanyarray(image.dataobj), np.asarray(image.affine)
volume = Volume(array, affine, VolumeSource("CT", manifest_sha256="a" * 64))
made = {task: engine.segment(volume, task).backend for task in tasks}
for task in absent:
    try:
        engine.segment(volume, task)
    except WeightsMissing as error:
        made[task] = error.code
try:
    import socket
    socket.create_connection(("127.0.0.1", 9), 1)
except RuntimeError as error:
    made["hook"] = str(error)
print(json.dumps(made))
"""


def archives_of(registry: Path, folder: Path) -> Path:
    """The models of a registry as the archives that upstream would publish."""
    folder.mkdir()
    for dataset in sorted(path for path in registry.iterdir() if path.is_dir()):
        with zipfile.ZipFile(folder / f"{dataset.name}.zip", "w") as archive:
            for file in sorted(path for path in dataset.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(registry))
    return folder


def test_imported_models_run_and_nothing_asks_for_the_network(tmp_path: Path) -> None:
    made = identity_nets.write_registry(tmp_path / "made", (FIRST_PASS, OUTSIDE), brain_bias=-5.0)
    registry = tmp_path / "weights"
    telling = work.Telling(say=lambda _: None, on_bytes=lambda *_: None, sleep=lambda _: None)
    demo = load({}, data_dir=tmp_path / "data", profile="demo")
    installed = tuple(work.bring_in(demo, archives_of(made, tmp_path / "archives"), registry, telling, SystemClock()))
    assert len(installed) == len({model.dataset_folder for name in (FIRST_PASS, OUTSIDE) for model in models_of(name)})
    assert TASKS[OUTSIDE].backend == TASKS[ABSENT_OUTSIDE].backend == UPSTREAM and TASKS[ABSENT].backend == RESIDENT

    hooks, log = tmp_path / "hooks", tmp_path / "network.log"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(HOOK.format(log=str(log)))
    searched = os.pathsep.join((str(hooks), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": searched, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(registry), f"{FIRST_PASS},{OUTSIDE}", f"{ABSENT},{ABSENT_OUTSIDE}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {
        FIRST_PASS: "resident",
        OUTSIDE: "upstream",
        ABSENT: "weights_missing",
        ABSENT_OUTSIDE: "weights_missing",
        "hook": "the network was asked for",
    }
    lines = log.read_text().splitlines()
    assert len([line for line in lines if line.startswith("process")]) >= 2, "the child was not watched"
    assert any("upstream_child" in line for line in lines)
    # The one attempt is the test's own, by which it knows that its watch works.
    assert [line for line in lines if line.startswith("network")] == ["network socket.getaddrinfo"]
