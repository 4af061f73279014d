"""TotalSegmentator's contrast phase model: seconds after injection from the attenuation of segmented organs.

Five gradient-boosted regressors in a file of the TotalSegmentator package read 20 medians. The file is a pickle: its
digest is pinned here and compared before a byte of it is interpreted. No torch, and nothing of TotalSegmentator is
imported. Upstream loads the regressors before torch because of a crash on macOS; on Linux either order works.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from heimdallr_ray.errors import WeightsMissing, WeightsTampered
from heimdallr_ray.volume import LabelMap, Volume, require_same_grid

FILE: Final = "resources/contrast_phase_classifiers_2024_07_19.pkl"
SHA256: Final = "7ecd43bf3fb6a6770c26c77cfbbb46e8a190eeddd53351138aa21715c4e273b2"
BYTES: Final = 1_565_223

ORGANS: Final = (
    "liver",
    "pancreas",
    "urinary_bladder",
    "gallbladder",
    "heart",
    "aorta",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "iliac_vena_left",
    "iliac_vena_right",
    "iliac_artery_left",
    "iliac_artery_right",
    "pulmonary_vein",
    "brain",
    "colon",
    "small_bowel",
)
"""In the order in which the regressors read them (`totalseg_get_phase.py`)."""
NECK_VESSELS: Final = 4
"""Read as 0 HU where no brain is in the image, as upstream does."""
BRAIN_MM3: Final = 100.0
"""From this on upstream segments the neck's vessels too. We do not, so then nothing is decided."""
TELLING: Final = ("liver", "aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein", "heart")
"""Absent organs read 0 HU, which looks native: without two of these the model only tells what is not in the image."""
LEAST_TELLING: Final = 2
LEAST_ML: Final = 1.0
LEAST_PROBABILITY: Final = 0.7


class ContrastPhase(StrEnum):
    """The phases that the model tells apart."""

    NATIVE = "native"
    ARTERIAL_EARLY = "arterial_early"
    ARTERIAL_LATE = "arterial_late"
    PORTAL_VENOUS = "portal_venous"

    @property
    def family(self) -> str:
        """`native`, `arterial` or `portal_venous`."""
        return "arterial" if self in (ContrastPhase.ARTERIAL_EARLY, ContrastPhase.ARTERIAL_LATE) else str(self)


_BOUNDS: Final = (
    (5.0, ContrastPhase.NATIVE, 1.0),
    (10.0, ContrastPhase.NATIVE, 0.7),
    (20.0, ContrastPhase.ARTERIAL_EARLY, 0.7),
    (30.0, ContrastPhase.ARTERIAL_EARLY, 1.0),
    (50.0, ContrastPhase.ARTERIAL_LATE, 1.0),
    (60.0, ContrastPhase.ARTERIAL_LATE, 0.7),
    (90.0, ContrastPhase.PORTAL_VENOUS, 1.0),
    (100.0, ContrastPhase.PORTAL_VENOUS, 0.7),
    (math.inf, ContrastPhase.PORTAL_VENOUS, 0.3),
)
"""Seconds below which a phase holds, and upstream's trust in it (`pi_time_to_phase`)."""


def phase_at(seconds: float) -> tuple[ContrastPhase, float]:
    """Phase and upstream's probability at a time after injection."""
    return next((phase, probability) for below, phase, probability in _BOUNDS if seconds < below)


@dataclass(frozen=True)
class PhaseReading:
    """What the five regressors say.

    Attributes:
        seconds: mean of the folds, after injection.
        folds_s: each fold's.
        phase: at the mean.
        probability: upstream's trust in it.
    """

    seconds: float
    folds_s: tuple[float, ...]
    phase: ContrastPhase
    probability: float

    @property
    def decided(self) -> ContrastPhase | None:
        """The phase, where upstream trusts it and every fold lies in the same family; else None."""
        families = {phase_at(one)[0].family for one in self.folds_s}
        return self.phase if self.probability >= LEAST_PROBABILITY and families == {self.phase.family} else None


