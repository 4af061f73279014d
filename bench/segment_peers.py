"""The warm engine, TotalSegmentator's Python API and its command line on one image, turn by turn."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume

ROOT = Path(__file__).parents[1]
UPSTREAM = "totalsegmentator() 2.18"
CLI = "TotalSegmentator 2.18 command line"
LIMIT_S = 3600.0
Image = tuple[Any, Any]
"""Hounsfield units `[i, j, k]` and affine to RAS mm."""


@dataclass(frozen=True)
class Case:
    """One image through one task with one set of nets.

    Attributes:
        name: what stands behind the figures' names.
        weights: registry.
        task: row of the task table.
        image: what is segmented.
        options: of TotalSegmentator's command line for the same task.
        repeats: turns of each contender.
        engine_repeats: turns of the engine in each of these.
    """

    name: str
    weights: Path
    task: str
    image: Image
    options: tuple[str, ...]
    repeats: int
    engine_repeats: int = 1

    @property
    def folder_name(self) -> str:
        """`name` as a folder's."""
        return self.name.replace(" ", "-").replace(",", "")


@dataclass(frozen=True)
class Spent:
    """Medians of one contender, seconds."""

    total_s: float
    forward_s: float
    outside_s: float


@dataclass(frozen=True)
class Contest:
    """What came of a case.

    Attributes:
        engine: the warm engine.
        api: `totalsegmentator()`, without the start of its process and its imports.
        cli: the command, from its start to its end.
        unlike: voxels that the engine labels otherwise than the API does.
    """

    engine: Spent
    api: Spent
    cli: Spent
    unlike: int


def contest(case: Case, folder: Path) -> Contest:
    """Engine, API and command line have taken turns; files go to `folder`, which is made."""
    import nibabel as nib
    import numpy as np

    folder.mkdir(parents=True)
    source, labels = folder / "source.nii", folder / "api-labels.npy"
    nib.save(nib.Nifti1Image(*case.image), source)
    engine = warm_engine(case.weights)
    turns: dict[str, list[tuple[float, float]]] = {"engine": [], "api": [], "cli": []}
    unlike = 0
    for _ in range(case.repeats):
        made = [engine.segment(fresh(case.image), case.task) for _ in range(case.engine_repeats)]
        turns["engine"].extend((one.timings.total_s, one.timings.forward_s) for one in made)
        turns["api"].append(api_turn(case, source, labels))
        turns["cli"].append(cli_turn(case, source))
        theirs = np.load(labels, allow_pickle=False)
        unlike = max(unlike, int(np.count_nonzero(made[-1].label_map.array != theirs)))
    found = {who: medians(one) for who, one in turns.items()}
    return Contest(found["engine"], found["api"], found["cli"], unlike)


def medians(turns: list[tuple[float, float]]) -> Spent:
    """Of (total, forward) seconds."""
    return Spent(
        statistics.median(total for total, _ in turns),
        statistics.median(forward for _, forward in turns),
        statistics.median(total - forward for total, forward in turns),
    )


def warm_engine(weights: Path) -> ResidentEngine:
    """A resident engine as a replica has it."""
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine

    engine = ResidentEngine(weights)
    engine.warm_up()
    return engine


def fresh(image: Image) -> Volume:
    """A study that the engine has not seen."""
    from heimdallr_ray.volume import Volume, VolumeSource

    return Volume(*image, VolumeSource("CT", synthetic=True))


def engine_alone(weights: Path, task: str, image: Image, repeats: int) -> Spent:
    """Medians of the engine without a peer."""
    engine = warm_engine(weights)
    turns = [engine.segment(fresh(image), task).timings for _ in range(repeats)]
    return medians([(turn.total_s, turn.forward_s) for turn in turns])


def api_turn(case: Case, source: Path, labels: Path) -> tuple[float, float]:
    """Total and forward seconds of one API call, without the start of its process and its imports."""
    spent = upstream_turn("api", case.weights, source.parent, str(source), str(labels), case.task)
    return spent["wall_s"], spent["forward_s"]


def cli_turn(case: Case, source: Path) -> tuple[float, float]:
    """Total seconds of the command from its start to its end, and the forward seconds inside it."""
    folder = source.parent
    options = ("-i", str(source), "-o", str(folder / "cli.nii.gz"), "--ml", "--device", "cpu", *case.options)
    began = time.perf_counter()
    spent = upstream_turn("cli", case.weights, folder, *options)
    return time.perf_counter() - began, spent["forward_s"]


def upstream_turn(mode: str, weights: Path, folder: Path, *rest: str) -> dict[str, float]:
    """What `segment_upstream.py` measured."""
    script, times = Path(__file__).with_name("segment_upstream.py"), folder / f"{mode}.json"
    finished([sys.executable, str(script), mode, str(weights), str(folder / f"{mode}-home"), str(times), *rest])
    spent = json.loads(times.read_text(encoding="utf-8"))
    times.unlink()
    return spent


def finished(command: list[str]) -> str:
    """What the command, started in the folder that holds `bench`, printed.

    Raises:
        ValueError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    if done.returncode:
        raise ValueError(f"{command[1:4]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
