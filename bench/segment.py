"""What a warm engine spends outside the network, against what TotalSegmentator's own API spends outside it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME = "segment"

TASK = "total_fast"
REPEATS = 2
REPEATS_FULL = 5
LIMIT_S = 1800.0
API_SAVERS = "6"
"""Export processes of the API: its default."""


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield the ratio on one study (repeats alternate), and in a full run the cost of the demo's largest study."""
    import nibabel as nib

    from heimdallr_ray.segmentation.demo import phantom, weights_dir
    from heimdallr_ray.segmentation.tasks import TISSUE_TYPES
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
    from heimdallr_ray.volume import Volume, VolumeSource

    body = phantom.make(2001, (2.0, 2.0, 2.5), (150.0, 450.0))
    volume = Volume(body.hu, body.affine_ras, VolumeSource("CT", synthetic=True))
    engine = ResidentEngine(weights_dir())
    engine.warm_up()
    ours: list[float] = []
    peers: list[float] = []
    with tempfile.TemporaryDirectory(prefix="segment-overhead-") as name:
        source = Path(name) / "source.nii"
        nib.save(nib.Nifti1Image(body.hu, body.affine_ras), source)
        for _ in range(REPEATS_FULL if full else REPEATS):
            fresh = Volume(volume.array, volume.affine_ras, volume.source)
            ours.append(engine.segment(fresh, TASK).timings.outside_forward_s)
            peers.append(_upstream_outside_s(weights_dir(), source, Path(name)))
    yield {
        "figure": "segment.outside_forward_vs_api",
        "value": statistics.median(ours),
        "unit": "s",
        "peer": "totalsegmentator() 2.18",
        "peer_value": statistics.median(peers),
        "bar": "<=0.1667",
    }
    if not full:
        return
    large = phantom.chest_abdomen(2001)
    spent: list[float] = []
    for _ in range(3):
        fresh = Volume(large.hu, large.affine_ras, VolumeSource("CT", synthetic=True))
        first = engine.segment(fresh, "total_fastest").timings
        spent.append((first + engine.segment(fresh, TASK).timings).outside_forward_s)
        spent[-1] += engine.segment(fresh, TISSUE_TYPES).timings.outside_forward_s
    yield {
        "figure": "segment.outside_forward_chest_abdomen_298_297_481",
        "value": statistics.median(spent),
        "unit": "s",
        "bar": "<=4.0",
    }


def _upstream_outside_s(weights: Path, source: Path, folder: Path) -> float:
    """Seconds of one API call outside its bare forward pass, without the start of its process and imports."""
    script = Path(__file__).with_name("segment_upstream.py")
    command = [
        sys.executable,
        str(script),
        API_SAVERS,
        str(weights),
        str(folder / "home"),
        str(source),
        str(folder),
        TASK,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
    times = json.loads((folder / f"{TASK}.json").read_text(encoding="utf-8"))
    return float(times["wall_s"] - times["forward_s"])
