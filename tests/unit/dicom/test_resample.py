"""Uneven slices onto their grid: what the grid is, what lies between, and what is not blended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heimdallr_ray.dicom import geometry
from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.grouping import Slice, stack_of
from heimdallr_ray.dicom.resample import resampled
from heimdallr_ray.dicom.series import group, select
from heimdallr_ray.errors import NotAVolume, TooLarge
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource, labels_on_slices
from tests.support.dicom import ct_datasets, hu_of, indexed, to_bytes

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def axial(zs: list[float], y_per_mm: float = 0.0) -> list[tuple[float, float, float]]:
    return [(-100.0, -100.0 + z * y_per_mm, z) for z in zs]


def test_planes_at_slices_are_the_slices_and_between_them_linear() -> None:
    slices = np.array([[[0, 100]], [[10, 200]], [[40, 500]]], np.int16)
    grid = resampled(slices, (0.0, 1.0, 4.0), (0.0, 0.0))
    assert grid.dtype == np.int16
    assert grid[:, 0].tolist() == [[0, 100], [10, 200], [20, 300], [30, 400], [40, 500]]


def test_of_a_tilted_stack_what_lies_opposite_is_blended() -> None:
    # One column further on each plane: column 2 of plane 1 lies between column 3 of plane 0 and column 1 of plane 2.
    slices = np.zeros((2, 1, 8), np.float32)
    slices[0, 0, 3], slices[1, 0, 1] = 8, 4
    grid = resampled(slices, (0.0, 2.0), (0.0, 1.0))
    assert grid[1, 0].tolist() == [0, 0, 6, 0, 0, 0, 0, 0]


def test_the_grid_runs_from_first_to_last_as_fine_as_the_smallest_distance() -> None:
    found = geometry.stack(axial([0.0, 5.0, 10.0, 12.0, 14.0], 0.3), AXIAL, resample=True)
    assert found.slices == 8
    assert found.spacing_mm == pytest.approx(2.0)
    assert found.places == (0.0, 2.5, 5.0, 6.0, 7.0)
    assert found.flags == ("tilt:16.7", "variable_spacing:2.00-5.00")
    assert found.missing == ()
    assert found.extent_mm == pytest.approx(14.0)


@pytest.mark.parametrize(
    ("reason", "zs"),
    [
        ("variable_spacing", [0.0, 1.0, 2.0, 13.0, 14.0, 15.5]),
        ("missing_slices", [float(k) for k in range(40) if not 10 <= k <= 20]),
        ("variable_spacing", [0.0, 0.05, 5.0, 10.0, 16.0]),
    ],
)
def test_wide_gaps_and_needless_fineness_stay_refused(reason: str, zs: list[float]) -> None:
    with pytest.raises(NotAVolume) as caught:
        geometry.stack(axial(zs), AXIAL, resample=True)
    assert caught.value.reason == reason


def test_uneven_slices_beside_their_line_stay_refused() -> None:
    positions = [(-100.0 + (k % 2) * 2, -100.0, z) for k, z in enumerate([0.0, 1.0, 2.0, 5.0, 8.0])]
    with pytest.raises(NotAVolume) as caught:
        geometry.stack(positions, AXIAL, resample=True)
    assert caught.value.reason == "not_collinear"


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.floats(0.8, 5.0), min_size=2, max_size=12),
    shear=st.floats(-1.5, 1.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_go_to_the_grid_and_come_back_unchanged(gaps: list[float], shear: float, seed: int) -> None:
    zs = [0.0, *np.cumsum(gaps).tolist()]
    found = geometry.stack(axial(zs, shear), AXIAL, resample=True)
    if not found.places:
        return
    affine = geometry.affine_ras(found, AXIAL, (1.0, 1.0))
    rng = np.random.default_rng(seed)
    size = 24
    on_slices = np.zeros((size, size, len(zs)), np.uint8)
    # Away from the border, behind which nothing can be moved.
    on_slices[:, 8:-8] = rng.integers(0, 3, (size, size - 16, len(zs)))
    nearest = [int(np.abs(np.array(found.places) - plane).argmin()) for plane in range(found.slices)]
    per_plane = found.step_lps[1]
    on_grid = np.zeros((size, size, found.slices), np.uint8)
    for plane, number in enumerate(nearest):
        moved = round((plane - found.places[number]) * per_plane)
        on_grid[:, :, plane] = np.roll(on_slices[:, :, number], -moved, axis=1)
    volume = Volume(np.zeros(on_grid.shape, np.int16), affine, VolumeSource("CT"), slice_places=found.places)
    labels = LabelMap(on_grid, affine, {1: "a", 2: "b"}, ModelRef("total", "m", "w", synthetic=True))
    assert np.array_equal(labels_on_slices(labels, volume)[:, 8:-8], on_slices[:, 8:-8])


def test_a_study_of_uneven_thin_slices_is_chosen_flagged_and_of_wide_ones_too_thick() -> None:
    made = ct_datasets(40)
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, float(-150 + k + max(k - 20, 0))]
    index, read = indexed(to_bytes(dataset) for dataset in made)
    selection = select(group(index))
    assert selection.chosen is not None
    volume = assemble(selection.chosen, read, resample=True)
    assert volume.flags == ("variable_spacing:1.00-2.00",)
    assert volume.source.attributes["largest_gap_mm"] == 2.0
    assert np.array_equal(volume.array[:, :, :21], hu_of(made)[:, :, :21])
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, float(-150 + 3 * k + max(k - 20, 0) * 4)]
    index, _ = indexed(to_bytes(dataset) for dataset in made)
    (wide,) = select(group(index)).decisions
    assert (wide.code, wide.reason) == ("too_thick", "slices up to 7 mm apart, at most 5 mm can be measured")
    # The slices themselves are thin enough: both lines say what they are about.
    told = [(line.value, line.effect) for line in wide.lines if line.rule == "too_thick"]
    assert told == [("1 mm thick", "passed"), ("up to 7 mm apart", "refused")]
    assert "slices up to 7 mm apart over" in next(line.value for line in wide.lines if line.rule == "geometry")


def test_a_grid_that_would_not_fit_is_refused_before_it_is_made() -> None:
    made = ct_datasets(2, (4, 4))
    template = [to_bytes(dataset) for dataset in made]
    index, _ = indexed(template)
    zs = [z for k in range(60) for z in (10.0 * k, 10.0 * k + 1.5)]
    slices = [
        Slice(
            replace(index[0], header=replace(index[0].header, rows=4000, columns=4000)),
            replace(index[0].header.planes[0], ipp=(0.0, 0.0, z)),
        )
        for z in zs
    ]
    with pytest.raises(TooLarge):
        stack_of(slices, resample=True)
