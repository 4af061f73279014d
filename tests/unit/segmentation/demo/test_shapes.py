from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.segmentation.demo.shapes import Axes, smooth_field, superellipsoid


def _axes(step: float = 1.0) -> Axes:
    axis = np.arange(-60, 60, step) + step / 2
    return axis, axis, axis


def test_an_ellipsoid_has_its_analytic_volume() -> None:
    found = superellipsoid(_axes(), (3.0, -2.0, 1.0), (20.0, 15.0, 30.0))
    assert found is not None
    assert found[1].sum() == pytest.approx(4 / 3 * np.pi * 20 * 15 * 30, rel=0.01)


def test_a_cylinder_is_cut_flat() -> None:
    found = superellipsoid(_axes(), (0.0, 0.0, 0.0), (20.0, 10.0, 25.0), 2.0, "cylinder")
    assert found is not None
    assert found[1].sum() == pytest.approx(np.pi * 20 * 10 * 50, rel=0.01)
    assert np.array_equal(found[1][:, :, 0], found[1][:, :, -1])


def test_a_larger_exponent_is_boxier() -> None:
    round_one = superellipsoid(_axes(), (0, 0, 0), (20, 20, 20), 2.0)
    boxy = superellipsoid(_axes(), (0, 0, 0), (20, 20, 20), 3.0)
    assert round_one is not None
    assert boxy is not None
    assert boxy[1].sum() > round_one[1].sum()


def test_outside_the_grid_there_is_nothing() -> None:
    assert superellipsoid(_axes(), (200.0, 0.0, 0.0), (5.0, 5.0, 5.0)) is None


def test_a_smooth_field_is_smooth_and_reproducible() -> None:
    first = smooth_field(np.random.default_rng(1), (40, 50, 30), (4, 5, 3))
    second = smooth_field(np.random.default_rng(1), (40, 50, 30), (4, 5, 3))
    assert first.shape == (40, 50, 30)
    assert np.array_equal(first, second)
    assert np.abs(np.diff(first, axis=1)).max() < 0.5
    assert first.std() > 0.2
