"""nnU-Net's sliding window, bit for bit: on the CPU in bounded memory, and on any device in torch's operations.

Upstream keeps float16 logits of the whole volume (118 channels for `total`) and walks over them with mixed-dtype torch
operations, which costs more than a small network. Tiles are ordered by z, so here only a ring of one patch depth is
kept: planes that no later tile can touch are divided, reduced to labels and given back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)
from numpy.typing import NDArray

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.totalseg import kernels

Forward = Callable[[torch.Tensor], torch.Tensor]
_pad: Any = pad_nd_image
_gaussian: Any = compute_gaussian
_steps: Any = compute_steps_for_sliding_window


_INLINE_BELOW = 4_000_000
"""A tile with fewer logits is added (in about a millisecond) before another thread would have woken up."""


def importance_map(patch: tuple[int, ...]) -> NDArray[np.float32]:
    """nnU-Net's Gaussian tile weight, rounded to float16 as upstream does, as float32 `[z, y, x]`."""
    # the undecorated function: upstream's cache of two entries is shared by all models of the process
    half = cast(torch.Tensor, _gaussian.__wrapped__(patch, 1.0 / 8, 10, torch.float16, torch.device("cpu")))
    return np.ascontiguousarray(half.float().numpy())


class SlidingWindow:
    """Tiles, accumulates and settles for one model."""

    def __init__(self, patch: tuple[int, ...], heads: int, tile_step: float, slabs: kernels.Slabs) -> None:
        self.patch, self.heads, self.tile_step, self.slabs = patch, heads, tile_step, slabs
        self._weight = importance_map(patch)

    def labels(self, image: torch.Tensor, forward: Forward) -> NDArray[np.uint8]:
        """First index of the largest logit.

        Args:
            image: `[1, z, y, x]` float32, normalised.
            forward: the network, `[1, 1, *patch]` to `[1, heads, *patch]`.

        Returns:
            `[z, y, x]` uint8.

        Raises:
            Broken: a logit is infinite or not a number.
        """
        padded, inside = self._padded(image)
        depth, height, width = padded.shape[1:]
        ring = np.zeros((self.heads + 1, min(self.patch[0], depth), height, width), np.uint16)
        flat = ring.reshape(self.heads + 1, ring.shape[1], height * width)
        labels = np.empty((depth, height * width), np.uint8)
        settle = kernels.settle()
        starts = self._starts(padded)
        for row, z in enumerate(starts[0]):
            self._add_row(ring, padded, z, starts, forward)
            done = starts[0][row + 1] if row + 1 < len(starts[0]) else depth
            finite = self.slabs.run(
                height * width, lambda first, last, z=z, done=done: settle(flat, labels, (z, done), first, last)
            )
            if not all(finite):
                raise Broken("the network gave a logit that is not finite")
        return labels.reshape(depth, height, width)[inside[1:]]

    def logits(self, image: torch.Tensor, forward: Forward) -> torch.Tensor:
        """All logits, `[heads, z, y, x]` float16; arguments as in `labels`.

        Raises:
            Broken: a logit is infinite or not a number.
        """
        padded, inside = self._padded(image)
        ring = np.zeros((self.heads + 1, *padded.shape[1:]), np.uint16)
        starts = self._starts(padded)
        for z in starts[0]:
            self._add_row(ring, padded, z, starts, forward)
        sums = torch.from_numpy(ring.view(np.float16))
        logits = torch.div(sums[:-1], sums[-1], out=sums[:-1])
        if not bool(torch.isfinite(logits).all()):
            raise Broken("the network gave a logit that is not finite")
        return logits[(slice(None), *inside[1:])]

    def _padded(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
        padded, inside = _pad(image, self.patch, "constant", {"value": 0}, True, None)
        return cast(torch.Tensor, padded), cast("tuple[slice, ...]", inside)

    def _starts(self, padded: torch.Tensor) -> list[list[int]]:
        return cast("list[list[int]]", _steps(tuple(padded.shape[1:]), self.patch, self.tile_step))

    def _add_row(
        self, ring: NDArray[np.uint16], padded: torch.Tensor, z: int, starts: list[list[int]], forward: Forward
    ) -> None:
        accumulate = kernels.accumulate()
        pz, py, px = self.patch
        for y in starts[1]:
            for x in starts[2]:
                tile = padded[:, z : z + pz, y : y + py, x : x + px][None].clone(memory_format=torch.contiguous_format)
                prediction = forward(tile)[0].contiguous().numpy()
                arguments = (ring, prediction, self._weight, (z, y, x))
                if prediction.size < _INLINE_BELOW:
                    accumulate(*arguments, 0, self.heads + 1)
                else:
                    self.slabs.run(self.heads + 1, lambda first, last, a=arguments: accumulate(*a, first, last))


class TensorWindow:
    """The same in nnU-Net's own operations and their order, with the sums on a device or on the host.

    `nnUNetPredictor` would do, but a device out of memory leaves a thread of it behind that keeps its image there.
    """

    def __init__(self, patch: tuple[int, ...], heads: int, tile_step: float, device: torch.device) -> None:
        """`device` is that of the network."""
        self.patch, self.heads, self.tile_step, self.device = patch, heads, tile_step, device
        if device.type == "cuda":
            # as nnUNetPredictor does
            torch.backends.cudnn.benchmark = True

    def precision(self) -> AbstractContextManager[object]:
        """Float16 where the device has it and upstream uses it."""
        return torch.autocast("cuda", enabled=True) if self.device.type == "cuda" else nullcontext()

    def logits(self, image: torch.Tensor, forward: Forward, sums_on: torch.device, at_once: int = 1) -> torch.Tensor:
        """All logits, `[heads, z, y, x]` float16 on `sums_on`; arguments as in `SlidingWindow.labels`.

        With more than one tile `at_once` the sums keep their order, and `forward` always sees that many: the last ones
        are filled up with copies, so that its shape never changes.

        Raises:
            Broken: a logit is infinite or not a number.
            torch.OutOfMemoryError: the device is full.
        """
        with self.precision():
            padded, inside = _pad(image, self.patch, "constant", {"value": 0}, True, None)
            data = cast(torch.Tensor, padded).to(sums_on)
            sums = torch.zeros((self.heads, *data.shape[1:]), dtype=torch.half, device=sums_on)
            weights = torch.zeros(data.shape[1:], dtype=torch.half, device=sums_on)
            weight = cast(torch.Tensor, _gaussian.__wrapped__(self.patch, 1.0 / 8, 10, torch.float16, sums_on))
            tiles = self._tiles(data)
            for first in range(0, len(tiles), at_once):
                some = tiles[first : first + at_once]
                shown = self._shown(data, some, at_once)
                for tile, logits in zip(some, forward(shown), strict=False):
                    prediction = logits.to(sums_on)
                    prediction *= weight
                    sums[tile] += prediction
                    weights[tile[1:]] += weight
            torch.div(sums, weights, out=sums)
            # channel by channel: the answer for all at once would take half of the memory of the sums
            finite = torch.stack([torch.isfinite(channel).all() for channel in sums])
            if not bool(finite.all()):
                raise Broken("the network gave a logit that is not finite")
            return sums[(slice(None), *cast("tuple[slice, ...]", inside)[1:])]

    def _shown(self, data: torch.Tensor, some: list[tuple[slice, ...]], at_once: int) -> torch.Tensor:
        """`[at_once, 1, *patch]` on the network's device; one tile is copied as upstream does."""
        if at_once == 1:
            return torch.clone(data[some[0]][None], memory_format=torch.contiguous_format).to(self.device)
        filled = [*some, *[some[-1]] * (at_once - len(some))]
        return torch.stack([data[tile] for tile in filled]).to(self.device)

    def _tiles(self, data: torch.Tensor) -> list[tuple[slice, ...]]:
        starts = cast("list[list[int]]", _steps(tuple(data.shape[1:]), self.patch, self.tile_step))
        return [
            (slice(None), *(slice(low, low + size) for low, size in zip(corner, self.patch, strict=True)))
            for corner in itertools.product(*starts)
        ]
