"""Headers that lie about geometry: the right volume to 0.1 %, or a refusal by name; never a wrong number.

A ball of known volume is measured. What the assembler flags as `missing_slices` or `variable_spacing` counts as
refused, because no volume is counted on such an image (`metrics.gates.require_contiguous`).
"""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from pydicom.dataset import Dataset

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.series import Series, group
from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.ids import Uid
from heimdallr_ray.volume import Volume
from tests.support.bounds import within
from tests.support.dicom import ct_datasets, indexed, new_uid, set_pixels, to_bytes

SLICES, ROWS, COLUMNS = 96, 80, 72
CENTRE_LPS, RADIUS_MM = np.array([-144.0, -140.0, -102.0]), 25.0
GATED = {"missing_slices", "variable_spacing"}


def ball(dataset: Dataset) -> Dataset:
    """`dataset` with 1000 HU for the share of each pixel that lies inside the ball, above -1000."""
    origin = np.array([float(value) for value in dataset.ImagePositionPatient])
    row, column = (
        np.array(dataset.ImageOrientationPatient[:3], float),
        np.array(dataset.ImageOrientationPatient[3:], float),
    )
    down, across = (float(value) for value in dataset.PixelSpacing)
    j, i = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    points = origin + (i[..., None] * across) * row + (j[..., None] * down) * column
    depth = RADIUS_MM - np.linalg.norm(points - CENTRE_LPS, axis=-1)
    # One mm of soft border makes the sum of shares the volume of the ball to well under 0.1 %.
    stored = np.rint(2000 * np.clip(0.5 + depth, 0, 1)).astype(np.uint16)
    return set_pixels(dataset, stored + np.uint16(24))


def study(change: Callable[[Dataset, int], None] = lambda dataset, k: None) -> list[Dataset]:
    """The ball in an honest series, after `change` moved its slices; pixels show what lies at each slice."""
    made = ct_datasets(SLICES, (ROWS, COLUMNS), PixelSpacing=["1.0", "1.0"])
    for k, dataset in enumerate(made):
        change(dataset, k)
        ball(dataset)
    return made


def volume_ml(volume: Volume) -> float:
    share = (np.asarray(volume.array, np.float64) + 1000) / 2000
    return float(share.sum()) * volume.voxel_ml


TRUE_ML = 4 / 3 * math.pi * RADIUS_MM**3 / 1000


@cache
def honest() -> tuple[bytes, ...]:
    return tuple(to_bytes(dataset) for dataset in study())


def missing_slice() -> list[bytes]:
    return [content for k, content in enumerate(honest()) if k != 48]


def many_missing_slices() -> list[bytes]:
    return [content for k, content in enumerate(honest()) if k not in (45, 46, 47, 48)]


def duplicate_position() -> list[bytes]:
    made = study()
    return [to_bytes(dataset) for dataset in (*made, new_uid(copy.deepcopy(made[40]), "again"))]


def duplicate_position_with_other_pixels() -> list[bytes]:
    made = study()
    other = new_uid(copy.deepcopy(made[40]), "again")
    other.PixelData = made[10].PixelData
    return [to_bytes(dataset) for dataset in (*made, other)]


def mixed_spacing() -> list[bytes]:
    def change(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-180, -180, -150.0 + min(k, 48) + 1.4 * max(k - 48, 0)]

    return [to_bytes(dataset) for dataset in study(change)]


