"""TotalSegmentator's own Python API in a process of its own, for many images and tasks: what the engine must equal.

Run as a script with one argument, a JSON file:
{"weights", "home", "processes": bool, "cases": [{"source", "out", "task", "options"}]}. For each case the bytes of the
returned image are written to `out`. With `processes` false, nnU-Net's own sequential prediction stands in for the one
that spawns processes: the same functions of the same classes, without six seconds of imports per model. The API starts
processes that import this file again, so everything is behind the guard.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, cast

CONFIG = {
    "totalseg_id": "totalseg_heimdallr",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}


def _sequential(predictor: Any) -> None:
    def predict_from_files(
        self: Any, source: str, target: str, *, save_probabilities: bool, overwrite: bool, **_: object
    ) -> object:
        return predictor.predict_from_files_sequential(self, source, target, save_probabilities, overwrite, None)

    predictor.predict_from_files = predict_from_files


def _below_the_gate(image: Any, task: str) -> Any:
    """A licensed task without the API's question for a number: our random weights are nobody else's."""
    from totalsegmentator.map_tasks_config import DEFAULT_CONFIG, TASK_CONFIGS
    from totalsegmentator.nnunet import nnUNet_predict_image

    config = cast("dict[str, Any]", {**DEFAULT_CONFIG, **TASK_CONFIGS[task]})
    assert config["crop"] is None
    result, _, _ = nnUNet_predict_image(
        image,
        None,
        config["task_id"],
        model=config["model"],
        folds=config["folds"],
        trainer=config["trainer"],
        task_name=task,
        resample=config["resample"],
        device="cpu",
        quiet=True,
        nr_threads_saving=1,
    )
    return result


def main(file: str) -> None:
    """Every case has run."""
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    Path(job["home"]).mkdir(parents=True, exist_ok=True)
    (Path(job["home"]) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    os.environ["TOTALSEG_HOME_DIR"] = job["home"]
    os.environ["TOTALSEG_WEIGHTS_PATH"] = job["weights"]
    from totalsegmentator.config import setup_nnunet

    setup_nnunet()
    import nibabel as nib
    from totalsegmentator import nnunet
    from totalsegmentator.map_to_binary import commercial_models
    from totalsegmentator.python_api import totalsegmentator

    if not job["processes"]:
        _sequential(cast(Any, nnunet).nnUNetPredictor)
    for case in job["cases"]:
        image = cast("nib.Nifti1Image", nib.load(case["source"]))
        if case["task"] in commercial_models:
            result = _below_the_gate(image, case["task"])
        else:
            options: dict[str, Any] = {"ml": True, "device": "cpu", "quiet": True, "nr_thr_saving": 1}
            result = totalsegmentator(image, None, task=case["task"], **(options | case["options"]))
        Path(case["out"]).write_bytes(cast("nib.Nifti1Image", result).to_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
