"""The vendors' names of kernels, as the package's own rule file has them."""

from __future__ import annotations

import pytest

from heimdallr_ray.dicom.kernels import KernelRow, Sharpness, sharpness
from heimdallr_ray.dicom.rules import default_rules


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
        ("['Br38f', '3']", Sharpness.SOFT),
        ("Bl57", Sharpness.SHARP),
        ("Standard", Sharpness.SOFT),
        ("DETAIL", Sharpness.MEDIUM),
        ("FC43", Sharpness.UNKNOWN),
        ("", Sharpness.UNKNOWN),
        ("hemipelvis", Sharpness.UNKNOWN),
        ("BONES", Sharpness.UNKNOWN),
    ],
)
def test_sharpness_of_vendor_kernels(kernel: str, expected: Sharpness) -> None:
    assert sharpness(kernel, default_rules().file.kernels) is expected


def test_the_vocabulary_of_the_images_own_manufacturer_is_asked_first() -> None:
    ours = KernelRow(vendor="A", manufacturer=("ACME",), soft=("X",))
    theirs = KernelRow(vendor="B", manufacturer=("GE",), sharp=("X",))
    rows = (ours, theirs)
    assert sharpness("X", rows) is Sharpness.SOFT
    assert sharpness("X", rows, "GE MEDICAL SYSTEMS") is Sharpness.SHARP
    assert sharpness("X", rows, "Acme Ltd") is Sharpness.SOFT
