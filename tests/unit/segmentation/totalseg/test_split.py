"""The three parts of a large image, with upstream's own slices and thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from heimdallr_ray.segmentation.totalseg.split import THRESHOLD_VOXELS, pieces


def upstream_combined(values: np.ndarray) -> np.ndarray:
    """`nnUNet_predict_image`'s slices, with what was cut out in the place of a prediction."""
    third, margin = values.shape[2] // 3, 20
    s01 = values[:, :, : third + margin]
    s02 = values[:, :, third + 1 - margin : third * 2 + margin]
    s03 = values[:, :, third * 2 + 1 - margin :]
    combined = np.full_like(values, -1)
    combined[:, :, :third] = s01[:, :, :-margin]
    combined[:, :, third : third * 2] = s02[:, :, margin - 1 : -margin]
    combined[:, :, third * 2 :] = s03[:, :, margin - 1 :]
    return combined


@pytest.mark.parametrize("depth", [*range(50, 75), 200, 201, 999, 1000, 1001])
def test_the_parts_are_upstreams(depth: int) -> None:
    planes = np.arange(depth, dtype=np.int64)[None, None]
    made = pieces((depth, 1, 1), 1, force=True)
    try:
        expected = upstream_combined(planes)
    except ValueError:
        # upstream cannot split so few planes
        assert len(made) == 1
        return
    assert np.array_equal(expected, planes)
    assert len(made) == 3
    assert [(one.shown.start, one.shown.stop) for one in made] == [
        (0, depth // 3 + 20),
        (depth // 3 - 19, depth // 3 * 2 + 20),
        (depth // 3 * 2 - 19, depth),
    ]
    glued = np.concatenate([planes[0, 0][one.shown][one.inner] for one in made])
    assert np.array_equal(glued, planes[0, 0])


def test_only_large_images_of_several_models_are_split() -> None:
    large = (1000, 512, 512)
    assert np.prod(large) > THRESHOLD_VOXELS
    assert len(pieces(large, 5)) == 3
    assert len(pieces(large, 1)) == 1
    assert len(pieces((900, 512, 512), 5)) == 1
    assert len(pieces((901, 512, 512), 5)) == 3
    # too few planes, however wide
    assert len(pieces((200, 1200, 1200), 5)) == 1
    assert len(pieces((201, 1200, 1200), 5)) == 3
    assert len(pieces((40, 64, 64), 5, force=True)) == 1
