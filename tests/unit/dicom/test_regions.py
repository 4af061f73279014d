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
