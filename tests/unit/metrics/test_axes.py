from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.metrics.axes import axes_of, pixel_cm2, slice_obliquity_deg


def test_lps_ordered_arrays_have_right_at_the_low_end():
    axes = axes_of(np.diag([-0.7, -0.7, 2.0, 1.0]))
    assert axes.side(0, high=False) == "right"
    assert axes.side(1, high=False) == "anterior"
    assert axes.side(2, high=True) == "superior"
    assert axes.axial == 2


def test_a_gantry_tilt_keeps_its_axes_and_its_slice_area():
    tilt = np.radians(20.0)
    affine = np.eye(4)
    affine[:3, 0] = (0.5, 0.0, 0.0)
    affine[:3, 1] = (0.0, 0.5 * np.cos(tilt), 0.5 * np.sin(tilt))
    affine[:3, 2] = (0.0, 0.0, 3.0)
    assert axes_of(affine).patient_axis == (0, 1, 2)
    assert pixel_cm2(affine, 2) == pytest.approx(0.0025)
    assert slice_obliquity_deg(affine, 2) == pytest.approx(20.0)
