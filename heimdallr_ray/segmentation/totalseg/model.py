"""One nnU-Net of TotalSegmentator, loaded from verified bytes and kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import Broken, WeightsMissing
from heimdallr_ray.segmentation.engine import Timings
from heimdallr_ray.segmentation.tasks import ModelSpec
from heimdallr_ray.segmentation.totalseg import gauge, kernels
from heimdallr_ray.segmentation.totalseg.checkpoint import trusted_checkpoint
from heimdallr_ray.segmentation.totalseg.clock import ForwardClock
from heimdallr_ray.segmentation.totalseg.geometry import nonzero_box, zooms_of
from heimdallr_ray.segmentation.totalseg.memory import Sums, named
from heimdallr_ray.segmentation.totalseg.network import built, parsed_json, require_resident
from heimdallr_ray.segmentation.totalseg.ondevice import proven_normaliser
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN, Caller, Recipe
from heimdallr_ray.segmentation.totalseg.sliding import SlidingWindow, TensorWindow
from heimdallr_ray.segmentation.totalseg.study import ModelImage
from heimdallr_ray.segmentation.weights import DATASET_NAME, WeightsSet, demo_checkpoints, is_marked

_HOST = torch.device("cpu")


def always() -> None:
    """Nothing stands in the way of the next tile."""


def is_synthetic(weights: WeightsSet, spec: ModelSpec) -> bool:
    """True where the registry, the model's own description or its checkpoint's digest tells of phantoms."""
    checkpoints = spec.checkpoints(weights.files)
    if weights.synthetic or any(weights.entry(name).sha256 in demo_checkpoints() for name in checkpoints):
        return True
    name = f"{spec.folder}/{DATASET_NAME}"
    return is_marked(weights.read(name), name)


class ResidentModel:
    """A network on its device with everything around it that upstream builds anew on each call.

    Raises (on construction):
        WeightsMissing, WeightsTampered: as `WeightsSet.read`.
        Broken: the files are not an nnU-Net model of a kind that the engine runs exactly.
        MemoryError, RuntimeError: memory ended anywhere on the way, see `memory.is_out_of_memory`.
    """

    def __init__(
        self, weights: WeightsSet, spec: ModelSpec, tile_step: float, device: torch.device, slabs: kernels.Slabs
    ) -> None:
        began = time.perf_counter()
        plans, dataset = (
            parsed_json(weights.read(name), name)
            for name in (f"{spec.folder}/plans.json", f"{spec.folder}/{DATASET_NAME}")
        )
        files = spec.checkpoints(weights.files)
        if not files:
            raise WeightsMissing(f"no fold of {spec.folder} is installed")
        checkpoints = [trusted_checkpoint(weights.read(name), name) for name in files]
        self.spec, self.device, self.tile_step = spec, device, tile_step
        self.synthetic = is_synthetic(weights, spec)
        network = built(spec, plans, dataset, checkpoints, _HOST)
        require_resident(spec, network)
        # upstream sums the logits of the folds; one network takes their parameters in turn
        self._folds = [one["network_weights"] for one in checkpoints] if len(checkpoints) > 1 else []
        self._configuration, self._preprocessor = network.configuration, network.preprocessor
        self._masked = network.masked
        self.network = network.module.to(device).eval().requires_grad_(False)
        self.weights_bytes = gauge.stored_bytes(itertools.chain(self.network.parameters(), self.network.buffers()))
        self.activation_bytes = 0
        self.patch, self.heads = network.patch_zyx, network.heads
        self.spacing_zyx = list(network.spacing_zyx_mm)
        self._forward_axes, self._backward_axes = list(network.forward_axes), list(network.backward_axes)
        self._intensities = network.intensities
        self._resample_image, self._resample_logits = network.resample_image, network.resample_logits
        compiled = self.heads <= 256 and kernels.has_half_conversion()
        self._ring = SlidingWindow(self.patch, self.heads, tile_step, slabs) if compiled else None
        self._tensors = TensorWindow(self.patch, self.heads, tile_step, device)
        self.clock = ForwardClock(self.network, device)
        self._call = Caller(self.network, device, PLAIN)
        self._go_on: Callable[[], None] = always
        self._ct = proven_normaliser(list(self._configuration.normalization_schemes), self._intensities, device)
        self.load_s = time.perf_counter() - began

    @property
    def recipe(self) -> Recipe:
        """How the network is called."""
        return self._call.recipe

    def use(self, recipe: Recipe) -> None:
        """The network is called by `recipe` from now on.

        Weights that were once laid out for another recipe may stay so: a model that left `PLAIN` is exact again only
        when it is loaded anew.
        """
        self._call = Caller(self.network, self.device, recipe)

    def normalised(self, zyx: NDArray[np.float32]) -> torch.Tensor:
        """`[1, z, y, x]` on the host: an image at the model's spacing and in its axes, as its tiles are cut from."""
        mask = self._outside(zyx)[None] if self._masked else None
        return self._preprocessed(zyx.copy(), mask, self.spacing_zyx)[0]

    @torch.inference_mode()
    def tile_labels(self, tile: torch.Tensor) -> NDArray[np.uint8]:
        """First index of the largest logit of one tile `[1, 1, *patch]` of the host, as `[z, y, x]`.

        As many copies of it go through the network as the recipe takes at once.
        """
        with named(f"{self.spec.model_id}: one tile does not fit on {self.device}"):
            shown = tile.to(self.device).expand(self.recipe.tiles, -1, -1, -1, -1).contiguous()
            labels = self._call(shown)[0].float().argmax(0).to(torch.uint8).cpu().numpy()
        self.clock.take()
        return labels

    def warm_up(self) -> None:
        """As many tiles as the recipe takes at once have gone through the network; `activation_bytes` is theirs.

        Raises:
            OutOfMemory: they do not fit beside what is there.
        """
        tiles = torch.zeros((self.recipe.tiles, 1, *self.patch))
        # on a CPU compiled code is not seen from outside; it needs no more than what it was made from
        seen = self.device.type != "cpu" or not self.recipe.compiled
        with (
            named(f"{self.spec.model_id}: one tile does not fit on {self.device}"),
            torch.inference_mode(),
            gauge.measured(self.device) if seen else nullcontext(gauge.Peak(self.activation_bytes)) as peak,
        ):
            self._tile(tiles)
        self.activation_bytes = peak.nbytes
        self.clock.take()

    def takes_uploads(self, image: ModelImage) -> bool:
        """True where the image need not be prepared on the host: normalised by proven bits, at the model's spacing."""
        if not image.whole or self._masked or self._ct is None:
            return False
        zooms = zooms_of(image.affine)[::-1]
        spacing = [float(zooms[axis]) for axis in self._forward_axes]
        shape = [image.zyx.shape[axis] for axis in self._forward_axes]
        return list(self._new_shape(shape, spacing)) == shape

    def predict(
        self,
        zyx: NDArray[np.float32],
        affine: NDArray[np.float64],
        sums: Sums = Sums.DEVICE,
        uploaded: torch.Tensor | None = None,
        go_on: Callable[[], None] = always,
    ) -> tuple[NDArray[np.uint8], Timings]:
        """Labels of an image in canonical axes.

        Args:
            zyx: `[z, y, x]` float32, CT in HU; not changed.
            affine: of the same image as `[x, y, z]`, RAS millimetres.
            sums: where the logits of the tiles are added up.
            uploaded: `zyx` on the device, where the model `takes_uploads`; not changed.
            go_on: called before each tile; what it raises ends the prediction.

        Returns:
            `[x, y, z]` uint8 (a view), and the parts preprocess, forward and assemble.

        Raises:
            OutOfMemory: the device or the host has too little memory for this.
            Broken: the network gave values that are not finite.
        """
        self._go_on = go_on
        try:
            with named(f"{self.spec.model_id} on {self.device}"):
                return self._predicted(zyx, affine, sums, uploaded)
        finally:
            self._go_on = always

    def _predicted(
        self, zyx: NDArray[np.float32], affine: NDArray[np.float64], sums: Sums, uploaded: torch.Tensor | None
    ) -> tuple[NDArray[np.uint8], Timings]:
        began = time.perf_counter()
        self.clock.take()
        spacing_zyx = [float(mm) for mm in zooms_of(affine)[::-1]]
        # a copy of the whole, whose part is then normalised in place: numpy sums a view in another order than a copy
        image = (zyx if uploaded is not None else zyx.copy()).transpose(self._forward_axes)
        spacing = [spacing_zyx[axis] for axis in self._forward_axes]
        # where nothing but 0 is left nnU-Net takes the whole
        box = nonzero_box(image) or tuple((0, n) for n in image.shape)
        inside = tuple(slice(low, high) for low, high in box)
        if uploaded is not None and self._ct is not None:
            cropped = tuple(part.stop - part.start for part in inside)
            tensor = self._ct(uploaded.permute(self._forward_axes)[inside])[None].contiguous()
        else:
            mask = self._outside(image)[inside][None] if self._masked else None
            tensor, cropped = self._preprocessed(image[inside], mask, spacing)
        ready = time.perf_counter()
        part = self._labels(tensor, cropped, spacing, sums)
        forward_s = self.clock.take()
        labels = part
        if part.shape != image.shape:
            labels = np.zeros(image.shape, np.uint8)
            labels[inside] = part
        done = time.perf_counter()
        timings = Timings(
            preprocess_s=ready - began, forward_s=forward_s, assemble_s=done - ready - forward_s, total_s=done - began
        )
        return labels.transpose(self._backward_axes).transpose(2, 1, 0), timings

    @staticmethod
    def _outside(image: NDArray[np.float32]) -> NDArray[np.int8]:
        """0 inside the filled body of voxels other than 0, -1 outside: what MR models normalise over."""
        from nnunetv2.preprocessing.cropping.cropping import (
            create_nonzero_mask,
        )

        inside = cast("NDArray[np.bool_]", cast(Any, create_nonzero_mask)(image[None]))
        return np.where(inside, np.int8(0), np.int8(-1))

    def _preprocessed(
        self, image: NDArray[np.float32], mask: NDArray[np.int8] | None, spacing: list[float]
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        values = image[None]
        cropped = values.shape[1:]
        values = self._preprocessor._normalize(
            values, [None] if mask is None else mask, self._configuration, self._intensities
        )
        shape = self._new_shape(cropped, spacing)
        values = self._resample_image(values, shape, spacing, self.spacing_zyx)
        tensor = torch.from_numpy(np.ascontiguousarray(cast("NDArray[np.float32]", values)))
        return tensor.to(torch.float32), cropped

    def _new_shape(self, shape: Sequence[int], spacing: list[float]) -> Sequence[int]:
        """What nnU-Net resamples an image of this shape and spacing to."""
        from nnunetv2.preprocessing.resampling.default_resampling import (
            compute_new_shape,
        )

        return [int(n) for n in cast(Any, compute_new_shape)(shape, spacing, self.spacing_zyx)]

    @torch.inference_mode()
    def _labels(
        self, image: torch.Tensor, shape: tuple[int, ...], spacing: list[float], sums: Sums
    ) -> NDArray[np.uint8]:
        resampled = tuple(image.shape[1:]) != tuple(shape)
        ring = self._ring if self.device.type == "cpu" or sums is Sums.RING else None
        if ring is not None and not resampled and not self._folds:
            return ring.labels(image, self._tile)
        logits = self._averaged(image, ring, sums) if self._folds else self._logits(image, ring, sums)
        if not resampled:
            return _argmax_on_device(logits)
        full: Any = self._resample_logits(logits.cpu(), shape, self.spacing_zyx, spacing)
        return _argmax(np.asarray(full))

    def _tile(self, tile: torch.Tensor) -> torch.Tensor:
        """A tile of the host through the network and back, in float32."""
        return self._forward(tile.to(self.device)).float().cpu()

    def _forward(self, tiles: torch.Tensor) -> torch.Tensor:
        self._go_on()
        return self._call(tiles)

    def _logits(self, image: torch.Tensor, ring: SlidingWindow | None, sums: Sums) -> torch.Tensor:
        if ring is not None:
            return ring.logits(image, self._tile)
        where = self.device if sums is Sums.DEVICE else _HOST
        return self._tensors.logits(image, self._forward, where, self.recipe.tiles)

    def _averaged(self, image: torch.Tensor, ring: SlidingWindow | None, sums: Sums) -> torch.Tensor:
        """The mean of the folds' float16 logits, summed and divided on the host as nnU-Net does."""
        total: torch.Tensor | None = None
        for parameters in self._folds:
            self.network.load_state_dict(parameters)
            logits = self._logits(image, ring, sums).cpu()
            total = logits if total is None else total.add_(logits)
        if total is None:
            raise Broken(f"{self.spec.model_id} has no folds")
        return total.div_(len(self._folds))


def _argmax_on_device(logits: torch.Tensor) -> NDArray[np.uint8]:
    """First index of the largest channel, slab by slab where the logits are; only labels leave the device, at once."""
    labels = torch.empty(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    for z in range(0, logits.shape[1], 8):
        labels[z : z + 8] = logits[:, z : z + 8].float().argmax(0).to(torch.uint8)
    return labels.cpu().numpy()


def _argmax(logits: NDArray[Any]) -> NDArray[np.uint8]:
    """First index of the largest channel; numpy's own argmax of float16 is many times slower."""
    best = logits[0].astype(np.float32)
    labels = np.zeros(best.shape, np.uint8)
    for channel in range(1, len(logits)):
        values = logits[channel].astype(np.float32)
        larger = values > best
        labels[larger] = channel
        np.copyto(best, values, where=larger)
    return labels
