"""TotalSegmentator's command line with its forward pass timed: what it does is its own `main`, in this process.

Run as a script: `segment_cli.py WEIGHTS_DIR HOME_DIR FORWARD.json OPTION...`; the options are those of the command. The
process starts others that import this file again, so everything is behind the guard.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

CONFIG = {
    "totalseg_id": "totalseg_heimdallr",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}


def main(weights_dir: str, home_dir: str, target: str, *options: str) -> None:
    """The command has run once; the seconds inside its network calls are in `target`."""
    Path(home_dir).mkdir(parents=True, exist_ok=True)
    (Path(home_dir) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    os.environ["TOTALSEG_HOME_DIR"] = home_dir
    os.environ["TOTALSEG_WEIGHTS_PATH"] = weights_dir
    from totalsegmentator.config import setup_nnunet

    setup_nnunet()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from totalsegmentator.bin.TotalSegmentator import main as command

    spent = {"forward_s": 0.0}
    predictor: Any = nnUNetPredictor
    bare = predictor._internal_maybe_mirror_and_predict

    def timed(self: object, x: object) -> object:
        began = time.perf_counter()
        result = bare(self, x)
        spent["forward_s"] += time.perf_counter() - began
        return result

    predictor._internal_maybe_mirror_and_predict = timed
    sys.argv = ["TotalSegmentator", *options]
    command()
    Path(target).write_text(json.dumps(spent), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
