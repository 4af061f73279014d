"""How good the demo networks are on bodies that none of them saw, measured through an engine as a study would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.segmentation.demo import anatomy, phantom
from heimdallr_ray.segmentation.demo.anatomy import Phase, Tissue
from heimdallr_ray.segmentation.engine import SegmentationEngine
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.volume import LabelMap, Volume, VolumeSource

TORSO_SEEDS: tuple[int, ...] = tuple(range(9000, 9020))
HEAD_SEEDS: tuple[int, ...] = tuple(range(9100, 9120))
"""Kept out of every training run; the weights' manifest lists what was used there."""

_LUNG_LEFT = (anatomy.LUNG_UPPER_LEFT, anatomy.LUNG_LOWER_LEFT)
_LUNG_RIGHT = (anatomy.LUNG_UPPER_RIGHT, anatomy.LUNG_MIDDLE_RIGHT, anatomy.LUNG_LOWER_RIGHT)
TOTAL_STRUCTURES: Mapping[str, tuple[int, ...]] = {
    "liver": (5,),
    "spleen": (1,),
    "kidney_right": (2,),
    "kidney_left": (3,),
    "lung_right": _LUNG_RIGHT,
    "lung_left": _LUNG_LEFT,
    "heart": (51,),
    "aorta": (52,),
    "vertebrae_L1": (31,),
    "vertebrae_L2": (30,),
    "vertebrae_L3": (29,),
    "vertebrae_L4": (28,),
    "vertebrae_L5": (27,),
}
VOLUME_STRUCTURES = ("liver", "spleen", "kidney_right", "kidney_left")

MIN_MEAN_DICE: Mapping[str, float] = {
    **{name: 0.75 if name.startswith("vertebrae") else 0.85 for name in TOTAL_STRUCTURES},
    "brain": 0.85,
    **{kind.name.lower(): 0.80 for kind in Tissue if kind is not Tissue.NONE},
    "bleed": 0.70,
}
"""Mean Dice over the cases that hold the structure; part of the promise of the demo weights."""


@dataclass(frozen=True)
class Score:
    """One structure in one case.

    Attributes:
        dice: overlap, None where neither truth nor prediction holds the structure.
        truth_ml: painted volume.
        found_ml: segmented volume.
    """

    dice: float | None
    truth_ml: float
    found_ml: float


def volume_of(made: phantom.Phantom) -> Volume:
    """The phantom as the image of a synthetic CT series."""
    return Volume(made.hu, made.affine_ras, VolumeSource(modality="CT", synthetic=True))


def compare(truth: NDArray[np.bool_], found: NDArray[np.bool_], voxel_ml: float) -> Score:
    """Dice and volumes of two masks on one grid."""
    in_truth, in_found = int(truth.sum()), int(found.sum())
    both = int((truth & found).sum())
    dice = 2.0 * both / (in_truth + in_found) if in_truth + in_found else None
    return Score(dice, in_truth * voxel_ml, in_found * voxel_ml)


def _compared(truth: NDArray[Any], labels: LabelMap, values: Sequence[int]) -> Score:
    return compare(np.isin(truth, values), np.isin(labels.array, values), labels.voxel_ml)


def torso_case(seed: int) -> phantom.Phantom:
    """Chest and abdomen at 2 x 2 x 3 mm, phase drawn from the seed."""
    return phantom.make(seed, (2.0, 2.0, 3.0), (20.0, 540.0), noise_hu=9.0)


def slab_case(seed: int) -> phantom.Phantom:
    """140 mm of the torso of `torso_case(seed)`, at a height drawn from the seed, for a quick look at the tissues.

    The tissue network is local, so a slab says nearly what the whole torso says, at a fifth of its cost: one
    `torso_case` takes about 8 s of CPU time, the demo's own chest and abdomen 18 s. Mean Dice of the promise is that of
    whole torsos.
    """
    low = float(np.random.default_rng((seed, 5)).uniform(20, 390))
    return phantom.make(seed, (1.6, 1.6, 3.0), (low, low + 140.0), noise_hu=9.0)


def head_case(seed: int) -> phantom.Phantom:
    """A head CT; three in four have one bleed of 6 to 45 ml, every fifth is contrast enhanced."""
    rng = np.random.default_rng((seed, 4))
    bleed_ml = (float(rng.uniform(6, 45)),) if seed % 4 else ()
    phase = Phase.PORTAL if seed % 5 == 0 else Phase.NATIVE
    fov_mm = (224.0, 256.0)
    return phantom.make(seed, (0.9, 0.9, 2.5), (606, 800), phase=phase, bleed_ml=bleed_ml, noise_hu=4.0, fov_mm=fov_mm)


def score_total(engine: SegmentationEngine, made: phantom.Phantom) -> dict[str, Score]:
    """Organs and lumbar levels by task `total_fast`."""
    labels = engine.segment(volume_of(made), TOTAL_FAST).label_map
    return {name: _compared(made.total, labels, values) for name, values in TOTAL_STRUCTURES.items()}


def score_tissue(engine: SegmentationEngine, made: phantom.Phantom) -> dict[str, Score]:
    """Subcutaneous fat, torso fat and skeletal muscle by task `tissue_types`."""
    labels = engine.segment(volume_of(made), TISSUE_TYPES).label_map
    kinds = [kind for kind in Tissue if kind is not Tissue.NONE]
    return {kind.name.lower(): _compared(made.tissue, labels, (int(kind),)) for kind in kinds}


def score_head(engine: SegmentationEngine, made: phantom.Phantom) -> dict[str, Score]:
    """Brain by `total_fast`, blood by `cerebral_bleed`."""
    volume = volume_of(made)
    bleed = engine.segment(volume, CEREBRAL_BLEED).label_map
    brain = engine.segment(volume, TOTAL_FAST).label_map
    return {
        "brain": _compared(made.total, brain, (anatomy.BRAIN,)),
        "bleed": compare(made.bleed, bleed.array > 0, bleed.voxel_ml),
    }


def mean_dice(cases: Iterable[Mapping[str, Score]]) -> dict[str, float]:
    """Structure to mean Dice over the cases whose truth holds it."""
    collected: dict[str, list[float]] = {}
    for scores in cases:
        for name, score in scores.items():
            if score.truth_ml > 0 and score.dice is not None:
                collected.setdefault(name, []).append(score.dice)
    return {name: float(np.mean(values)) for name, values in collected.items()}