def tilt() -> list[bytes]:
    def change(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [-180, round(-190 + k * math.tan(math.radians(15)), 6), -150.0 + k]

    return [to_bytes(dataset) for dataset in study(change)]


def reversed_order() -> list[bytes]:
    def change(dataset: Dataset, k: int) -> None:
        dataset.InstanceNumber = SLICES - k
        dataset.SliceLocation = str(-k)

    return [to_bytes(dataset) for dataset in study(change)][::-1]


def two_frames_of_reference() -> list[bytes]:
    def change(dataset: Dataset, k: int) -> None:
        if k % 2:
            dataset.FrameOfReferenceUID = str(Uid.derived("another"))

    return [to_bytes(dataset) for dataset in study(change)]


def slope(text: bytes) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        field = b"DS" + struct.pack("<H", len(text)) + text
        return [content.replace(b"DS\x02\x001 ", field) for content in honest()]

    return made


def without(*keywords: str) -> Callable[[], list[bytes]]:
    def made() -> list[bytes]:
        datasets = study()
        for dataset in datasets:
            for keyword in keywords:
                del dataset[keyword]
        return [to_bytes(dataset) for dataset in datasets]

    return made


def said(**values: object) -> Callable[[], list[bytes]]:
    """The pixels of the honest series under other values in its headers."""

    def made() -> list[bytes]:
        datasets = study()
        for dataset in datasets:
            for keyword, value in values.items():
                setattr(dataset, keyword, value)
        return [to_bytes(dataset) for dataset in datasets]

    return made


def turned_midway() -> list[bytes]:
    datasets = study()
    for dataset in datasets[50:]:
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0.9396926", "0.3420201"]
    return [to_bytes(dataset) for dataset in datasets]


def assembled(series: Series, read: Callable[[str], bytes]) -> tuple[Volume | None, str]:
    """The volume, or the code of the refusal."""
    try:
        return assemble(series, read), ""
    except NotAVolume as error:
        return None, error.reason


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        pytest.param(honest, "", id="none"),
        pytest.param(missing_slice, "missing_slices", id="missing slice"),
        pytest.param(many_missing_slices, "missing_slices", id="four missing slices"),
        pytest.param(duplicate_position, "", id="duplicate position"),
        pytest.param(
            duplicate_position_with_other_pixels, "conflicting_duplicates", id="duplicate position, other pixels"
        ),
        pytest.param(mixed_spacing, "variable_spacing", id="mixed spacing"),
        pytest.param(tilt, "", id="tilt of 15 degrees"),
        pytest.param(reversed_order, "", id="reversed order"),
        pytest.param(slope(b"0 "), "bad_rescale", id="slope 0"),
        pytest.param(slope(b"NaN "), "bad_rescale", id="slope NaN"),
        pytest.param(without("RescaleSlope"), "bad_rescale", id="slope absent"),
        pytest.param(without("RescaleSlope", "RescaleIntercept"), "bad_rescale", id="slope and intercept absent"),
        pytest.param(said(PixelSpacing=["0", "0"]), "bad_spacing", id="pixel spacing 0"),
        pytest.param(said(ImagePositionPatient=["0", "0", "0"]), "single_slice", id="slice spacing 0"),
        pytest.param(said(SpacingBetweenSlices="7", SliceThickness="3"), "", id="another spacing in the headers"),
    ],
)
def test_a_lie_about_geometry_gives_the_right_volume_or_a_refusal(
    lie: Callable[[], Sequence[bytes]], code: str
) -> None:
    index, read = indexed(lie())
    (series,) = group(index)
    with within(waiting_s=1.0):
        volume, refused = assembled(series, read)
    if volume is None:
        assert refused == code
        # What may be resampled on request carries the flag on which no volume is counted.
        if code not in GATED:
            return
        volume = assemble(series, read, resample=True)
        assert GATED & {flag.partition(":")[0] for flag in volume.flags}
        assert volume_ml(volume) == pytest.approx(TRUE_ML, rel=0.01)
        return
    flags = {flag.partition(":")[0] for flag in volume.flags}
    assert bool(GATED & flags) == (code in GATED)
    assert volume_ml(volume) == pytest.approx(TRUE_ML, rel=0.001)


def test_two_frames_of_reference_are_two_volumes_and_each_is_right() -> None:
    index, read = indexed(two_frames_of_reference())
    series = group(index)
    volumes = [assemble(one, read) for one in series]
    assert len({volume.source.frame_of_reference_uid for volume in volumes}) == len(volumes) == 2
    for volume in volumes:
        assert volume.spacing_mm[2] == pytest.approx(2.0)
        assert volume_ml(volume) == pytest.approx(TRUE_ML, rel=0.001)


def test_slices_that_turn_midway_do_not_become_one_volume() -> None:
    index, read = indexed(turned_midway())
    series = group(index)
    assert sorted(len(one.instances) for one in series) == [SLICES - 50, 50]
    turned = next(one for one in series if len(one.instances) == SLICES - 50)
    assert assemble(turned, read).flags == ("tilt:20.0",)
