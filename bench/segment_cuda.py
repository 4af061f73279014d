"""Exact and turbo beside each other: seconds per study, the network's share of them, memory; on an accelerator.

`python -m bench segment` runs it where torch finds one and says so where it does not; `python -m bench.segment_cuda`
runs it alone, and with `cpu` the part with the demo nets on the CPU. Turbo tries its steps as a replica does, with the
seconds that the package gives it. On an accelerator the large nets are random and of TotalSegmentator's full size and
patch: what a network says does not change how long it takes. But it is noise, in which a last bit is another label, so
there alone the steps of turbo are kept for the time they save; the demo nets run beside them, with turbo's gate as it
is delivered. What turbo does to labels is held by tests/integration/segmentation/test_turbo.py as well.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import nets
from bench.__main__ import completed
from bench.phantoms import chest_and_abdomen

TASKS = {"total": nets.PATCH_1_5_MM, "total_fast": nets.PATCH_3_MM}
RESOLUTION = {"total": "1.5 mm", "total_fast": "3 mm"}
DEMO_TASKS = ("total_fastest", "total_fast", "tissue_types")
REPEATS = 3
MODES = ("exact", "turbo")
SHARE = ">=0.8"
GIB = float(1 << 30)


@dataclass(frozen=True)
class Measured:
    """One task in one mode on studies that the engine had not seen.

    Attributes:
        total_s: median of a study's seconds.
        forward_s: of them, inside the bare networks.
        cpu_s: median of the process's CPU seconds, all threads.
        ready_s: from nothing to warm, with all that turbo tries.
        memory_gib: peak of what torch took on the accelerator, all models loaded; 0.0 on a CPU.
        uploads: images that were copied to the accelerator for one study.
        steps: by which the models are faster, each once.
        labels: `[i, j, k]` of the last study.
    """

    total_s: float
    forward_s: float
    cpu_s: float
    ready_s: float
    memory_gib: float
    uploads: float
    steps: tuple[str, ...]
    labels: Any

    @property
    def share(self) -> float:
        """The network's part of a study's seconds."""
        return self.forward_s / self.total_s


@contextmanager
def judged_by_time_alone() -> Generator[None]:
    """The steps of turbo are kept whatever they do to the noise of random nets."""
    from heimdallr_ray.segmentation.totalseg import turbo

    before = turbo.LEAST_DICE
    turbo.LEAST_DICE = 0.0
    try:
        yield
    finally:
        turbo.LEAST_DICE = before


def study(weights: Path, task: str, image: tuple[Any, Any], device: str, mode: str, repeats: int = REPEATS) -> Measured:
    """One task in one mode on a fresh engine, so that the peak is its own."""
    import torch

    from heimdallr_ray.segmentation.tasks import task_spec
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume, VolumeSource

    on_cuda = device != "cpu"
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    engine = ResidentEngine(weights, device, mode=mode)
    engine.warm_up()
    ready_s = time.perf_counter() - began
    copied = engine.copied_images
    turns, cpu_s = [], []
    labels: Any = None
    for _ in range(1 + repeats):
        volume = Volume(*image, VolumeSource("CT", synthetic=True))
        before = time.process_time()
        made = engine.segment(volume, task)
        cpu_s.append(time.process_time() - before)
        turns.append(made.timings)
        labels = made.label_map.array
    faster = engine.info().turbo
    mine = [faster.get(model.model_id, ()) for model in task_spec(task).models]
    return Measured(
        # The first turn warms up what the tile of warm_up does not reach.
        total_s=statistics.median(turn.total_s for turn in turns[1:]),
        forward_s=statistics.median(turn.forward_s for turn in turns[1:]),
        cpu_s=statistics.median(cpu_s[1:]),
        ready_s=ready_s,
        memory_gib=torch.cuda.max_memory_allocated() / GIB if on_cuda else 0.0,
        uploads=(engine.copied_images - copied) / (1 + repeats),
        steps=tuple(dict.fromkeys(step for steps in mine for step in steps)),
        labels=labels,
    )


def figures() -> Iterator[dict[str, object]]:
    """Yield the figures of a study of 512 x 512 x 300 at 1.5 and 3 mm, exact and turbo; none without an accelerator."""
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write("segment: no accelerator here, its figures are left out\n")
        return
    image = chest_and_abdomen()
    name = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory(prefix="segment-cuda-") as folder:
        for task, patch in TASKS.items():
            weights = nets.write_registry(Path(folder) / task, {task: patch}, nets.FULL)
            with judged_by_time_alone():
                found = {mode: study(weights, task, image, "cuda", mode) for mode in MODES}
            yield from on_accelerator(RESOLUTION[task], name, found)
    yield from demo_nets("cuda")


def on_accelerator(resolution: str, device: str, found: dict[str, Measured]) -> Iterator[dict[str, object]]:
    """The figures of one resolution; the bar is on exact mode."""
    for mode, one in found.items():
        where = f"{resolution} {mode}"
        steps = f", {', '.join(one.steps) or 'no step'} by time alone" if mode != "exact" else ""
        yield {
            "figure": f"segment.cuda_study_s {where}",
            "value": round(one.total_s, 3),
            "unit": f"s, 512 x 512 x 300 on {device}{steps}",
        }
        yield {"figure": f"segment.cuda_forward_s {where}", "value": round(one.forward_s, 3), "unit": "s, networks"}
        yield {
            "figure": f"segment.cuda_forward_share {where}",
            "value": round(one.share, 3),
            "unit": "share of the study's seconds",
            **({"bar": SHARE} if mode == "exact" else {}),
        }
        yield {
            "figure": f"segment.cuda_memory_gib {where}",
            "value": round(one.memory_gib, 2),
            "unit": "GiB of the device at most, all models loaded",
        }
        yield {"figure": f"segment.cuda_uploads {where}", "value": one.uploads, "unit": "images copied per study"}
        yield {"figure": f"segment.cuda_ready_s {where}", "value": round(one.ready_s, 1), "unit": "s until warm"}


def demo_nets(device: str, repeats: int = REPEATS) -> Iterator[dict[str, object]]:
    """Exact and turbo with the demo nets, turbo as it is delivered, and how well their labels agree."""
    from heimdallr_ray.segmentation.demo import phantom, weights_dir
    from heimdallr_ray.segmentation.totalseg.turbo import worst_dice

    body = phantom.make(2001, (1.5, 1.5, 3.0), (150.0, 390.0))
    for task in DEMO_TASKS:
        image = body.hu, body.affine_ras
        found = {mode: study(weights_dir(), task, image, device, mode, repeats) for mode in MODES}
        exact, turbo = found["exact"], found["turbo"]
        worst = worst_dice(exact.labels, turbo.labels)
        yield {
            "figure": f"segment.turbo_cpu_s {device} {task}",
            "value": round(turbo.cpu_s, 3),
            "unit": f"CPU s per study, 267 x 200 x 80; {', '.join(turbo.steps) or 'no step'}",
            "peer": "exact",
            "peer_value": round(exact.cpu_s, 3),
        }
        yield {
            "figure": f"segment.turbo_total_s {device} {task}",
            "value": round(turbo.total_s, 3),
            "unit": f"s; ready after {turbo.ready_s:.0f} s instead of {exact.ready_s:.0f} s",
            "peer": "exact",
            "peer_value": round(exact.total_s, 3),
        }
        yield {
            "figure": f"segment.turbo_dice {device} {task}",
            "value": round(worst[1] if worst else 0.0, 5),
            "unit": "Dice of the label that agrees least with exact mode",
            "bar": ">=0.999",
        }


def main(arguments: list[str]) -> int:
    """Print the figures, one JSON object a line; 0 if every bar holds."""
    held: list[bool] = []
    for figure in demo_nets("cpu") if arguments == ["cpu"] else figures():
        line = completed("segment", figure)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        held.append(line["ok"] is True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
