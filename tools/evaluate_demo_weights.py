"""Measure a folder of demo weights on unseen phantoms, through the engine that serves studies; prints JSON lines.

python -m tools.evaluate_demo_weights --weights heimdallr_ray/segmentation/demo/weights --cases 20
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from heimdallr_ray.segmentation.demo import evaluation, weights_dir
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Command line; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_dir())
    parser.add_argument("--cases", type=int, default=len(evaluation.TORSO_SEEDS))
    parser.add_argument("--what", default="total,tissue,head")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    engine = ResidentEngine(arguments.weights, arguments.device, arguments.threads)
    scorers = {
        "total": (evaluation.score_total, evaluation.torso_case, evaluation.TORSO_SEEDS),
        "tissue": (evaluation.score_tissue, evaluation.torso_case, evaluation.TORSO_SEEDS),
        "head": (evaluation.score_head, evaluation.head_case, evaluation.HEAD_SEEDS),
    }
    scored: list[dict[str, evaluation.Score]] = []
    for what in arguments.what.split(","):
        scorer, case, seeds = scorers[what]
        for seed in seeds[: arguments.cases]:
            made = case(seed)
            began = time.perf_counter()
            scores = scorer(engine, made)
            scored.append(scores)
            _say(what=what, seed=seed, phase=made.truth.phase.name, seconds=round(time.perf_counter() - began, 2),
                 scores={name: asdict(score) for name, score in scores.items()})  # fmt: skip
    means = evaluation.mean_dice(scored)
    missed = {name: value for name, value in means.items() if value < evaluation.MIN_MEAN_DICE[name]}
    without = [s["bleed"].found_ml for s in scored if "bleed" in s and s["bleed"].truth_ml == 0]
    _say(mean_dice={k: round(v, 4) for k, v in means.items()}, missed=missed, ml_found_without_bleed=without)
    return 1 if missed or any(without) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
