from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from heimdallr_ray.metrics.labelstats import label_statistics
from heimdallr_ray.metrics.rois import (
    Region,
    ball_offsets,
    components,
    core_centre_ijk,
    eroded,
    main_component,
    region_of,
)
from tests.unit.metrics.builders import torso

SHEARED = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.2, 0.8, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def _region(mask: np.ndarray, affine: np.ndarray) -> Region:
    return Region(mask, (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])), affine)


def _blobs(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(15, 14, 13))
    return ndimage.gaussian_filter(noise, 2.0) > 0.0


@pytest.mark.parametrize("affine", [np.diag([1.0, 1.0, 1.0, 1.0]), np.diag([0.7, 1.3, 2.9, 1.0]), SHEARED])
@pytest.mark.parametrize("seed", [1, 2])
def test_erosion_is_by_millimetres_between_voxel_centres(affine: np.ndarray, seed: int):
    mask = _blobs(seed)
    region = _region(mask, affine)
    steps = affine[:3, :3].T
    expected = mask.copy()
    expected[mask] = cdist(np.argwhere(mask) @ steps, np.argwhere(~mask) @ steps).min(axis=1) > 3.01
    assert expected.any(), "the phantom must be thick enough to leave something"
    assert (eroded(region, 3.0).mask == expected).all()
    assert (eroded(region, 3.0, numba=False).mask == expected).all()


def test_the_edge_of_the_scan_is_not_an_edge_of_the_organ():
    mask = np.ones((10, 10, 10), bool)
    mask[5:] = False
    kept = eroded(_region(mask, np.eye(4)), 2.0).mask
    assert kept[:3].all()
    assert not kept[3:].any()


def test_slices_further_apart_than_the_radius_are_eroded_in_plane_only():
    mask = np.zeros((12, 12, 5), bool)
    mask[2:10, 2:10, 1:4] = True
    kept = eroded(_region(mask, np.diag([1.0, 1.0, 5.0, 1.0])), 3.0).mask
    assert np.argwhere(kept).min(axis=0).tolist() == [5, 5, 1]
    assert np.argwhere(kept).max(axis=0).tolist() == [6, 6, 3]


def test_too_thin_a_mask_erodes_to_nothing():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    assert eroded(_region(mask, np.eye(4)), 3.0).n_voxels == 0


def test_ball_offsets_are_symmetric_and_inside_the_ball():
    offsets = ball_offsets(SHEARED[:3, :3], 4.0)
    assert {tuple(o) for o in offsets.tolist()} == {tuple(-np.array(o)) for o in offsets.tolist()}
    assert np.linalg.norm(offsets @ SHEARED[:3, :3].T, axis=1).max() <= 4.01


def test_components_touching_at_a_corner_are_one_and_the_main_one_is_the_largest():
    mask = np.zeros((12, 6, 6), bool)
    mask[0:2, 0:2, 0:2] = True
    mask[2:4, 2:4, 2:4] = True
    mask[8, 0, 0] = True
    _, sizes = components(_region(mask, np.eye(4)))
    assert sorted(sizes.tolist()) == [1, 16]
    main, share = main_component(_region(mask, np.eye(4)))
    assert main.n_voxels == 16
    assert share == pytest.approx(16 / 17)


def test_the_core_of_a_vertebra_is_its_body_where_the_centroid_is_pulled_down_by_the_process():
    scene = torso((2.0, 2.0, 2.0))
    l3 = label_statistics(scene.volume, scene.label_maps["total"])["vertebrae_L3"]
    region = region_of(scene.label_maps["total"], l3)
    centre, depth_mm = core_centre_ijk(region)
    assert centre[2] * 2.0 == pytest.approx(119.0, abs=1.0), "body centre: voxel centres from 106 to 132 mm"
    assert l3.centroid_ijk[2] * 2.0 < 118.0, "the phantom's process must pull the centroid away"
    assert depth_mm == pytest.approx(14.0, abs=2.0)
