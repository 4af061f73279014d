"""Images on an accelerator: uploaded once for all models at one spacing, and normalised there where that is exact."""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from heimdallr_ray.segmentation.totalseg.study import ModelImage

MOST_IMAGES: Final = 2
"""As many as studies are open at once: each works at one spacing at a time."""
_MOST_VALUES: Final = 1 << 17
"""Twice what 16 bits hold; a wider window of intensities is not CT."""
_FAR: Final = float(1 << 24)
_CT: Final = "CTNormalization"


@dataclass(frozen=True)
class CtNormaliser:
    """nnU-Net's `CTNormalization` in torch: clip, subtract the mean, divide by the standard deviation, in float32."""

    lower: float
    upper: float
    mean: float
    deviation: float

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A new float32 tensor where `image` is."""
        # by a tensor on the device: torch multiplies by the reciprocal of a number, which rounds twice
        deviation = torch.tensor(self.deviation, dtype=torch.float32, device=image.device)
        return image.clamp(self.lower, self.upper).sub_(self.mean).div_(deviation)


def proven_normaliser(schemes: list[str], intensities: Mapping[str, Any], device: torch.device) -> CtNormaliser | None:
    """A normaliser that gives nnU-Net's bits on `device` for every whole number, or None where none does.

    All whole numbers between the bounds, and some beyond, go through nnU-Net's own function on the host and through
    ours on the device; there are a few thousand, so this is a proof and no sample.

    Args:
        schemes: nnU-Net's names, one for each channel.
        intensities: of the training images, by channel.
        device: where the images are.
    """
    if schemes != [_CT]:
        return None
    known = cast("Mapping[str, float]", intensities["0"])
    lower, upper = float(known["percentile_00_5"]), float(known["percentile_99_5"])
    if not (math.isfinite(lower) and math.isfinite(upper) and 0 <= upper - lower < _MOST_VALUES):
        return None
    made = CtNormaliser(lower, upper, float(known["mean"]), max(float(known["std"]), 1e-8))
    inside = np.arange(math.floor(lower) - 1, math.ceil(upper) + 2, dtype=np.float32)
    values = np.concatenate([inside, np.array([-_FAR, 0.0, _FAR], np.float32)])
    scheme: Any = cast(Any, CTNormalization)(use_mask_for_norm=False, intensityproperties=dict(known))
    expected = cast("np.ndarray[Any, np.dtype[np.float32]]", scheme.run(values.copy()))
    found = made(torch.from_numpy(values).to(device)).cpu().numpy()
    return made if expected.tobytes() == found.tobytes() else None


class Uploads:
    """Model images on a device, each copied there once for as long as it lives; the latest few only."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._there: OrderedDict[weakref.ref[ModelImage], torch.Tensor] = OrderedDict()
        # a study may end, and its images with it, in any thread, and in the one that is inside here
        self._lock = threading.RLock()
        self.copied = 0
        """How many images were copied so far."""

    @property
    def held(self) -> int:
        """How many images are on the device."""
        return len(self._there)

    def of(self, image: ModelImage) -> torch.Tensor:
        """`image.zyx` on the device; not to be changed.

        Raises:
            torch.OutOfMemoryError: the device is full.
        """
        key = weakref.ref(image, self._gone)
        with self._lock:
            found = self._there.get(key)
            if found is None:
                while len(self._there) >= MOST_IMAGES:
                    self._there.popitem(last=False)
                found = torch.from_numpy(image.zyx).to(self._device)
                self.copied += 1
                self._there[key] = found
            self._there.move_to_end(key)
            return found

    def forget(self) -> None:
        """Nothing of them is on the device any more."""
        with self._lock:
            self._there.clear()

    def _gone(self, image: weakref.ref[ModelImage]) -> None:
        with self._lock:
            self._there.pop(image, None)
