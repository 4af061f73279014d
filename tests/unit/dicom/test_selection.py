"""Which series is chosen, and the code and words for each other one."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydicom import dcmread

from heimdallr_ray.dicom.series import (
    Line,
    Override,
    Phase,
    Purpose,
    Selection,
    Series,
    SeriesDecision,
    after_refusal,
    break_tie,
    default_rules,
    group,
    select,
)
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_study, indexed, to_bytes

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


def study_of(*members: list[bytes]) -> list[Series]:
    index, _ = indexed([content for member in members for content in member])
    return group(index)


def decision_of(selection: Selection, name: str) -> SeriesDecision:
    return next(one for one in selection.decisions if one.description == name)


@pytest.mark.parametrize(
    ("kernel", "manufacturer", "code"),
    [
        ("Br60", "SIEMENS", "sharp_kernel"),
        ("YA", "Philips", "sharp_kernel"),
        ("FC51", "TOSHIBA", "sharp_kernel"),
        ("STD+", "GE MEDICAL SYSTEMS", "chosen"),
        (["Br38f", "3"], "SIEMENS", "chosen"),
        (["Bl57f", "3"], "SIEMENS", "sharp_kernel"),
        ("UB", "Philips", "chosen"),
    ],
)
def test_kernels_that_the_original_took_for_others(kernel: str | list[str], manufacturer: str, code: str):
    made = series("only", 1, ConvolutionKernel=kernel, Manufacturer=manufacturer)
    assert selected(made)[1] == {"only": code}


def test_a_native_bone_series_does_not_beat_a_portal_soft_one():
    """The original's phase score outweighed everything."""
    native = series("native", 1, ConvolutionKernel="Br64")
    portal = series("portal venous", 2, ConvolutionKernel="Br40", ContrastBolusAgent="Iomeron")
    assert selected(native, portal)[1] == {"native": "sharp_kernel", "portal venous": "chosen"}


def test_the_thinnest_does_not_win_before_its_kernel_is_asked():
    thin = series("thin", 1, n=39, spacing_mm=1.0, ConvolutionKernel="Br49")
    thick = series("soft", 2, n=13, spacing_mm=3.0, ConvolutionKernel="Br40")
    assert selected(thin, thick)[1] == {"thin": "outranked", "soft": "chosen"}


@pytest.mark.parametrize(("purpose", "code"), [("lung", "chosen"), ("bone", "chosen"), ("volume", "sharp_kernel")])
def test_for_lung_and_bone_the_sharp_kernel_is_wanted(purpose: Purpose, code: str):
    found = select(study_of(series("soft", 1), series("sharp", 2, ConvolutionKernel="Bl57")), purpose)
    assert decision_of(found, "sharp").code == code
    assert found.rules is not None
    assert found.rules.purpose == purpose


