"""One very large study through the engine in a process of its own, whose peak memory is measured.

Run as `python -m bench.segment_large WEIGHTS_DIR TASK`. The nets of WEIGHTS_DIR may be small: as many of full size are
held all the time, and one of them works on one tile while the engine is in the middle of its study, so that their
weights and activations are in the peak. It prints one JSON object: {"peak_gib", "before_gib", "total_s", "forward_s",
"labels", "tiles", "models"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from bench.forward import watched
from bench.phantoms import long_trunk

KIB_PER_GIB = 1 << 20
FULL_TILE_AT = 40
"""The tile of the study beside which the full-size net works: sums and image of the first part are all there."""


def peak_gib() -> float:
    """Largest resident memory of this program so far.

    Not of `getrusage`, whose figure begins with that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / KIB_PER_GIB
    raise OSError("/proc/self/status has no VmHWM")


class Beside:
    """Counts the calls of networks; right after one of them, `work` gets its tile.

    Attributes:
        tiles: calls so far, those of `work` left out.
    """

    def __init__(self, number: int, work: Callable[[Any], object]) -> None:
        """Args: the call (from 1), and what is done after it."""
        self._number, self._work = number, work
        self._working = False
        self.tiles = 0

    def watching(self) -> AbstractContextManager[None]:
        """Inside, calls are seen."""
        return watched(after=self._after)

    def _after(self, tile: Any) -> None:  # noqa: ANN401 - torch's tensor
        if self._working:
            return
        self.tiles += 1
        if self.tiles == self._number:
            self._working = True
            self._work(tile)
            self._working = False


def main(weights_dir: str, task: str) -> None:
    """Segment once and tell what it took.

    Raises:
        ValueError: the study took another road for want of memory, or the full-size net never worked.
    """
    from bench import nets
    from heimdallr_ray.segmentation.tasks import task_spec
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume, VolumeSource
    from tools.nnunet_files import upstream_labels

    hu, affine = long_trunk()
    volume = Volume(hu, affine, VolumeSource("CT", synthetic=True))
    engine = ResidentEngine(Path(weights_dir))
    engine.warm_up()
    spec = task_spec(task)
    heads = [len(upstream_labels(spec, model)) + 1 for model in spec.models]
    full = [nets.FULL.network(count).eval().requires_grad_(False) for count in heads]
    largest = full[heads.index(max(heads))]
    before = peak_gib()
    beside = Beside(FULL_TILE_AT, largest)
    with beside.watching():
        made = engine.segment(volume, task)
    if made.steps or beside.tiles < FULL_TILE_AT:
        raise ValueError(f"{beside.tiles} tiles, steps for want of memory: {made.steps}")
    found = {
        "peak_gib": peak_gib(),
        "before_gib": before,
        "total_s": made.timings.total_s,
        "forward_s": made.timings.forward_s,
        "labels": int(np.count_nonzero(np.bincount(made.label_map.array.ravel()))),
        "tiles": beside.tiles,
        "models": len(full),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
