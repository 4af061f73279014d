"""Seconds per study, the network's share of them and memory on an accelerator; a line that says so where there is none.

Nets are random and of TotalSegmentator's full size and patch: what a network says does not change how long it takes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import nets
from bench.phantoms import chest_and_abdomen

TASKS = {"total": nets.PATCH_1_5_MM, "total_fast": nets.PATCH_3_MM}
RESOLUTION = {"total": "1.5 mm", "total_fast": "3 mm"}
REPEATS = 3
GIB = float(1 << 30)


def figures() -> Iterator[dict[str, object]]:
    """Yield the figures of one study of 512 x 512 x 300, in exact mode."""
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("segment: no accelerator here, its figures are left out\n")
        return
    image = chest_and_abdomen()
    device = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory(prefix="segment-cuda-") as name:
        weights = nets.write_registry(Path(name), TASKS, nets.FULL)
        for task in TASKS:
            yield from study(weights, task, image, device)


def study(weights: Path, task: str, image: tuple[Any, Any], device: str) -> Iterator[dict[str, object]]:
    """One task on a fresh engine, so that the peak is its own."""
    import torch

    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume, VolumeSource

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = ResidentEngine(weights, "cuda")
    engine.warm_up()
    turns = []
    for _ in range(1 + REPEATS):
        volume = Volume(*image, VolumeSource("CT", synthetic=True))
        turns.append(engine.segment(volume, task).timings)
    # The first turn is the warm-up of what the tile of warm_up does not reach.
    total = statistics.median(turn.total_s for turn in turns[1:])
    forward = statistics.median(turn.forward_s for turn in turns[1:])
    where = f"{RESOLUTION[task]} exact"
    yield {
        "figure": f"segment.cuda_study_s {where}",
        "value": round(total, 2),
        "unit": f"s, 512 x 512 x 300 on {device}",
    }
    yield {
        "figure": f"segment.cuda_forward_share {where}",
        "value": round(forward / total, 3),
        "unit": "share of the study's seconds",
        "bar": ">=0.8",
    }
    yield {
        "figure": f"segment.cuda_memory_gib {where}",
        "value": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "unit": "GiB of the device at most, all models loaded",
    }
