"""The contrast phase model reads what TotalSegmentator's own command reads from the same medians."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.segmentation.phase import ORGANS, ContrastPhase, PhaseFeatures, PhaseModel, phase_at

PORTAL = dict(zip(ORGANS, (110, 105, 20, 20, 150, 160, 150, 160, 130, 130, 150, 150, 160, 0, 70, 90), strict=True))
NATIVE = dict(zip(ORGANS, (55, 40, 5, 10, 40, 40, 40, 40, 40, 40, 40, 40, 40, 0, 30, 35), strict=True))
ARTERIAL = dict(zip(ORGANS, (70, 80, 10, 10, 220, 320, 80, 60, 40, 40, 300, 300, 200, 0, 60, 80), strict=True))


@pytest.fixture(scope="module")
def model() -> PhaseModel:
    return PhaseModel()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("medians", "decided"),
    [
        (PORTAL, ContrastPhase.PORTAL_VENOUS),
        (NATIVE, ContrastPhase.NATIVE),
        (ARTERIAL, ContrastPhase.ARTERIAL_LATE),
        (
            {name: float(hu) for hu, name in zip(np.random.default_rng(3).integers(-50, 350, 16), ORGANS, strict=True)},
            ...,
        ),
    ],
    ids=["portal", "native", "arterial", "random"],
)
def test_equals_upstream(model: PhaseModel, medians: dict[str, float], decided: Any) -> None:
    from totalsegmentator.bin.totalseg_get_phase import get_ct_contrast_phase, pi_time_to_phase

    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    existing = {name: {"intensity": hu, "volume": 0.0} for name, hu in medians.items()}
    *_, last = cast(Iterator[dict[str, Any]], get_ct_contrast_phase(image, existing_stats=existing, quiet=True))
    upstream = last["result"]
    ours = model.predict(PhaseFeatures(medians, {}))
    assert ours.seconds == upstream["pi_time"]
    assert (str(ours.phase), ours.probability) == (upstream["phase"], upstream["probability"])
    assert round(min(ours.folds_s), 2) == upstream["pi_time_min"]
    assert round(max(ours.folds_s), 2) == upstream["pi_time_max"]
    if decided is not ...:
        assert ours.decided is decided
    for tenth in range(-20, 1300):
        assert phase_at(tenth / 10) == pi_time_to_phase(tenth / 10)
