"""Stacks with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heimdallr_ray.dicom import geometry
from heimdallr_ray.errors import NotAVolume

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def axial(zs: list[float], y_per_mm: float = 0.0) -> list[tuple[float, float, float]]:
    return [(-100.0, -100.0 + z * y_per_mm, z) for z in zs]


def refusal(positions: list[tuple[float, float, float]], iop: tuple[float, ...] = AXIAL) -> str:
    with pytest.raises(NotAVolume) as caught:
        geometry.stack(positions, iop)  # type: ignore[arg-type]
    return caught.value.reason


def test_slices_are_ordered_along_the_normal_whatever_their_order_of_arrival():
    found = geometry.stack(axial([4.0, 0.0, 2.0, 6.0]), AXIAL)
    assert found.order == (1, 2, 0, 3)
    assert found.step_lps == (0.0, 0.0, 2.0)
    assert found.flags == ()


def test_affine_maps_the_first_pixel_and_the_last_slice_to_their_patient_positions():
    found = geometry.stack(axial([0.0, 2.5, 5.0]), AXIAL)
    affine = geometry.affine_ras(found, AXIAL, (0.5, 0.9))
    # LPS (-100, -100, 0) is RAS (100, 100, 0); a step along a row is the distance between columns.
    assert affine @ [0, 0, 0, 1] == pytest.approx([100, 100, 0, 1])
    assert affine @ [10, 20, 2, 1] == pytest.approx([100 - 9, 100 - 10, 5, 1])


def test_tilt_is_measured_and_kept_as_shear():
    tilt = math.tan(math.radians(18.5))
    positions = axial([float(z) for z in range(20)], y_per_mm=tilt)
    found = geometry.stack(positions, AXIAL)
    assert found.flags == ("tilt:18.5",)
    affine = geometry.affine_ras(found, AXIAL, (1.0, 1.0))
    for k, (x, y, z) in enumerate(positions):
        assert affine @ [0, 0, k, 1] == pytest.approx([-x, -y, z, 1], abs=1e-6)


def test_positions_rounded_to_one_decimal_are_a_regular_stack():
    found = geometry.stack(axial([round(k * 0.625, 1) for k in range(160)]), AXIAL)
    assert found.slices == 160
    assert found.spacing_mm == pytest.approx(0.625, abs=1e-3)
    (flag,) = found.flags
    assert flag.startswith("uneven_spacing:0.0")


def test_one_gap_in_a_hundred_is_flagged_and_more_than_two_percent_refused():
    one = [float(k) for k in range(100) if k != 40]
    found = geometry.stack(axial(one), AXIAL)
    assert found.missing == (40,)
    assert found.flags == ("missing_slices:1",)
    assert found.step_lps == pytest.approx((0, 0, 1))
    assert refusal(axial([float(k) for k in range(40) if k not in (20, 25)])) == "missing_slices"
    assert refusal(axial([float(k) for k in range(500) if k not in (20, 25, 30)])) == "missing_slices"


@pytest.mark.parametrize(
    ("reason", "positions", "iop"),
    [
        ("variable_spacing", axial([0, 1, 2, 3, 5.5, 8, 10.5]), AXIAL),
        ("variable_spacing", axial([float(k) for k in range(20)] + [20.0 + 2 * k for k in range(20)]), AXIAL),
        ("not_collinear", [(-100.0 + (k % 2), -100.0, float(k)) for k in range(9)], AXIAL),
        ("single_slice", axial([1.0]), AXIAL),
        ("single_slice", axial([1.0, 1.0]), AXIAL),
        ("four_d", axial([0.0, 1.0, 2.0] * 3), AXIAL),
        ("incomplete_4d", axial([float(k) for k in range(20)] + [float(k) for k in range(12)]), AXIAL),
        ("bad_orientation", axial([0.0, 1.0]), (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
        ("bad_orientation", axial([0.0, 1.0]), (0.0,) * 6),
        ("bad_geometry", axial([0.0, math.inf]), AXIAL),
        ("bad_geometry", axial([0.0, 500.0, 1000.0]), AXIAL),
        ("bad_geometry", [(-100.0, 10.0 * k, float(k)) for k in range(9)], AXIAL),
    ],
)
def test_what_is_not_a_regular_stack_is_refused_by_name(
    reason: str, positions: list[tuple[float, float, float]], iop: tuple[float, ...]
):
    assert refusal(positions, iop) == reason


def test_a_slice_sent_twice_counts_once():
    found = geometry.stack([*axial([float(k) for k in range(40)]), (-100.0, -100.0, 5.0)], AXIAL)
    assert found.duplicates == ((5, 40),)
    assert found.order == tuple(range(40))
    assert found.flags == ("duplicate_slices:1",)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -0.5), (1.0, 1e9)])
def test_impossible_pixel_spacing_is_refused(spacing: tuple[float, float]):
    found = geometry.stack(axial([0.0, 1.0]), AXIAL)
    with pytest.raises(NotAVolume) as caught:
        geometry.affine_ras(found, AXIAL, spacing)
    assert caught.value.reason == "bad_spacing"


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.floats(0.3, 8.0),
    n=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_orientation_and_order_gives_back_every_position(
    angles: tuple[float, float, float], spacing: float, n: int, seed: int
):
    a, b, c = np.radians(angles)
    turn = (
        np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    )
    iop = tuple(float(value) for value in (*turn[:, 0], *turn[:, 1]))
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    positions = [tuple(float(v) for v in (turn[:, 2] * spacing * k + [5.0, -7.0, 11.0])) for k in order]
    found = geometry.stack(positions, iop)  # type: ignore[arg-type]
    affine = geometry.affine_ras(found, iop, (0.8, 0.7))  # type: ignore[arg-type]
    assert np.linalg.det(geometry.LPS_TO_RAS[:3, :3] @ affine[:3, :3]) > 0
    for k, index in enumerate(found.order):
        x, y, z = positions[index]
        assert affine @ [0, 0, k, 1] == pytest.approx([-x, -y, z, 1], abs=1e-6)
