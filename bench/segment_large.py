"""One very large study through the engine in a process of its own, whose peak memory is measured.

Run as `python -m bench.segment_large WEIGHTS_DIR TASK`. It prints one JSON object: {"peak_rss_gib",
"before_gib", "total_s", "forward_s", "labels"}.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from bench.phantoms import long_trunk

KIB_PER_GIB = 1 << 20


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


def main(weights_dir: str, task: str) -> None:
    """Segment once and tell what it took."""
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume, VolumeSource

    hu, affine = long_trunk()
    volume = Volume(hu, affine, VolumeSource("CT", synthetic=True))
    engine = ResidentEngine(Path(weights_dir))
    engine.warm_up()
    before = peak_gib()
    made = engine.segment(volume, task)
    found = {
        "peak_rss_gib": peak_gib(),
        "before_gib": before,
        "total_s": made.timings.total_s,
        "forward_s": made.timings.forward_s,
        "labels": int(np.count_nonzero(np.bincount(made.label_map.array.ravel()))),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
