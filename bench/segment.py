"""What a warm engine spends outside the network, beside TotalSegmentator's own API and command line in the same run.

The bare forward pass is timed inside each of them, so that what is compared is what the engine is there to save. Nets:
the packaged demo nets, and random ones of TotalSegmentator's full size and patch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import nets, segment_cuda, segment_shared
from bench.segment_peers import CLI, UPSTREAM, Case, Contest, contest, engine_alone, finished

NAME = "segment"


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield ours beside the peers', case by case; then what a second task saves, the largest study, the accelerator."""
    from heimdallr_ray.segmentation.demo import phantom, weights_dir
    from heimdallr_ray.segmentation.tasks import task_spec

    body = phantom.make(2001, (1.5, 1.5, 3.0), (150.0, 390.0))
    image = body.hu, body.affine_ras
    # One tile of the 1.5 mm nets: a full one takes five seconds for each on two cores.
    part = phantom.make(2001, (1.5, 1.5, 3.0), (150.0, 318.0), fov_mm=(192.0, 192.0))
    few = 3 if full else 1
    with tempfile.TemporaryDirectory(prefix="segment-") as name:
        root = Path(name)
        tasks = {"total_fast": nets.PATCH_3_MM, "trunk_cavities": nets.PATCH_1_5_MM}
        large = nets.write_registry(root / "full", tasks, nets.FULL)
        small = nets.write_registry(root / "small", {"total": nets.PATCH_1_5_MM}, nets.SMALL)
        one_tile = part.hu, part.affine_ras
        cases = (
            Case("demo 3 mm", weights_dir(), "total_fast", image, ("--fast",), 5 if full else 2),
            Case("full-size 3 mm", large, "total_fast", image, ("--fast",), few, engine_repeats=2),
            Case("full-size 1.5 mm, one tile", large, "trunk_cavities", one_tile, ("--task", "trunk_cavities"), few),
        )
        outside: dict[str, float] = {}
        for case in cases:
            found = contest(case, root / case.folder_name)
            if case.image is image:
                outside[case.name] = found.engine.outside_s
            yield from compared(case, found)
        # Every further model of the demo on the same image; no peer is needed to hold the bar.
        for task in ("total_fastest", "tissue_types"):
            outside[f"demo {task}"] = engine_alone(weights_dir(), task, image, 3).outside_s
        # What is around the 1.5 mm networks of `total` does not depend on how much is in them.
        parts = engine_alone(small, "total", image, 3).outside_s
        outside["small 1.5 mm, mean of five parts"] = parts / len(task_spec("total").models)
        if full:
            outside["full-size 1.5 mm"] = engine_alone(large, "trunk_cavities", image, 1).outside_s
        yield from outside_figures(outside)
        yield from segment_shared.figures(root / "shared")
        yield from largest(small)
    yield from segment_cuda.figures()


def outside_figures(outside: dict[str, float]) -> Iterator[dict[str, object]]:
    """The largest of `outside` (model to seconds) against its bar, then all."""
    worst = max(outside, key=lambda model: outside[model])
    yield {
        "figure": "segment.outside_forward_s",
        "value": round(outside[worst], 3),
        "unit": f"s per model on 267 x 200 x 80; the largest of {len(outside)}: {worst}",
        "bar": "<=0.6",
    }
    for model, seconds in outside.items():
        yield {"figure": f"segment.outside_forward_s {model}", "value": round(seconds, 3), "unit": "s"}


def compared(case: Case, found: Contest) -> Iterator[dict[str, object]]:
    """The ratio of what lies outside the forward pass, the same labels, and all totals as information."""
    plain = case.name == "demo 3 mm"
    yield {
        "figure": "segment.overhead_vs_api" if plain else f"segment.overhead_vs_api {case.name}",
        "value": round(found.engine.outside_s, 3),
        "unit": "s outside the forward pass",
        "peer": UPSTREAM,
        "peer_value": round(found.api.outside_s, 3),
        "bar": "<=0.125",
    }
    yield {
        "figure": f"segment.voxels_unlike_api {case.name}",
        "value": found.unlike,
        "unit": "voxels with another label than the API's",
        "bar": "==0",
    }
    for spent, label in ((found.engine, "warm engine"), (found.api, UPSTREAM), (found.cli, CLI)):
        yield {"figure": f"segment.total_s {case.name}: {label}", "value": round(spent.total_s, 2), "unit": "s"}
        yield {
            "figure": f"segment.forward_s {case.name}: {label}",
            "value": round(spent.forward_s, 2),
            "unit": "s inside the network",
        }


def largest(weights: Path) -> Iterator[dict[str, object]]:
    """Peak memory of `total` in five parts on 512 x 512 x 1000 voxels of 1.5 mm: the real patch, step and labels."""
    command = [sys.executable, "-m", "bench.segment_large", str(weights), "total"]
    found = json.loads(finished(command).splitlines()[-1])
    yield {
        "figure": "segment.memory_large_gib",
        "value": round(found["peak_gib"], 2),
        "unit": "GiB, peak of the process, 512 x 512 x 1000 at 1.5 mm, five parts, triple split",
        "bar": "<=16",
    }
    yield {
        "figure": "segment.memory_large_labels",
        "value": found["labels"],
        "unit": f"labels found by {found['tiles']} tiles of {found['models']} models",
        "bar": ">1",
    }
    for key, unit in (("before_gib", "GiB"), ("total_s", "s"), ("forward_s", "s")):
        yield {"figure": f"segment.memory_large_{key}", "value": round(found[key], 2), "unit": unit}
