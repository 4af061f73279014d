"""What a warm engine spends outside the network, beside TotalSegmentator's own API and command line in the same run.

The bare forward pass is timed inside each of them, so that what is compared is what the engine is there to save. Nets:
the packaged demo nets, and random ones of TotalSegmentator's full size and patch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import nets, segment_cuda

if TYPE_CHECKING:
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume

NAME = "segment"
ROOT = Path(__file__).parents[1]

UPSTREAM = "totalsegmentator() 2.18"
CLI = "TotalSegmentator 2.18 command line"
LIMIT_S = 3600.0
API_SAVERS = "6"
"""Export processes of the API: its default."""
LARGE_SAVED_REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One image through one task with one set of nets.

    Attributes:
        name: what stands behind the figures' names.
        weights: registry.
        task: row of the task table.
        image: Hounsfield units `[i, j, k]` and affine to RAS mm.
        options: of TotalSegmentator's command line for the same task.
        repeats: turns of each contender.
    """

    name: str
    weights: Path
    task: str
    image: tuple[Any, Any]
    options: tuple[str, ...]
    repeats: int


@dataclass(frozen=True)
class Spent:
    """Medians of one contender, seconds."""

    total_s: float
    forward_s: float
    outside_s: float


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield ours beside the peers', case by case; then what a second task saves, the largest study, the accelerator."""
    from heimdallr_ray.segmentation.demo import phantom, weights_dir

    body = phantom.make(2001, (1.5, 1.5, 3.0), (150.0, 390.0))
    image = body.hu, body.affine_ras
    # One tile of the 1.5 mm nets: a full one takes seconds for each on a CPU.
    part = phantom.make(2001, (1.5, 1.5, 3.0), (150.0, 318.0), fov_mm=(192.0, 192.0))
    few = 3 if full else 1
    with tempfile.TemporaryDirectory(prefix="segment-") as name:
        root = Path(name)
        tasks = {"total_fast": nets.PATCH_3_MM, "trunk_cavities": nets.PATCH_1_5_MM}
        large = nets.write_registry(root / "full", tasks, nets.FULL)
        cases = (
            Case("demo 3 mm", weights_dir(), "total_fast", image, ("--fast",), 5 if full else 2),
            Case("full-size 3 mm", large, "total_fast", image, ("--fast",), few),
            Case(
                "full-size 1.5 mm, one tile",
                large,
                "trunk_cavities",
                (part.hu, part.affine_ras),
                ("--task", "trunk_cavities"),
                few,
            ),
        )
        outside: dict[str, float] = {}
        for case in cases:
            found = contest(case, root / case.name.replace(" ", "-").replace(",", ""))
            outside[case.name] = found["engine"].outside_s
            yield from compared(case, found)
        # Every further model of the demo on the same image; no peer is needed to hold the bar.
        for task in ("total_fastest", "tissue_types"):
            outside[f"demo {task}"] = engine_alone(weights_dir(), task, image, 3).outside_s
        if full:
            outside["full-size 1.5 mm"] = engine_alone(large, "trunk_cavities", image, 1).outside_s
        worst = max(outside, key=lambda model: outside[model])
        yield {
            "figure": "segment.outside_forward_s",
            "value": round(outside[worst], 3),
            "unit": f"s per model on 267 x 200 x 80; the largest of {len(outside)}: {worst}",
            "bar": "<=0.6",
        }
        for model, seconds in outside.items():
            yield {"figure": f"segment.outside_forward_s {model}", "value": round(seconds, 3), "unit": "s"}
        small = nets.write_registry(root / "small", dict.fromkeys(SECOND, nets.PATCH_1_5_MM), nets.SMALL)
        yield from second_task(small)
        yield from largest(nets.write_registry(root / "parts", {"total": nets.PATCH_1_5_MM}, nets.SMALL))
    yield from segment_cuda.figures()


def compared(case: Case, found: Mapping[str, Spent]) -> Iterator[dict[str, object]]:
    """The ratio of what lies outside the forward pass, and all totals as information."""
    plain = case.name == "demo 3 mm"
    yield {
        "figure": "segment.overhead_vs_api" if plain else f"segment.overhead_vs_api {case.name}",
        "value": round(found["engine"].outside_s, 3),
        "unit": "s outside the forward pass",
        "peer": UPSTREAM,
        "peer_value": round(found["api"].outside_s, 3),
        "bar": "<=0.125",
    }
    for who, label in (("engine", "warm engine"), ("api", UPSTREAM), ("cli", CLI)):
        yield {"figure": f"segment.total_s {case.name}: {label}", "value": round(found[who].total_s, 2), "unit": "s"}
        yield {
            "figure": f"segment.forward_s {case.name}: {label}",
            "value": round(found[who].forward_s, 2),
            "unit": "s inside the network",
        }


