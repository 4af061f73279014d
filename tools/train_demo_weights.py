"""Train the demo networks on phantoms and write them in TotalSegmentator's layout.

    python -m tools.train_demo_weights fit 298 --minutes 8 --work /tmp/train
    python -m tools.train_demo_weights fit 150 --minutes 8 --work /tmp/train     # crops with the 298 trained there
    python -m tools.train_demo_weights assemble --work /tmp/train --out heimdallr_ray/segmentation/demo/weights

A killed `fit` resumes from its last checkpoint when called again with the same arguments. Progress goes to standard
output as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.demo_weights import assembly, fit
from tools.demo_weights.recipes import RECIPES


def main(argv: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fit", help="train one network")
    one.add_argument("dataset_id", type=int, choices=sorted(RECIPES))
    one.add_argument("--minutes", type=float, required=True, help="whole training time, checkpoints included")
    one.add_argument("--work", type=Path, required=True)
    one.add_argument("--device", default="cpu")
    one.add_argument("--restart-at", type=float, default=None, help="begin a warm restart at this learning rate")
    one.add_argument("--box-weights", type=Path, default=None, help="weights folder whose 298 crops the heads for 150")
    one.add_argument("--checkpoint-seconds", type=float, default=60.0, help="what a kill may cost")
    whole = commands.add_parser("assemble", help="write the weights folder with its manifest")
    whole.add_argument("--work", type=Path, required=True)
    whole.add_argument("--out", type=Path, required=True)
    whole.add_argument("--scores", type=Path, nargs="*", default=[], help="outputs of evaluate_demo_weights to quote")
    arguments = parser.parse_args(argv)
    if arguments.command == "assemble":
        sys.stdout.write(json.dumps(assembly.assemble(arguments.work, arguments.out, arguments.scores)) + "\n")
        return 0
    recipe = RECIPES[arguments.dataset_id]
    options = fit.Options(
        seconds=arguments.minutes * 60.0,
        work=arguments.work,
        device=arguments.device,
        restart_learning_rate=arguments.restart_at,
        box_weights=arguments.box_weights or arguments.work / "export" / "298",
        checkpoint_every_s=arguments.checkpoint_seconds,
    )
    fit.fit(recipe, options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
