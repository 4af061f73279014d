"""TotalSegmentator as it comes, once, in a process of its own, with its forward pass timed: the engine's peer.

Run as a script:
`segment_upstream.py api WEIGHTS_DIR HOME_DIR TIMES.json INPUT.nii LABELS.npy TASK` calls its Python API, whose labels
go to LABELS.npy; `segment_upstream.py cli WEIGHTS_DIR HOME_DIR TIMES.json OPTION...` is its command with these options.
TIMES.json then holds {"wall_s", "forward_s"}: seconds of the call or command without imports, and inside the network.
Both start processes that import this file again, so everything is behind the guard.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

CONFIG = {
    "totalseg_id": "totalseg_heimdallr",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}
# Of tasks whose name is not all that the API is told.
FLAGS: dict[str, dict[str, Any]] = {
    "total_fastest": {"task": "total", "fastest": True},
    "total_fast": {"task": "total", "fast": True},
}


def main(mode: str, weights_dir: str, home_dir: str, times: str, *rest: str) -> None:
    """It has run; what it took is in `times`."""
    Path(home_dir).mkdir(parents=True, exist_ok=True)
    (Path(home_dir) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    os.environ["TOTALSEG_HOME_DIR"] = home_dir
    os.environ["TOTALSEG_WEIGHTS_PATH"] = weights_dir
    from totalsegmentator.config import setup_nnunet

    setup_nnunet()
    work = {"api": api, "cli": command_line}[mode](*rest)
    forward = timed_forward()
    began = time.perf_counter()
    keep = work()
    spent = {"wall_s": time.perf_counter() - began, "forward_s": sum(forward)}
    keep()
    Path(times).write_text(json.dumps(spent), encoding="utf-8")


def timed_forward() -> list[float]:
    """Seconds of each network call of this process from now on."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    seconds: list[float] = []
    predictor: Any = nnUNetPredictor
    bare = predictor._internal_maybe_mirror_and_predict

    def timed(self: object, x: object) -> object:
        began = time.perf_counter()
        result = bare(self, x)
        seconds.append(time.perf_counter() - began)
        return result

    predictor._internal_maybe_mirror_and_predict = timed
    return seconds


def api(source: str, target: str, task: str) -> Callable[[], Callable[[], None]]:
    """The call, as its own documentation has it, and after it the labels' way to `target`."""
    import nibabel as nib
    import numpy as np
    from totalsegmentator.python_api import totalsegmentator

    image = cast("nib.Nifti1Image", nib.load(source))
    flags = FLAGS.get(task, {"task": task})

    def work() -> Callable[[], None]:
        # A pair only where statistics are asked for.
        labels = cast("nib.Nifti1Image", totalsegmentator(image, None, ml=True, device="cpu", quiet=True, **flags))
        return lambda: np.save(target, np.asanyarray(labels.dataobj), allow_pickle=False)

    return work


def command_line(*options: str) -> Callable[[], Callable[[], None]]:
    """The command's own `main`; its labels are where `options` say."""
    from totalsegmentator.bin.TotalSegmentator import main as command

    def work() -> Callable[[], None]:
        sys.argv = ["TotalSegmentator", *options]
        command()
        return lambda: None

    return work


if __name__ == "__main__":
    main(*sys.argv[1:])
