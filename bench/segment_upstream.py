"""TotalSegmentator's own Python API in a process of its own: the peer of the resident engine.

Run as a script: `segment_upstream.py SAVERS WEIGHTS_DIR HOME_DIR INPUT.nii OUT_DIR TASK...`. SAVERS is the number of
export processes (the API's own default is 6; the result does not depend on it). For each task it writes `TASK.nii`
(the bytes of the returned image) and `TASK.json` ({"wall_s", "forward_s"}). The API starts processes that import this
file again, so everything is behind the guard.
"""

from __future__ import annotations

import json
import os
import sys
import time
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
    "total": {"task": "total"},
    "cerebral_bleed": {"task": "cerebral_bleed"},
}


def main(savers: str, weights_dir: str, home_dir: str, source: str, out_dir: str, *tasks: str) -> None:
    """Each task has run once through the API; results and times are in `out_dir`."""
    Path(home_dir).mkdir(parents=True, exist_ok=True)
    (Path(home_dir) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    os.environ["TOTALSEG_HOME_DIR"] = home_dir
    os.environ["TOTALSEG_WEIGHTS_PATH"] = weights_dir
    from totalsegmentator.config import setup_nnunet

    setup_nnunet()
    import nibabel as nib
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from totalsegmentator.nnunet import nnUNet_predict_image
    from totalsegmentator.python_api import totalsegmentator

    image = cast("nib.Nifti1Image", nib.load(source))
    spent = {"forward_s": 0.0}
    predictor: Any = nnUNetPredictor
    bare = predictor._internal_maybe_mirror_and_predict

    def timed(self: object, x: object) -> object:
        began = time.perf_counter()
        result = bare(self, x)
        spent["forward_s"] += time.perf_counter() - began
        return result

    predictor._internal_maybe_mirror_and_predict = timed
    for task in tasks:
        spent["forward_s"] = 0.0
        began = time.perf_counter()
        if task == "tissue_types":
            # below the licence gate: our synthetic weights are nobody else's
            result, _, _ = nnUNet_predict_image(
                image,
                None,
                481,
                model="3d_fullres",
                folds=[0],
                trainer="nnUNetTrainer",
                task_name="tissue_types",
                resample=1.5,
                device="cpu",
                quiet=True,
                nr_threads_saving=int(savers),
            )
        else:
            flags: dict[str, Any] = {**FLAGS.get(task, {"task": task}), "nr_thr_saving": int(savers)}
            # A pair only where statistics are asked for.
            returned = totalsegmentator(image, None, ml=True, device="cpu", quiet=True, **flags)
            result = cast("nib.Nifti1Image", returned)
        wall_s = time.perf_counter() - began
        (Path(out_dir) / f"{task}.nii").write_bytes(result.to_bytes())
        times = {"wall_s": wall_s, "forward_s": spent["forward_s"]}
        (Path(out_dir) / f"{task}.json").write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
