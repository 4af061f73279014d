"""Connected parts against TotalSegmentator's own functions, on random masks with many of them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from totalsegmentator import postprocessing
from totalsegmentator.map_to_binary import class_map

from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.totalseg.geometry import zooms_of
from heimdallr_ray.segmentation.totalseg.postprocess import clean, drop_small, keep_largest

theirs = cast(Any, postprocessing)
NAMES = {1: "body_trunc", 2: "body_extremities"}


def random_mask(seed: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.choice(3, (17, 13, 19), p=[1 - 2 * density, density, density]).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", [0.02, 0.12, 0.3, 0.45])
def test_the_largest_part_is_upstreams_ties_included(seed: int, density: float) -> None:
    mask = random_mask(seed, density)
    expected = theirs.keep_largest_blob_multilabel(mask.copy(), NAMES, ["body_trunc"], quiet=True)
    keep_largest(mask, 1)
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [0.0, 1.0, 3.0, 4.5, 60.0, 1e9])
def test_small_parts_are_upstreams(seed: int, size: float) -> None:
    mask = random_mask(seed, 0.2)
    at_most = np.float32(size)
    expected = theirs.remove_small_blobs_multilabel(
        mask.copy(), NAMES, ["body_extremities"], interval=[at_most, 1e10], quiet=True
    )
    drop_small(mask, 2, at_most)
    assert np.array_equal(mask, expected)


def test_a_structure_that_is_not_there_stays_away() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    keep_largest(mask, 1)
    drop_small(mask, 2, np.float32(3))
    assert not mask.any()


def test_body_keeps_one_trunk_and_large_limbs() -> None:
    assert class_map["body"] == NAMES
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    labels = np.zeros((60, 40, 40), np.uint8)
    labels[0:20, 0:20, 0:20] = 1
    labels[0:3, 30:33, 30:33] = 1
    # 232 voxels of 216 mm3 are 50,112 mm3; 231 are 49,896
    labels[30:59, 0:8, 0] = 2
    labels[30:51, 20:31, 0] = 2
    clean(labels, affine, TASKS["body_fast"])
    assert (labels == 1).sum() == 8000
    assert (labels == 2).sum() == 232


def test_a_task_without_cleaning_is_left_alone() -> None:
    labels = random_mask(3, 0.1)
    before = labels.copy()
    clean(labels, np.eye(4), TASKS["total_fast"])
    assert np.array_equal(labels, before)
    assert zooms_of(np.eye(4)).dtype == np.float32
