from __future__ import annotations

import pytest

from heimdallr_ray.dicom.kernels import Sharpness, sharpness


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("Br38f\\3", Sharpness.SOFT),
        ("B30f", Sharpness.SOFT),
        ("Hr44", Sharpness.SOFT),
        ("Br49d", Sharpness.MEDIUM),
        ("Br60", Sharpness.SHARP),
        ("B70s", Sharpness.SHARP),
        ("STANDARD", Sharpness.SOFT),
        ("STD+", Sharpness.SOFT),
        ("BONEPLUS", Sharpness.SHARP),
        ("UB", Sharpness.SOFT),
        ("YA", Sharpness.SHARP),
        ("FC08", Sharpness.SOFT),
        ("FC18-H", Sharpness.SOFT),
        ("FC30", Sharpness.SHARP),
        ("FC51", Sharpness.SHARP),
        ("", None),
        ("hemipelvis", None),
    ],
)
def test_sharpness_of_vendor_kernels(kernel: str, expected: Sharpness | None):
    assert sharpness(kernel) is expected