@dataclass(frozen=True)
class PhaseFeatures:
    """Median HU and millilitres of each organ that is there, by name."""

    median_hu: Mapping[str, float]
    volume_ml: Mapping[str, float]

    @property
    def telling(self) -> bool:
        """True where enough is in the image for a phase to be told, and no head that upstream would look into more."""
        seen = sum(self.volume_ml.get(name, 0.0) >= LEAST_ML for name in TELLING)
        return seen >= LEAST_TELLING and self.volume_ml.get("brain", 0.0) * 1000.0 <= BRAIN_MM3

    @property
    def vector(self) -> tuple[float, ...]:
        """The 20 numbers that a regressor reads."""
        return (*(self.median_hu.get(name, 0.0) for name in ORGANS), *(0.0,) * NECK_VESSELS)


def features_of(volume: Volume, anatomy: LabelMap) -> PhaseFeatures:
    """Medians on the image's own voxels; upstream's are those of the image resampled to 3 mm, a few HU apart.

    Args:
        volume: CT, HU.
        anatomy: labels of `total` or `total_fast` on its grid.

    Raises:
        GeometryMismatch: the labels belong to another grid or image.
    """
    require_same_grid(volume, anatomy)
    medians: dict[str, float] = {}
    volumes: dict[str, float] = {}
    for name in ORGANS:
        value = anatomy.value_of(name)
        inside = volume.array[anatomy.array == value] if value is not None else volume.array[:0]
        if inside.size:
            medians[name] = float(np.median(inside))
            volumes[name] = inside.size * volume.voxel_ml
    return PhaseFeatures(medians, volumes)


class _Regressor(Protocol):
    def predict(self, X: list[list[float]], /) -> Any:  # noqa: ANN401
        """One number for each row."""
        ...


class PhaseModel:
    """The regressors, loaded on first use and kept. Threads may share one."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: another place of the same file; None: in the installed TotalSegmentator package."""
        self._file = file
        self._lock = threading.Lock()
        self._folds: tuple[_Regressor, ...] = ()

    def read(self, volume: Volume, anatomy: LabelMap) -> PhaseReading | None:
        """The reading of an image, or None where not enough of what tells a phase is in it.

        Raises:
            GeometryMismatch: the labels belong to another grid or image.
            WeightsMissing, WeightsTampered: the model's file.
        """
        features = features_of(volume, anatomy)
        return self.predict(features) if features.telling else None

    def predict(self, features: PhaseFeatures) -> PhaseReading:
        """What the regressors say of these medians.

        Raises:
            WeightsMissing, WeightsTampered: the model's file.
        """
        row = [list(features.vector)]
        with self._lock:
            self._folds = self._folds or _load(self._file or _installed())
            folds = tuple(float(one.predict(row)[0]) for one in self._folds)
        seconds = round(float(np.mean(folds)), 2)
        phase, probability = phase_at(seconds)
        return PhaseReading(seconds, folds, phase, probability)


def _installed() -> Path:
    spec = importlib.util.find_spec("totalsegmentator")
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    for place in places:
        return Path(place) / FILE
    raise WeightsMissing("TotalSegmentator is not installed, so its contrast phase model is not")


def _load(file: Path) -> tuple[_Regressor, ...]:
    try:
        with file.open("rb") as opened:
            content = opened.read(BYTES + 1)
    except OSError as error:
        raise WeightsMissing(f"the contrast phase model {file.name} cannot be read") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise WeightsTampered(f"{file.name} is not the contrast phase model that this version knows")
    try:
        import xgboost
    except ImportError as error:
        raise WeightsMissing("xgboost, which reads the contrast phase model, is not installed") from error
    # Verbosity: the file was written by an older XGBoost, which it says on each load; the digest fixes what it is.
    with xgboost.config_context(verbosity=0):
        folds: Mapping[int, _Regressor] = pickle.loads(content)  # noqa: S301 - the digest above is the permission
    return tuple(folds.values())
