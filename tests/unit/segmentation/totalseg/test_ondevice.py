from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from heimdallr_ray.segmentation.totalseg import ondevice
from heimdallr_ray.segmentation.totalseg.geometry import Image
from heimdallr_ray.segmentation.totalseg.ondevice import MOST_IMAGES, CtNormaliser, Uploads, proven_normaliser
from heimdallr_ray.segmentation.totalseg.study import ModelImage

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# what TotalSegmentator's own plans say of several models, rounded
REAL = [(-1004.0, 1588.0, -50.38, 503.39), (-931.5, 826.0, 2.11, 218.67), (-55.0, 98.0, 32.7, 19.3)]


def intensities(lower: float, upper: float, mean: float, std: float) -> dict[str, Any]:
    return {"0": {"percentile_00_5": lower, "percentile_99_5": upper, "mean": mean, "std": std}}


@pytest.mark.parametrize("values", REAL)
def test_ct_is_normalised_on_the_device_in_nnunets_bits(values: tuple[float, float, float, float]) -> None:
    assert proven_normaliser(["CTNormalization"], intensities(*values), DEVICE) == CtNormaliser(*values)


def test_where_one_value_differs_in_its_last_bit_the_host_normalises(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CtNormaliser.__call__

    def nearly(self: CtNormaliser, image: torch.Tensor) -> torch.Tensor:
        made = call(self, image)
        made[len(made) // 2] = torch.nextafter(made[len(made) // 2], torch.tensor(9e9, device=made.device))
        return made

    monkeypatch.setattr(ondevice.CtNormaliser, "__call__", nearly)
    assert proven_normaliser(["CTNormalization"], intensities(*REAL[0]), DEVICE) is None


@pytest.mark.parametrize("schemes", [["ZScoreNormalization"], [], ["CTNormalization", "CTNormalization"]])
def test_other_normalisations_stay_on_the_host(schemes: list[str]) -> None:
    assert proven_normaliser(schemes, intensities(*REAL[0]), DEVICE) is None


@pytest.mark.parametrize("bounds", [(float("nan"), 1.0), (0.0, 1e9), (5.0, 4.0), (-float("inf"), 0.0)])
def test_bounds_that_no_ct_has_stay_on_the_host(bounds: tuple[float, float]) -> None:
    assert proven_normaliser(["CTNormalization"], intensities(*bounds, 0.0, 1.0), DEVICE) is None


def test_a_model_image_is_copied_once_and_goes_with_it() -> None:
    uploads = Uploads(DEVICE)
    images = [made(value) for value in range(2)]
    for value in (0, 1, 0, 1, 0, 1):
        assert float(uploads.of(images[value])[0, 0, 0]) == value
    assert uploads.copied == 2
    del images[0]
    gc.collect()
    assert uploads.held == 1


def test_only_the_latest_few_are_kept() -> None:
    uploads = Uploads(DEVICE)
    images = [made(value) for value in range(MOST_IMAGES + 1)]
    for image in images:
        uploads.of(image)
    uploads.of(images[-1])
    assert uploads.copied == len(images)
    uploads.of(images[0])
    assert uploads.copied == len(images) + 1
    uploads.forget()
    uploads.of(images[0])
    assert uploads.copied == len(images) + 2


def made(value: int) -> ModelImage:
    zyx = np.full((2, 2, 2), value, np.float32)
    return ModelImage(zyx, np.eye(4), Image(zyx, np.eye(4)))
