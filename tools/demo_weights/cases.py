"""Endless training cases: each phantom is used for a few steps and never again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from heimdallr_ray.segmentation.demo import phantom
from heimdallr_ray.segmentation.demo.anatomy import Phase
from tools.demo_weights.recipes import Recipe

Case = tuple[NDArray[np.int16], NDArray[np.uint8]]
"""HU and labels, both [z, y, x] on the recipe's grid."""
BrainBox = Callable[[phantom.Phantom], tuple[slice, slice, slice] | None]

HEAD_FOV_MM = (224.0, 256.0)
BLEED_CROP_MARGIN_MM = 20.0
_PATCH_TRIES = 6
_BODY_ABOVE_HU, _BODY_SHARE = -300, 0.05


def _zyx(hu: NDArray[np.int16], labels: NDArray[np.generic]) -> Case:
    return np.ascontiguousarray(hu.transpose(2, 1, 0)), np.ascontiguousarray(labels.transpose(2, 1, 0), dtype=np.uint8)


def _bleeds_ml(rng: np.random.Generator) -> tuple[float, ...]:
    count = int(rng.choice(3, p=(0.35, 0.5, 0.15)))
    return tuple(float(np.exp(rng.uniform(np.log(2.0), np.log(55.0)))) for _ in range(count))


