from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage

from heimdallr_ray.errors import NotAVolume
from heimdallr_ray.segmentation.totalseg import geometry
from heimdallr_ray.segmentation.totalseg.geometry import Image
from heimdallr_ray.segmentation.totalseg.kernels import Slabs

SLABS = Slabs(2)


def oriented(rng: np.random.Generator, codes: str, degrees: float = 0.0) -> Image:
    """A random int16 image whose axes point along `codes`, turned about z by `degrees`."""
    shape = (7, 9, 5)
    back = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([1.2, 0.9, 2.5, 1.0]) @ inv_ornt_aff(back, shape)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[c, -s, 0, 3.0], [s, c, 0, -7.0], [0, 0, 1, 11.0], [0, 0, 0, 1]])
    return Image(rng.integers(-1000, 2000, shape, dtype=np.int16), turn @ affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "IPR"])
@pytest.mark.parametrize("degrees", [0.0, 7.0])
def test_canonical_is_nibabels(codes: str, degrees: float) -> None:
    image = oriented(np.random.default_rng(1), codes, degrees)
    ours = geometry.canonical(image)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine))
    assert np.array_equal(ours.array, np.asanyarray(theirs.dataobj))
    assert np.array_equal(ours.affine, theirs.affine)
    assert np.array_equal(geometry.zooms_of(ours.affine), np.array(theirs.header.get_zooms()))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_what_is_written_canonically_lands_natively(codes: str) -> None:
    image = oriented(np.random.default_rng(2), codes)
    target = np.zeros_like(image.array)
    geometry.canonical_view(target, image.affine)[:] = geometry.canonical(image).array
    assert np.array_equal(target, image.array)


SPACINGS = ((1.5, 1.5, 1.5), (3.0, 3.0, 3.0), (6.0, 6.0, 6.0), (0.4384765625, 0.4345703125, 1.0))


def random_case(rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray, geometry.Spacing]:
    shape = tuple(int(n) for n in rng.integers(10, 30, 3))
    return (shape[0], shape[1], shape[2]), np.diag([*rng.uniform(0.4, 6.0, 3), 1.0]), SPACINGS[rng.integers(4)]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_linear_zoom_is_scipys_to_the_last_bit(dtype: type) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        shape, affine, spacing = random_case(rng)
        array = rng.uniform(-1024, 3071, shape).astype(dtype)
        zoom = geometry.zoom_to_spacing(shape, affine, spacing)
        assert zoom is not None
        theirs = np.asarray(ndimage.zoom(array.astype(np.float64), zoom.factors, order=1, mode="nearest"))
        theirs = theirs.astype(np.int32)
        assert theirs.shape == zoom.shape
        for view in (array, np.asfortranarray(array)):
            ours = geometry.resample_linear(view, zoom.shape, SLABS)
            assert np.array_equal(ours.transpose(2, 1, 0), theirs.astype(np.float32))


def test_linear_zoom_of_a_flipped_view_is_that_of_its_copy() -> None:
    rng = np.random.default_rng(4)
    array = rng.integers(-1000, 1000, (12, 9, 14), dtype=np.int16)[::-1, :, ::-1].transpose(2, 0, 1)
    ours = geometry.resample_linear(array, (9, 15, 6), SLABS)
    assert np.array_equal(ours, geometry.resample_linear(np.ascontiguousarray(array), (9, 15, 6), SLABS))


def test_nearest_zoom_is_scipys() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        have, want = rng.integers(1, 30, 3), rng.integers(1, 40, 3)
        labels = rng.integers(0, 118, have).astype(np.uint8)
        theirs = np.asarray(ndimage.zoom(labels.astype(np.float64), want / have, order=0, mode="nearest"))
        target = np.empty(tuple(want), np.uint8)
        geometry.write_nearest(labels, target, SLABS)
        assert np.array_equal(target, theirs.astype(np.uint8))


def test_an_image_at_the_right_spacing_is_not_touched() -> None:
    assert geometry.zoom_to_spacing((4, 4, 4), np.diag([3.0, 3.0, 3.0, 1.0]), (3.0, 3.0, 3.0)) is None
    assert geometry.zoom_to_spacing((4, 4, 4), np.diag([0.75, 0.75, 1.0, 1.0]), (0.75, 0.75, 1.0)) is None


def test_an_image_of_which_nothing_would_be_left_is_refused() -> None:
    with pytest.raises(NotAVolume) as refused:
        geometry.zoom_to_spacing((40, 40, 5), np.diag([1.0, 1.0, 0.5, 1.0]), (6.0, 6.0, 6.0))
    assert refused.value.reason == "too_small"


def test_a_crop_moves_the_origin_and_stays_inside() -> None:
    image = oriented(np.random.default_rng(6), "LPS")
    mask = np.zeros(image.array.shape, bool)
    mask[2, 4, 1] = True
    box = geometry.box_around(mask, np.array([1, 100, 1]))
    assert box is not None
    assert box == ((1, 4), (0, 9), (0, 3))
    part = geometry.crop(image, box)
    assert np.array_equal(part.array, image.array[1:4, 0:9, 0:3])
    assert np.allclose(part.affine @ [0, 0, 0, 1], image.affine @ [1, 0, 0, 1])
    assert geometry.box_around(np.zeros((3, 3, 3), bool), np.array([1, 1, 1])) is None


def test_nonzero_box() -> None:
    image = np.zeros((4, 5, 6), np.float32)
    assert geometry.nonzero_box(image) is None
    image[1, 2, 3] = image[3, 2, 4] = -1.0
    assert geometry.nonzero_box(image) == ((1, 4), (2, 3), (3, 5))