def test_mr_does_not_serve_the_lung():
    mr = series("mr", 1, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    assert decision_of(select(study_of(mr), "lung"), "mr").code == "wrong_modality"


def test_few_images_in_several_planes_are_planning_images():
    plan = series("plan", 1, 3)
    sagittal = ["0", "1", "0", "0", "0", "-1"]
    other = series("plan", 1, 3, ImageOrientationPatient=sagittal)
    for number, content in enumerate(other):
        dataset = dcmread(io.BytesIO(content))
        dataset.SOPInstanceUID = str(Uid.derived("other", str(number)))
        dataset.ImagePositionPatient = [str(10 * number), "-180", "0"]
        other[number] = to_bytes(dataset)
    found = select(study_of(plan, other))
    assert {one.code for one in found.decisions} == {"localizer"}
    assert len(found.decisions) == 2


def test_thickness_that_no_header_names_is_the_distance_of_the_slices():
    selection, codes = selected(series("only", 1, spacing_mm=7.0, SliceThickness=None))
    assert codes == {"only": "too_thick"}
    assert selection.decisions[0].reason == "slices up to 7 mm apart, at most 5 mm can be measured"


def test_thin_slices_far_apart_are_as_thick_as_their_distance():
    far = series("far", 1, n=14, spacing_mm=10.0, SliceThickness="1")
    assert selected(far)[1] == {"far": "too_thick"}
    # Slices of 1 mm at 4 mm do not beat whole ones of 3 mm for being thin.
    apart, whole = (
        series("apart", 1, n=24, spacing_mm=4.0, SliceThickness="1"),
        series("whole", 2, n=31, spacing_mm=3.0),
    )
    assert selected(apart, whole)[1] == {"apart": "outranked", "whole": "chosen"}


@pytest.mark.parametrize(
    ("spacing_mm", "thickness"), [(0.7, "0.625"), (0.5, "1"), (2.0, "2"), (5.00004, "5"), (5.00004, "4")]
)
def test_slices_that_touch_or_overlap_are_as_thick_as_their_header_says(spacing_mm: float, thickness: str):
    assert selected(series("only", 1, n=24, spacing_mm=spacing_mm, SliceThickness=thickness))[1] == {"only": "chosen"}


def test_a_head_fits_into_a_small_field():
    small: dict[str, Any] = {"PixelSpacing": ["3", "3"]}
    head = decision_of(select(study_of(series("head", 1, **small, BodyPartExamined="HEAD"))), "head")
    body = decision_of(select(study_of(series("body", 1, **small, BodyPartExamined="ABDOMEN"))), "body")
    assert (dict(head.score)["penalty"], dict(body.score)["penalty"]) == (0.0, 2.0)


def test_every_rule_leaves_a_line_up_to_the_one_that_decides():
    found = select(
        study_of(series("better", 1), series("worse", 2, KVP="80"), series("bone", 3, ConvolutionKernel="BONE"))
    )
    better, worse, bone = (decision_of(found, name) for name in ("better", "worse", "bone"))
    profile = default_rules().profiles("volume")[0]
    assert [one.rule for one in better.lines] == [*profile.refuse, "geometry", "modality", *profile.order]
    assert {one.effect for one in better.lines} == {"passed", "ranked"}
    assert [(one.rule, one.value, one.score) for one in worse.lines if one.effect == "decides"] == [
        ("energy", "80 kVp", 40.0)
    ]
    assert [(one.rule, one.value) for one in bone.lines if one.effect == "refused"] == [("sharp_kernel", "BONE: sharp")]
    assert tuple((one.rule, one.score) for one in worse.lines if one.score is not None) == worse.score


class TestAPersonsChoice:
    def choose(self, *members: list[bytes], name: str, part: int | None = None) -> Selection:
        study = study_of(*members)
        uid = next(one.uid for one in study if one.header.series_description == name)
        return select(
            study, override=Override(uid, part, "dr. who", "2026-01-02T03:04:05+00:00", "motion in the other")
        )

    def test_it_is_followed_against_the_rank(self):
        found = self.choose(series("better", 1), series("worse", 2, KVP="80"), name="worse")
        worse, better = decision_of(found, "worse"), decision_of(found, "better")
        assert (worse.accepted, worse.code, worse.chosen_by) == (True, "chosen", "person")
        assert worse.reason.startswith("chosen by a person: dr. who (motion in the other); 20 slices")
        assert (better.accepted, better.code, better.chosen_by) == (False, "other_chosen", "")
        assert found.chosen is not None
        assert found.finalists[0].series is found.chosen
        assert len(found.finalists) == 1

    def test_it_overrules_what_finds_a_series_unsuitable(self):
        found = self.choose(series("soft", 1), series("bone", 2, ConvolutionKernel="BONE"), name="bone")
        bone = decision_of(found, "bone")
        assert bone.accepted
        assert "although sharp_kernel" in bone.reason
        assert [one.rule for one in bone.lines if one.effect == "overruled"] == ["sharp_kernel"]

    @pytest.mark.parametrize(
        ("code", "overrides"),
        [
            ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
            ("no_geometry", {"ImageOrientationPatient": None}),
            ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ],
    )
    def test_what_is_no_volume_stays_refused_by_name(self, code: str, overrides: dict[str, object]):
        found = self.choose(series("soft", 1), series("odd", 2, **overrides), name="odd")  # type: ignore[arg-type]
        odd = decision_of(found, "odd")
        assert found.chosen is None
        assert (odd.accepted, odd.code, odd.can_be_chosen) == (False, code, False)
        assert decision_of(found, "soft").code == "other_chosen"
        assert decision_of(found, "soft").can_be_chosen

    def test_a_series_that_is_not_there_is_not_replaced_by_another(self):
        found = select(study_of(series("soft", 1)), override=Override(Uid("1.2.3")))
        assert found.chosen is None


class TestFinalists:
    ONE = ("one", {"ContrastBolusAgent": "Iomeron", "AcquisitionTime": "101000"})
    TWO = ("two", {"ContrastBolusAgent": "Iomeron", "AcquisitionTime": "101200"})

    def of(self, *members: tuple[str, Mapping[str, object]]) -> Selection:
        return select(study_of(*(series(name, 1 + at, **more) for at, (name, more) in enumerate(members))))  # type: ignore[arg-type]

    def names(self, selection: Selection) -> list[str]:
        return [one.series.header.series_description for one in selection.finalists]

    def test_series_that_only_an_untold_phase_could_part(self):
        found = self.of(self.ONE, self.TWO)
        assert self.names(found) == ["one", "two"]
        assert [one.header_phase.phase for one in found.finalists] == [Phase.CONTRAST, Phase.CONTRAST]

    def test_at_most_two(self):
        assert len(self.of(self.ONE, self.TWO, ("three", dict(self.TWO[1]))).finalists) == 2

    @pytest.mark.parametrize(
        "other",
        [
            ("two", {"ConvolutionKernel": "DETAIL"}),
            ("arterial", {"ContrastBolusAgent": "Iomeron"}),
        ],
    )
    def test_what_a_rank_or_the_headers_part_is_no_tie(self, other: tuple[str, Mapping[str, object]]):
        told = ("portal venous", {"ContrastBolusAgent": "Iomeron"})
        assert self.names(self.of(told, other)) == ["portal venous"]

    def test_nothing_is_better_than_the_preferred_phase(self):
        assert self.names(self.of(("native", {}), self.TWO)) == ["native"]

    def test_the_model_prefers_a_better_phase(self):
        found = break_tie(self.of(self.ONE, self.TWO), [Phase.ARTERIAL, Phase.PORTAL_VENOUS])
        assert found.chosen is not None
        assert found.chosen.header.series_description == "two"
        assert self.names(found) == ["two", "one"]
        one, two = decision_of(found, "one"), decision_of(found, "two")
        assert (one.accepted, one.code, two.accepted, two.code) == (False, "outranked", True, "chosen")
        assert one.lines[-1] == Line("phase_model", "arterial", "prefers")
        assert "contrast phase model" in one.reason
        assert [item.accepted for item in found.decisions].count(True) == 1

    @pytest.mark.parametrize(
        ("readings", "effects"),
        [
            ([Phase.ARTERIAL, Phase.NATIVE], ["prefers", "disagrees"]),
            ([Phase.ARTERIAL, None], ["prefers", "tie"]),
            ([Phase.PORTAL_VENOUS, Phase.PORTAL_VENOUS], ["prefers", "prefers"]),
        ],
    )
    def test_against_the_headers_or_undecided_the_order_stands(self, readings: list[Phase | None], effects: list[str]):
        before = self.of(self.ONE, self.TWO)
        found = break_tie(before, readings)
        assert found.chosen is before.chosen
        assert [decision_of(found, name).lines[-1].effect for name in ("one", "two")] == effects
        assert decision_of(found, "one").code == "chosen"

    def test_without_a_tie_nothing_changes(self):
        found = self.of(self.ONE)
        assert break_tie(found, [Phase.NATIVE]) is found


class TestAnotherReader:
    MOSAIC: ClassVar[dict[str, Any]] = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], "n": 2}

    def only(self, code: str) -> bool:
        return code == "mosaic"

    def test_its_series_ranks_behind_all_others(self):
        study = study_of(series("tiled", 1, **self.MOSAIC), series("plain", 2))
        found = select(study, fallback=self.only)
        assert (decision_of(found, "plain").code, found.fallback_code) == ("chosen", "")
        assert (decision_of(found, "tiled").code, decision_of(found, "tiled").can_be_chosen) == ("mosaic", True)

    def test_it_is_asked_where_nothing_else_is_left(self):
        found = select(study_of(series("tiled", 1, **self.MOSAIC)), fallback=self.only)
        assert found.chosen is not None
        assert (found.fallback_code, decision_of(found, "tiled").accepted) == ("mosaic", True)

    def test_refused_there_it_is_no_volume_and_the_next_one_is_asked(self):
        study = study_of(*(series(name, number, **self.MOSAIC) for number, name in enumerate("abcde", start=1)))
        found = select(study, fallback=self.only)
        assert [one.series.header.series_description for one in found.fallbacks] == ["b", "c"]
        after = after_refusal(found, "four_d", "several time points")
        assert (decision_of(after, "a").code, decision_of(after, "a").can_be_chosen) == ("four_d", False)
        assert decision_of(after, "a").lines[-1].effect == "refused"
        assert (decision_of(after, "b").code, decision_of(after, "b").accepted) == ("chosen", True)
        assert "only the converter" in decision_of(after, "b").reason
        assert after.chosen is not None
        assert (after.chosen.header.series_description, after.fallback_code) == ("b", "mosaic")
        none = after_refusal(after_refusal(after, "mosaic", "x"), "mosaic", "y")
        assert (none.chosen, none.fallback_code, none.fallbacks) == (None, "", ())
        assert not any(one.accepted for one in none.decisions)
        assert after_refusal(none, "mosaic", "z") is none

    def test_a_series_that_a_person_named_gives_place_to_no_other(self):
        study = study_of(series("a", 1, **self.MOSAIC), series("b", 2, **self.MOSAIC))
        named = Override(study[1].uid, None, "Dr. Who", "", "it is the one")
        found = select(study, override=named, fallback=self.only)
        assert (decision_of(found, "b").chosen_by, found.fallbacks) == ("person", ())
        assert "Dr. Who (it is the one)" in decision_of(found, "b").reason
        assert after_refusal(found, "mosaic", "x").chosen is None

    def test_what_is_unsuitable_besides_is_not(self):
        made = series("MIP tiled", 1, **self.MOSAIC)
        found = select(study_of(made), fallback=self.only)
        assert (found.chosen, found.decisions[0].code) == (None, "mosaic")
