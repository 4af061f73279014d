"""What only unmeasured series show is named: a head beside a measured trunk is not passed over in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.regions import UNNAMED, flags, unmeasured_regions
from heimdallr_ray.dicom.series import IndexedInstance, Selection, group, select
from heimdallr_ray.ids import Uid
from tests.support.dicom import ct_study

PLAIN = read_header(ct_study(1, PixelSpacing=["12", "12"])[0])


def series(
    name: str, z_mm: tuple[int, int], *, body: str = "", frame: str = "one", step_mm: float = 5.0, kernel: str = "B30f"
) -> list[IndexedInstance]:
    """An axial series from z to z, by its headers alone."""
    made: list[IndexedInstance] = []
    for k in range(int((z_mm[1] - z_mm[0]) / step_mm) + 1):
        plane = replace(PLAIN.planes[0], ipp=(0.0, 0.0, z_mm[0] + k * step_mm))
        header = replace(
            PLAIN,
            series_uid=Uid.derived(name),
            sop_uid=Uid.derived(name, str(k)),
            instance_number=k,
            series_description=name,
            body_part=body,
            kernel=kernel,
            slice_thickness_mm=step_mm,
            frame_of_reference_uid=Uid.derived(frame),
            planes=(plane,),
        )
        made.append(IndexedInstance(header, f"{name}-{k}", 1 << 20))
    return made


def upright(
    name: str,
    z_mm: tuple[int, int],
    *,
    sagittal: bool = False,
    width_mm: int = 400,
    types: str = "DERIVED\\SECONDARY\\REFORMATTED",
    modality: str = "CT",
    frame: str = "one",
) -> list[IndexedInstance]:
    """A coronal or sagittal series whose images reach from z to z, margins and all."""
    across = (0.0, 1.0, 0.0) if sagittal else (1.0, 0.0, 0.0)
    rows, columns = (z_mm[1] - z_mm[0]) // 5, width_mm // 5
    made: list[IndexedInstance] = []
    for k in range(20):
        place = (k * 5.0, 0.0, float(z_mm[1])) if sagittal else (0.0, k * 5.0, float(z_mm[1]))
        plane = replace(PLAIN.planes[0], ipp=place, iop=(*across, 0.0, 0.0, -1.0), pixel_spacing=(5.0, 5.0))
        header = replace(
            PLAIN,
            sop_class_uid=None,
            modality=modality,
            series_uid=Uid.derived(name),
            sop_uid=Uid.derived(name, str(k)),
            instance_number=k,
            series_description=name,
            image_type=tuple(types.split("\\")),
            rows=rows,
            columns=columns,
            slice_thickness_mm=5.0,
            frame_of_reference_uid=Uid.derived(frame),
            planes=(plane,),
        )
        made.append(IndexedInstance(header, f"{name}-{k}", 1 << 20))
    return made


def as_mr(members: list[IndexedInstance]) -> list[IndexedInstance]:
    return [replace(one, header=replace(one.header, sop_class_uid=None, modality="MR")) for one in members]


def selected(*members: list[IndexedInstance]) -> Selection:
    return select(group([one for member in members for one in member]))


def test_a_head_beside_a_longer_trunk_is_named() -> None:
    head, trunk = series("Head 5.0", (600, 745), body="HEAD"), series("CAP 5.0", (0, 595), body="CHEST")
    selection = selected(head, trunk)
    assert selection.chosen is not None
    assert selection.chosen.header.series_description == "CAP 5.0"
    (found,) = unmeasured_regions(selection)
    assert (found.region, found.series_uid, found.outside_mm) == ("head", Uid.derived("Head 5.0"), 145.0)
    assert flags((found, found)) == ("region_not_measured:head",)


def test_a_bone_reconstruction_of_the_head_counts_too() -> None:
    found = unmeasured_regions(selected(series("Head", (600, 745), kernel="BONE"), series("Abdomen", (0, 300))))
    assert [one.region for one in found] == ["head"]


def test_frames_of_reference_are_compared_by_name() -> None:
    found = unmeasured_regions(selected(series("Brain", (0, 150), frame="two"), series("Abdomen", (0, 300))))
    assert [(one.region, one.outside_mm) for one in found] == [("head", None)]
    same = selected(series("Abdomen art", (900, 1100), frame="two"), series("Abdomen ven", (0, 300)))
    assert unmeasured_regions(same) == ()


def test_what_no_header_names_is_compared_by_place() -> None:
    found = unmeasured_regions(selected(series("a", (500, 645)), series("b", (0, 300))))
    assert [one.region for one in found] == [UNNAMED]
    assert unmeasured_regions(selected(series("a", (100, 245), frame="two"), series("b", (0, 300)))) == ()


@pytest.mark.parametrize("reach", [(0, 300), (-20, 320), (50, 250)])
def test_another_scan_of_the_same_region_is_not(reach: tuple[int, int]) -> None:
    other = series("Abdomen bone", reach, kernel="BONE")
    assert unmeasured_regions(selected(other, series("Abdomen", (0, 300)))) == ()


def test_pictures_plans_and_single_levels_are_no_scans() -> None:
    few, mip = series("Brain level", (600, 620)), series("Head MIP", (600, 745))
    assert unmeasured_regions(selected(few, mip, series("Abdomen", (0, 300)))) == ()


def test_where_nothing_is_chosen_nothing_is_missing() -> None:
    assert unmeasured_regions(selected(series("Brain level", (600, 620)))) == ()


COMPUTED = [
    "DERIVED\\SECONDARY\\REFORMATTED",
    "DERIVED\\SECONDARY\\MPR",
    "ORIGINAL\\PRIMARY\\CSA MPR",
    "DERIVED\\SECONDARY",
    "DERIVED\\PRIMARY\\CORONAL",
    "ORIGINAL\\PRIMARY\\AXIAL",
]


@pytest.mark.parametrize("sagittal", [False, True])
@pytest.mark.parametrize("types", COMPUTED)
def test_the_margins_of_a_reformat_show_nothing(types: str, sagittal: bool) -> None:
    padded = upright("Chest MPR", (-50, 350), types=types, sagittal=sagittal)
    selection = selected(padded, series("Chest 5.0", (0, 300)))
    assert selection.chosen is not None
    assert selection.chosen.header.series_description == "Chest 5.0"
    assert unmeasured_regions(selection) == ()
    unnamed = selected(upright("cor", (-50, 350), types=types, sagittal=sagittal), series("a", (0, 300)))
    assert unmeasured_regions(unnamed) == ()


def test_a_reformat_of_what_nobody_sent_still_tells_of_it() -> None:
    chest = series("Chest 5.0", (0, 300))
    # Elsewhere; taller than any margin makes it; named for what the chosen one does not show.
    for other, region in (
        (upright("cor", (450, 650), width_mm=200), UNNAMED),
        (upright("cor", (-400, 350)), UNNAMED),
        (upright("cor", (-300, 300), width_mm=600), UNNAMED),
        (upright("Abdomen cor", (-100, 300)), "abdomen"),
        (upright("Chest cor", (-50, 350)), ""),
    ):
        found = unmeasured_regions(selected(other, chest))
        assert [one.region for one in found] == ([region] if region else [])


@pytest.mark.parametrize(
    ("types", "outside"),
    [
        ("ORIGINAL\\PRIMARY\\M\\ND", [200.0]),
        ("DERIVED\\PRIMARY\\M\\ND", [200.0]),
        ("DERIVED\\SECONDARY\\MPR", []),
        ("DERIVED\\SECONDARY", []),
    ],
)
def test_a_sagittal_mr_that_was_acquired_shows_all_that_it_reaches(types: str, outside: list[float]) -> None:
    spine = upright("L spine sag", (-50, 350), sagittal=True, types=types, modality="MR")
    selection = selected(spine, as_mr(series("L spine ax", (0, 200))))
    axial = next(one for one in selection.series if one.header.series_description == "L spine ax")
    found = unmeasured_regions(replace(selection, chosen=axial))
    assert [one.outside_mm for one in found] == outside
