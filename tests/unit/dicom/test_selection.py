"""Which series is chosen, and the code and words for each other one."""

from __future__ import annotations

import random

import pytest

from heimdallr_ray.dicom.selection import RULES
from heimdallr_ray.dicom.series import Selection, group, select
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_study, indexed

WIDE = {"PixelSpacing": ["12", "12"]}


def series(name: str, number: int, n: int = 20, **overrides: object) -> list[bytes]:
    given = {
        **WIDE,
        "SeriesDescription": name,
        "SeriesNumber": number,
        "StudyInstanceUID": Uid.derived("s"),
        **overrides,
    }
    return ct_study(n, seed=name, **given)  # type: ignore[arg-type]


def selected(*members: list[bytes], shuffle: int = 0) -> tuple[Selection, dict[str, str]]:
    objects = [content for member in members for content in member]
    random.Random(shuffle).shuffle(objects)
    index, _ = indexed(objects)
    selection = select(group(index))
    return selection, {item.description: item.code for item in selection.decisions}


def test_of_one_scan_the_soft_reconstruction_is_chosen_and_never_bone_localizer_or_picture():
    members = (
        series("scout", 1, 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        series("bone", 2, ConvolutionKernel="BONE"),
        series("soft", 3),
        series("summary", 4, 3, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SamplesPerPixel=3),
        series("thins MIP", 5, ImageType=["DERIVED", "SECONDARY", "AXIAL"]),
        series("projections", 6, ImageType=["DERIVED", "SECONDARY", "MIP"]),
    )
    for shuffle in range(4):
        selection, codes = selected(*members, shuffle=shuffle)
        assert codes == {
            "scout": "localizer",
            "bone": "sharp_kernel",
            "soft": "chosen",
            "summary": "not_volume_sop",
            "thins MIP": "projection",
            "projections": "projection",
        }
        assert selection.chosen is not None
        assert selection.chosen.header.series_description == "soft"
        assert all(item.reason and (item.code != item.reason) for item in selection.decisions)
        assert [item.accepted for item in selection.decisions].count(True) == 1


@pytest.mark.parametrize(
    ("better", "worse", "by"),
    [
        ({"n": 40}, {"n": 80, "spacing_mm": 0.25, "SliceThickness": "0.25"}, "coverage"),
        ({"spacing_mm": 1.5}, {"spacing_mm": 1.5, "ConvolutionKernel": "DETAIL"}, "kernel"),
        ({"n": 31, "spacing_mm": 2.0}, {"n": 16, "spacing_mm": 4.0}, "thickness"),
        ({}, {"KVP": "80"}, "energy"),
        ({}, {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "penalty"),
        ({}, {"PixelSpacing": ["3", "3"]}, "penalty"),
        ({}, {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "modality"),
    ],
)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_what_ranks_one_series_before_another(
    better: dict[str, object], worse: dict[str, object], by: str, order: tuple[int, int]
):
    selection, codes = selected(
        series("better", order[0], **{"n": 20, **better}),  # type: ignore[arg-type]
        series("worse", order[1], **{"n": 20, **worse}),  # type: ignore[arg-type]
    )
    assert codes == {"better": "chosen", "worse": "outranked"}
    reason = next(item.reason for item in selection.decisions if item.description == "worse")
    assert f"preferred by {by}" in reason


def test_equals_are_told_apart_by_series_number():
    assert selected(series("a", 7), series("b", 3))[1] == {"a": "outranked", "b": "chosen"}


@pytest.mark.parametrize(
    ("code", "overrides"),
    [
        ("too_few_slices", {"n": 9}),
        ("too_thick", {"SliceThickness": "7"}),
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("mosaic", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
        ("multiframe_without_groups", {"NumberOfFrames": 2}),
        ("no_geometry", {"ImageOrientationPatient": None}),
        ("bad_spacing", {"PixelSpacing": ["0", "0"]}),
        ("too_large", {"Rows": 65535, "Columns": 65535, "PixelData": b"\0\0"}),
    ],
)
def test_each_refusal_has_its_code(code: str, overrides: dict[str, object]):
    selection, codes = selected(series("only", 1, **overrides))  # type: ignore[arg-type]
    expected = "truncated" if code == "too_large" else code
    assert codes == {"only": expected}
    assert selection.chosen is None


def test_a_description_with_mip_inside_a_word_is_no_projection():
    assert selected(series("hemipelvis", 1))[1] == {"hemipelvis": "chosen"}


def test_an_empty_study_selects_nothing():
    assert select([]).chosen is None


def test_codes_of_the_rule_table_are_unique():
    assert len({rule.code for rule in RULES}) == len(RULES)