def contest(case: Case, folder: Path) -> dict[str, Spent]:
    """Medians of engine, API and command line, which take turns."""
    import nibabel as nib

    folder.mkdir(parents=True)
    source = folder / "source.nii"
    nib.save(nib.Nifti1Image(*case.image), source)
    engine = warm_engine(case.weights)
    turns: dict[str, list[tuple[float, float]]] = {"engine": [], "api": [], "cli": []}
    for _ in range(case.repeats):
        turns["engine"].append(engine_turn(engine, case.task, case.image))
        turns["api"].append(api_turn(case, source, folder))
        turns["cli"].append(cli_turn(case, source, folder))
    return {who: medians(found) for who, found in turns.items()}


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


def fresh(image: tuple[Any, Any]) -> Volume:
    """A study that the engine has not seen."""
    from heimdallr_ray.volume import Volume, VolumeSource

    return Volume(*image, VolumeSource("CT", synthetic=True))


def engine_turn(engine: ResidentEngine, task: str, image: tuple[Any, Any]) -> tuple[float, float]:
    """Total and forward seconds of one task on a new study."""
    timings = engine.segment(fresh(image), task).timings
    return timings.total_s, timings.forward_s


def engine_alone(weights: Path, task: str, image: tuple[Any, Any], repeats: int) -> Spent:
    """Medians of the engine without a peer."""
    engine = warm_engine(weights)
    return medians([engine_turn(engine, task, image) for _ in range(repeats)])


def api_turn(case: Case, source: Path, folder: Path) -> tuple[float, float]:
    """Total and forward seconds of one API call, without the start of its process and its imports."""
    script = Path(__file__).with_name("segment_upstream.py")
    home = folder / "api-home"
    command = [sys.executable, str(script), API_SAVERS, str(case.weights), str(home), str(source), str(folder)]
    finished([*command, case.task])
    times = json.loads((folder / f"{case.task}.json").read_text(encoding="utf-8"))
    return float(times["wall_s"]), float(times["forward_s"])


def cli_turn(case: Case, source: Path, folder: Path) -> tuple[float, float]:
    """Total seconds of the command from its start to its end, and the forward seconds inside it."""
    script, times = Path(__file__).with_name("segment_cli.py"), folder / "cli.json"
    options = ("-i", str(source), "-o", str(folder / "cli.nii.gz"), "--ml", "--device", "cpu", *case.options)
    command = [sys.executable, str(script), str(case.weights), str(folder / "cli-home"), str(times), *options]
    began = time.perf_counter()
    finished(command)
    wall_s = time.perf_counter() - began
    return wall_s, float(json.loads(times.read_text(encoding="utf-8"))["forward_s"])


def finished(command: list[str]) -> str:
    """What the command, started in the folder that holds `bench`, printed.

    Raises:
        ValueError: it failed; with the end of what it said.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    if done.returncode:
        raise ValueError(f"{command[1:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


SECOND = ("vertebrae_body", "trunk_cavities")
"""Two uncropped tasks at one spacing, one after the other on one study."""


def second_task(weights: Path) -> Iterator[dict[str, object]]:
    """What the second task of a study does not do again: seconds, and the steps counted by the engine itself."""
    from bench.phantoms import chest_and_abdomen

    first, second = SECOND
    image = chest_and_abdomen(120)
    engine = warm_engine(weights)
    alone: list[float] = []
    after: list[float] = []
    steps_alone = steps_after = 0
    for _ in range(LARGE_SAVED_REPEATS):
        by_itself = engine.segment(fresh(image), second).timings
        study = fresh(image)
        engine.segment(study, first)
        following = engine.segment(study, second).timings
        alone.append(by_itself.outside_forward_s)
        after.append(following.outside_forward_s)
        steps_alone = by_itself.loads + by_itself.canonical_views + by_itself.resamplings
        steps_after += following.loads + following.canonical_views + following.resamplings
    yield {
        "figure": "segment.second_task_saved_s",
        "value": round(statistics.median(alone) - statistics.median(after), 3),
        "unit": f"s of {statistics.median(alone):.3f} s outside the forward pass, 512 x 512 x 120",
        "bar": ">0",
    }
    yield {
        "figure": "segment.second_task_shared_steps",
        "value": steps_after,
        "unit": f"loads, canonical views and resamplings of the second task; by itself it needs {steps_alone}",
        "bar": "==0",
    }


def largest(weights: Path) -> Iterator[dict[str, object]]:
    """Peak memory of `total` in five parts on 512 x 512 x 1000 voxels of 1.5 mm: the real patch, step and labels.

    The nets are small so that it takes minutes; the full ones add 0.6 GiB of weights and the activations of one tile.
    """
    command = [sys.executable, "-m", "bench.segment_large", str(weights), "total"]
    found = json.loads(finished(command).splitlines()[-1])
    yield {
        "figure": "segment.memory_large_gib",
        "value": round(found["peak_rss_gib"], 2),
        "unit": "GiB, peak of the process, 512 x 512 x 1000 at 1.5 mm, five parts, triple split",
        "bar": "<=16",
    }
    yield {"figure": "segment.memory_large_labels", "value": found["labels"], "unit": "labels found", "bar": ">1"}
    for key in ("before_gib", "total_s", "forward_s"):
        yield {"figure": f"segment.memory_large_{key}", "value": round(found[key], 2), "unit": key.rpartition("_")[2]}
