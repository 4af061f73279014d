from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from heimdallr_ray.errors import GeometryMismatch, NotAVolume
from heimdallr_ray.metrics import kernels
from heimdallr_ray.metrics.labelstats import LabelStatistics, label_statistics, mean_sd
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource
from tests.unit.metrics.builders import orientations

AFFINE = np.diag([0.7, 0.8, 2.5, 1.0])
PERCENTS = (0, 5, 25, 50, 75, 95, 99.5, 100)
LABELS = {1: "a", 2: "b", 3: "never there", 7: "c", 200: "d"}


def _volume(array: np.ndarray, affine: np.ndarray = AFFINE) -> Volume:
    return Volume(array, affine, VolumeSource("CT"))


def _map(array: np.ndarray, affine: np.ndarray = AFFINE) -> LabelMap:
    return LabelMap(array, affine, LABELS, ModelRef("total", "m", "w", False))


def _agree_with_brute_force(found: LabelStatistics, image: np.ndarray, labels: np.ndarray, voxel_ml: float) -> None:
    mask = labels == found.value
    values = image[mask].astype(np.float64)
    assert found.n_voxels == values.size
    assert found.volume_ml == pytest.approx(values.size * voxel_ml, rel=1e-12)
    assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-9)
    assert found.sd == pytest.approx(values.std(), rel=1e-9, abs=1e-6)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert_allclose([found.percentile(p) for p in PERCENTS], np.percentile(values, PERCENTS), rtol=1e-12, atol=1e-9)
    where = np.argwhere(mask)
    assert_allclose(found.centroid_ijk, where.mean(axis=0), rtol=1e-12)
    assert found.box_ijk == tuple(zip(where.min(axis=0).tolist(), where.max(axis=0).tolist(), strict=True))
    touched = {(axis, high) for axis in range(3) for high in (False, True) if mask.take(-int(high), axis).any()}
    assert set(found.borders) == touched
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        assert found.slice_counts[axis].tolist() == mask.sum(axis=others).tolist()


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 2**32 - 1),
    orientation=st.sampled_from(list(orientations())),
    label_dtype=st.sampled_from([np.uint8, np.uint16]),
)
@settings(max_examples=40, deadline=None)
def test_numba_and_numpy_and_float_paths_equal_brute_force_in_any_memory_order(
    shape: tuple[int, int, int],
    seed: int,
    orientation: tuple[tuple[int, ...], tuple[bool, ...]],
    label_dtype: type,
):
    rng = np.random.default_rng(seed)
    order, flips = orientation
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    labels = rng.choice([0, 1, 2, 7, 200], size=shape).astype(label_dtype).transpose(order)[steps]
    # Metal, padding and the very ends of int16 are ordinary values here.
    extremes = [-32768, -1207, -1024, 0, 40, 41, 3071, 3382, 32767]
    image = rng.choice(extremes, size=shape).astype(np.int16).transpose(order)[steps]
    compiled = label_statistics(_volume(image), _map(labels))
    plain = label_statistics(_volume(image), _map(labels), tally=kernels.tally_numpy)
    floats = label_statistics(_volume(image.astype(np.float32)), _map(labels))
    names = {LABELS[value] for value in np.unique(labels).tolist() if value in LABELS}
    assert set(compiled) == set(plain) == set(floats) == names
    for name in names:
        for found in (compiled[name], plain[name], floats[name]):
            _agree_with_brute_force(found, image, labels, 0.7 * 0.8 * 2.5 / 1000.0)
        assert compiled[name].values.tolist() == plain[name].values.tolist()
        assert compiled[name].counts.tolist() == plain[name].counts.tolist()
        assert compiled[name].mean == plain[name].mean
        assert compiled[name].sd == plain[name].sd


def test_the_compiled_loop_is_the_one_in_use():
    assert kernels.warm_up(), "numba is a dependency; without it every study takes seconds longer"


def test_image_and_labels_of_different_memory_order_are_measured_where_they_lie():
    rng = np.random.default_rng(5)
    labels = np.asfortranarray(rng.choice([0, 1, 2], size=(5, 6, 7)).astype(np.uint8))
    image = np.ascontiguousarray(rng.integers(-1000, 1000, size=(5, 6, 7)).astype(np.int16))
    for found in label_statistics(_volume(image), _map(labels)).values():
        _agree_with_brute_force(found, image, labels, 0.7 * 0.8 * 2.5 / 1000.0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_no_copy_of_the_volume_is_made(order: tuple[int, int, int]):
    shape = (200, 300, 250)
    image = np.zeros(shape, np.int16).transpose(order)[::-1]
    labels = np.zeros(shape, np.uint8).transpose(order)[::-1]
    labels[20:40, 20:40, 20:40] = 1
    volume, label_map = _volume(image), _map(labels)
    label_statistics(volume, label_map)
    tracemalloc.start()
    label_statistics(volume, label_map)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, "the label map alone has 15 MB"


def test_an_empty_label_map_has_no_statistics():
    zeros = np.zeros((3, 4, 5), np.uint8)
    assert label_statistics(_volume(zeros.astype(np.int16)), _map(zeros)) == {}


def test_labels_of_another_shape_are_refused_not_measured_as_zero():
    with pytest.raises(GeometryMismatch):
        label_statistics(_volume(np.zeros((3, 4, 5), np.int16)), _map(np.ones((3, 4, 4), np.uint8)))


def test_labels_made_from_another_image_are_refused():
    volume = _volume(np.zeros((3, 4, 5), np.int16))
    volume = replace(volume, source=replace(volume.source, manifest_sha256="one"))
    with pytest.raises(GeometryMismatch):
        label_statistics(volume, replace(_map(np.ones((3, 4, 5), np.uint8)), source_manifest_sha256="other"))


def test_a_float_image_with_nan_inside_a_structure_is_refused():
    image = np.zeros((3, 4, 5), np.float32)
    image[1, 1, 1] = np.nan
    with pytest.raises(NotAVolume) as refused:
        label_statistics(_volume(image), _map(np.ones((3, 4, 5), np.uint8)))
    assert refused.value.reason == "not_finite"


def test_of_equally_large_planes_a_flip_does_not_change_the_chosen_one():
    labels = np.zeros((3, 3, 8), np.uint8)
    labels[1, 1, 2:6] = 1
    image = np.zeros((3, 3, 8), np.int16)
    upright = label_statistics(_volume(image), _map(labels))["a"].largest_slice(2, ascending=True)
    turned = label_statistics(_volume(image), _map(labels[:, :, ::-1]))["a"].largest_slice(2, ascending=False)
    assert upright == 7 - turned


def test_a_whole_body_of_metal_does_not_overflow_the_sums():
    mean, sd = mean_sd(np.array([-32768, 32767]), np.array([500_000_000, 500_000_000]))
    assert mean == pytest.approx(-0.5)
    assert sd == pytest.approx(32767.5)


def test_read_only_arrays_from_the_object_store_are_measured():
    labels, image = np.ones((3, 4, 5), np.uint8), np.full((3, 4, 5), 7, np.int16)
    labels.setflags(write=False)
    image.setflags(write=False)
    assert label_statistics(_volume(image), _map(labels))["a"].mean == 7.0
