from __future__ import annotations

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.totalseg import kernels
from heimdallr_ray.segmentation.totalseg.sliding import SlidingWindow, TensorWindow, importance_map

PATCH = (8, 10, 12)
HEADS = 5


def network(tile: torch.Tensor) -> torch.Tensor:
    """Five smooth functions of the tile, with exact ties between the last two."""
    channels = [tile, 0.3 - tile, torch.sin(5 * tile), tile * tile - 0.2, tile * tile - 0.2]
    return torch.cat(channels, dim=1)


def upstream_logits(image: torch.Tensor, step: float) -> torch.Tensor:
    """nnU-Net's accumulation, operation by operation as in `_internal_predict_sliding_window_return_logits`."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    gaussian = compute_gaussian(PATCH, 1.0 / 8, 10, device=torch.device("cpu"))
    logits = torch.zeros((HEADS, *image.shape[1:]), dtype=torch.half)
    weights = torch.zeros(image.shape[1:], dtype=torch.half)
    for z, y, x in np.stack(
        np.meshgrid(*compute_steps_for_sliding_window(tuple(image.shape[1:]), PATCH, step), indexing="ij"), -1
    ).reshape(-1, 3):
        where = (slice(z, z + PATCH[0]), slice(y, y + PATCH[1]), slice(x, x + PATCH[2]))
        prediction = network(image[(slice(None), *where)][None].clone())[0]
        prediction *= gaussian
        logits[(slice(None), *where)] += prediction
        weights[where] += gaussian
    return torch.div(logits, weights, out=logits)


@pytest.mark.parametrize("shape", [(31, 22, 25), (8, 10, 12), (9, 30, 12)])
@pytest.mark.parametrize("step", [0.5, 0.8])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_nnunets(shape: tuple[int, int, int], step: float, threads: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    window = SlidingWindow(PATCH, HEADS, step, kernels.Slabs(threads))
    expected = upstream_logits(image, step)
    assert torch.equal(window.logits(image, network).view(torch.int16), expected.view(torch.int16))
    assert np.array_equal(window.labels(image, network), expected.numpy().argmax(0))


def test_an_image_smaller_than_the_patch_is_padded_and_cut_back() -> None:
    image = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 5, 12, 7)).astype(np.float32))
    window = SlidingWindow(PATCH, HEADS, 0.5, kernels.Slabs(1))
    labels = window.labels(image, network)
    assert labels.shape == (5, 12, 7)
    assert np.array_equal(labels, window.logits(image, network).numpy().argmax(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e6])
def test_a_logit_that_is_not_finite_is_no_label(bad: float) -> None:
    def broken(tile: torch.Tensor) -> torch.Tensor:
        prediction = network(tile)
        prediction[0, 1, 3, 3, 3] = bad
        return prediction

    image = torch.zeros((1, 20, 20, 20))
    window = SlidingWindow(PATCH, HEADS, 0.5, kernels.Slabs(1))
    with pytest.raises(Broken):
        window.labels(image, broken)
    with pytest.raises(Broken):
        window.logits(image, broken)


def test_the_tile_weight_is_never_zero() -> None:
    assert importance_map((48, 80, 96)).min() > 0


@pytest.mark.parametrize("shape", [(31, 22, 25), (8, 10, 12), (9, 30, 12)])
@pytest.mark.parametrize("step", [0.5, 0.8])
def test_sums_in_torch_are_those_of_upstream_bit_for_bit(shape: tuple[int, int, int], step: float) -> None:
    image = torch.from_numpy(np.random.default_rng(3).normal(size=(1, *shape)).astype(np.float32))
    window = TensorWindow(PATCH, HEADS, step, torch.device("cpu"))
    logits = window.logits(image, network, torch.device("cpu"))
    assert torch.equal(logits, upstream_logits(image, step))


def test_a_logit_that_is_not_finite_is_refused_in_torch_too() -> None:
    window = TensorWindow(PATCH, HEADS, 0.5, torch.device("cpu"))
    with pytest.raises(Broken):
        window.logits(torch.full((1, *PATCH), 1e30), network, torch.device("cpu"))


@pytest.mark.parametrize("at_once", [2, 3, 4])
def test_several_tiles_at_once_are_summed_in_the_same_order(at_once: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 31, 22, 25)).astype(np.float32))
    window = TensorWindow(PATCH, HEADS, 0.5, torch.device("cpu"))
    seen: list[int] = []

    def counted(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(len(tiles))
        return network(tiles)

    made = window.logits(image, counted, torch.device("cpu"), at_once)
    assert torch.equal(made.view(torch.int16), upstream_logits(image, 0.5).view(torch.int16))
    assert set(seen) == {at_once}
