from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.render.slices import Plane, Window, auto_window, axis_of, display_of, picture_size, windowed
from tests.unit.metrics.builders import Scene, orientations


def _landmarks() -> Scene:
    """A grid whose values say where they are: 100 x right + 10 x anterior + superior."""
    x, y, z = np.ogrid[0:4, 0:5, 0:6]
    return Scene((100 * x + 10 * y + z).astype(np.int16), np.diag([2.0, 3.0, 5.0, 1.0]))


def test_every_orientation_is_shown_with_right_on_the_left_and_the_front_on_top():
    scene = _landmarks()
    for order, flips in orientations():
        turned = scene.reoriented(order, flips)
        axis = axis_of(turned.affine, Plane.AXIAL)
        display = display_of(turned.hu.shape, turned.affine, axis)
        index = 4 if display.ascending else 1
        shown = display.of(turned.hu, index)
        assert display.plane is Plane.AXIAL
        assert shown.shape == (5, 4)
        assert shown[0, 0] == 300 + 40 + 4, "top left: most right, most anterior"
        assert shown[-1, -1] == 0 + 0 + 4, "bottom right: most left, most posterior"
        assert shown[0, -1] == 0 + 40 + 4
        assert display.letters == ("R", "L", "A", "P")
        assert (display.row_mm, display.column_mm) == (3.0, 2.0)
        assert display.number(index) == 5


def test_coronal_has_the_head_on_top_and_sagittal_the_face_on_the_left():
    scene = _landmarks()
    for order, flips in orientations():
        turned = scene.reoriented(order, flips)
        coronal = display_of(turned.hu.shape, turned.affine, axis_of(turned.affine, Plane.CORONAL))
        shown = coronal.of(turned.hu, 2)
        assert (shown[0, 0], shown[-1, -1]) == (300 + 20 + 5, 0 + 20 + 0)
        assert coronal.letters == ("R", "L", "S", "I")
        sagittal = display_of(turned.hu.shape, turned.affine, axis_of(turned.affine, Plane.SAGITTAL))
        index = 1 if sagittal.ascending else 2
        shown = sagittal.of(turned.hu, index)
        assert (shown[0, 0], shown[-1, -1]) == (100 + 40 + 5, 100 + 0 + 0)
        assert sagittal.letters == ("A", "P", "S", "I")


def test_windowing_maps_the_ends_to_black_and_white_and_clips():
    image = np.array([[-2000, -150, -149, 50, 250, 251, 3000]], dtype=np.int16)
    assert windowed(image, Window(50.0, 400.0)).tolist() == [[0, 0, 1, 128, 255, 255, 255]]


def test_windowing_shows_what_is_not_a_number_as_black():
    assert windowed(np.array([[np.nan, 50.0]], np.float32), Window(50.0, 400.0)).tolist() == [[0, 128]]


@pytest.mark.parametrize("plane", [Plane.AXIAL, Plane.CORONAL])
def test_millimetres_keep_their_proportion(plane: Plane):
    affine = np.diag([0.8, 0.8, 5.0, 1.0])
    display = display_of((512, 512, 60), affine, axis_of(affine, plane))
    rows, columns = (512, 512) if plane is Plane.AXIAL else (60, 512)
    width, height = picture_size(rows, columns, display)
    assert width / height == pytest.approx((columns * 0.8) / (rows * (0.8 if plane is Plane.AXIAL else 5.0)), rel=0.01)
    assert max(width, height) == 640


def test_an_mr_slice_is_windowed_by_its_own_values():
    window = auto_window(np.linspace(0.0, 1000.0, 1001).reshape(7, 143).astype(np.float32))
    assert (window.centre, window.width) == (pytest.approx(500.0), pytest.approx(980.0))
    assert auto_window(np.full((2, 2), 7, np.int16)) == Window(7.0, 1.0)
    assert auto_window(np.full((2, 2), np.nan, np.float32)) == Window(0.0, 1.0)