def _resampled(
    made: phantom.Phantom, spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and labels on the network's grid by TotalSegmentator's interpolation, borders as blurred as in use."""
    zoom = np.diag(made.affine_ras)[:3] / np.array(spacing_mm)
    hu = np.asarray(ndimage.zoom(made.hu.astype(np.float32), zoom, order=1, mode="nearest"))
    labels = np.asarray(ndimage.zoom(made.total, zoom, order=0, mode="nearest"))
    return hu.astype(np.int16), labels.astype(np.uint8)


def _total_case(recipe: Recipe, seed: int) -> Case:
    rng = np.random.default_rng((seed, 9))
    kind = rng.random()
    fov = (float(rng.uniform(380, 430)), float(rng.uniform(290, 320)))
    bleeds: tuple[float, ...] = ()
    if kind < 0.75:
        low = float(rng.uniform(-60, 290))
        z_range = (low, low + float(rng.uniform(230, 270)))
    elif kind < 0.82:
        z_range = (-110.0, float(rng.uniform(120, 180)))
    elif kind < 0.9:
        z_range = (float(rng.uniform(450, 540)), 798.0)
        bleeds = _bleeds_ml(rng)
    else:
        z_range = (float(rng.uniform(595, 615)), float(rng.uniform(790, 810)))
        stretch = rng.uniform(0.92, 1.2, 2)
        fov = (HEAD_FOV_MM[0] * float(stretch[0]), HEAD_FOV_MM[1] * float(stretch[1]))
        bleeds = _bleeds_ml(rng)
    z, y, x = recipe.spacing_zyx_mm
    pixel, slices = float(rng.uniform(1.2, 2.3)), float(rng.uniform(1.8, 3.2))
    noise = float(rng.uniform(3, 12))
    made = phantom.make(seed, (pixel, pixel, slices), z_range, bleed_ml=bleeds, noise_hu=noise, fov_mm=fov)
    return _zyx(*_resampled(made, (x, y, z)))


def _tissue_case(recipe: Recipe, seed: int) -> Case:
    rng = np.random.default_rng((seed, 9))
    low = float(rng.uniform(-100, 420))
    z, y, x = recipe.spacing_zyx_mm
    made = phantom.make(seed, (x, y, z), (low, low + 100.0), noise_hu=float(rng.uniform(2, 14)))
    return _zyx(made.hu, made.tissue)


def head(seed: int) -> phantom.Phantom:
    """A head CT as a scanner would send it: own pixel size and slice distance, mostly native, with or without blood."""
    rng = np.random.default_rng((seed, 9))
    pixel = float(rng.uniform(0.7, 1.1))
    spacing = (pixel, pixel, float(rng.uniform(2.0, 3.2)))
    phase = Phase(int(rng.choice(3, p=(0.7, 0.15, 0.15))))
    z_range = (float(rng.uniform(600, 612)), float(rng.uniform(794, 806)))
    fov = (HEAD_FOV_MM[0] * float(rng.uniform(0.95, 1.15)), HEAD_FOV_MM[1] * float(rng.uniform(0.95, 1.15)))
    noise = float(rng.uniform(2.0, 5.5))
    return phantom.make(seed, spacing, z_range, phase=phase, bleed_ml=_bleeds_ml(rng), noise_hu=noise, fov_mm=fov)


def _bleed_case(recipe: Recipe, seed: int, brain_box: BrainBox) -> Case:
    made = head(seed)
    box = brain_box(made)
    hu, bleed = (made.hu, made.bleed) if box is None else (made.hu[box], made.bleed[box])
    zoom = np.diag(made.affine_ras)[:3] / np.array(recipe.spacing_zyx_mm[::-1])
    target = [max(1, round(n * f)) for n, f in zip(hu.shape, zoom, strict=True)]
    factors = [t / n for t, n in zip(target, hu.shape, strict=True)]
    smooth = np.asarray(ndimage.zoom(hu.astype(np.float32), factors, order=3, mode="nearest", grid_mode=True))
    share = ndimage.zoom(bleed.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    label = np.asarray(share) > 0.5
    return _zyx(np.rint(smooth).astype(np.int16), label)


def _random_box(rng: np.random.Generator, shape: tuple[int, ...], size: tuple[int, int, int]) -> tuple[slice, ...]:
    start = [int(rng.integers(0, max(1, have - want + 1))) for have, want in zip(shape, size, strict=True)]
    return tuple(slice(first, first + want) for first, want in zip(start, size, strict=True))


class Pool:
    """Holds some phantoms and replaces the oldest; every seed it used is `recipe.seed_base + 0 .. used - 1`."""

    def __init__(self, recipe: Recipe, first: int, brain_box: BrainBox | None) -> None:
        self.recipe = recipe
        self.used = first
        self._brain_box = brain_box
        self.cases: list[Case] = []

    def grow(self) -> None:
        """One more phantom; the oldest goes when the pool is full."""
        seed = self.recipe.seed_base + self.used
        if self.recipe.dataset_id == 481:
            case = _tissue_case(self.recipe, seed)
        elif self._brain_box is not None:
            case = _bleed_case(self.recipe, seed, self._brain_box)
        else:
            case = _total_case(self.recipe, seed)
        self.used += 1
        self.cases.append(case)
        if len(self.cases) > self.recipe.pool:
            self.cases.pop(0)

    def patch(
        self, rng: np.random.Generator, size: tuple[int, int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A random patch, normalised and padded as nnU-Net would: `[z, y, x]` input and labels."""
        recipe = self.recipe
        hu, labels = self.cases[int(rng.integers(len(self.cases)))]
        box = _random_box(rng, hu.shape, size)
        for _ in range(_PATCH_TRIES):
            if float((hu[box][::4, ::4, ::4] > _BODY_ABOVE_HU).mean()) > _BODY_SHARE:
                break
            box = _random_box(rng, hu.shape, size)
        image, label = hu[box].astype(np.float32), labels[box]
        if rng.random() < 0.5:
            image += np.float32(rng.uniform(0, 5)) * rng.standard_normal(image.shape, dtype=np.float32)
        if rng.random() < 0.5:
            image = image * np.float32(rng.uniform(0.99, 1.01)) + np.float32(rng.uniform(-2, 2))
        low, high = recipe.window_hu
        image = (np.clip(image, low, high) - low) / recipe.scale_hu
        flips = [axis for axis in recipe.flips if rng.random() < 0.5]
        missing = [want - have for want, have in zip(size, image.shape, strict=True)]
        pad = [(m // 2, m - m // 2) for m in missing]
        image = np.pad(np.flip(image, tuple(flips)), pad)
        label = np.pad(np.flip(label, tuple(flips)), pad)
        return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(label)
