"""The networks that a replica holds: loaded when they are asked for, given up when memory is short."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import OutOfMemory
from heimdallr_ray.segmentation.engine import Timings
from heimdallr_ray.segmentation.specs import ModelSpec
from heimdallr_ray.segmentation.totalseg import kernels
from heimdallr_ray.segmentation.totalseg.memory import Road, is_out_of_memory
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.weights import WeightsSet

logger = logging.getLogger(__name__)
T = TypeVar("T")
_HOST = torch.device("cpu")


class ModelStore:
    """Models by the number of their data set, in the order of their last use.

    Whoever calls holds the device: the methods are not meant for several threads. Only `loaded` is, so that what a
    replica tells of itself does not wait for the study that it works on.
    """

    def __init__(self, weights: WeightsSet, device: torch.device, slabs: kernels.Slabs) -> None:
        self._weights, self._device, self._slabs = weights, device, slabs
        self._models: dict[int, ResidentModel] = {}
        self._changing = threading.Lock()

    def loaded(self) -> tuple[ResidentModel, ...]:
        """The models on the device, the one used longest ago first."""
        with self._changing:
            return tuple(self._models.values())

    def model(self, spec: ModelSpec, tile_step: float) -> ResidentModel:
        """The model, on the device and the one used last.

        Raises:
            As `ResidentModel`.
        """
        model = self._taken(spec)
        if model is None:
            model = self._with_room(lambda: self._built(spec, tile_step, self._device))
            logger.info("model loaded", extra={"model": spec.model_id, "load_s": round(model.load_s, 3)})
        self._keep(model)
        return model

    def warm(self, spec: ModelSpec, tile_step: float) -> None:
        """The model is loaded and has seen one tile, or is named in the log because it does not fit.

        Raises:
            As `ResidentModel`, but for OutOfMemory.
        """
        try:
            model = self.model(spec, tile_step)
            self._taken(spec)
            self._with_room(model.warm_up)
        except OutOfMemory as error:
            logger.warning("model does not fit", extra={"model": spec.model_id, "detail": error.detail})
            return
        self._keep(model)

    def for_road(self, spec: ModelSpec, tile_step: float, road: Road) -> ResidentModel:
        """The model where `road` wants it; on the host it is the caller's alone and is loaded anew afterwards.

        Raises:
            As `ResidentModel`.
        """
        if not road.on_host or self._device.type == "cpu":
            return self.model(spec, tile_step)
        self._taken(spec)
        self.release()
        return self._built(spec, tile_step, _HOST)

    def predict(
        self, model: ResidentModel, zyx: NDArray[np.float32], affine: NDArray[np.float64], road: Road
    ) -> tuple[NDArray[np.uint8], Timings]:
        """As `ResidentModel.predict`; before another road is taken, all other models leave the device.

        Raises:
            As `ResidentModel.predict`.
        """
        others = [other.spec for other in self.loaded() if other.spec != model.spec]
        try:
            return model.predict(zyx, affine, road.sums)
        except OutOfMemory:
            if not others or model.device != self._device:
                raise
        for other in others:
            self._taken(other)
        logger.warning("models given up for want of memory", extra={"models": len(others)})
        self.release()
        return model.predict(zyx, affine, road.sums)

    def release(self) -> None:
        """What torch keeps of freed memory goes back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _built(self, spec: ModelSpec, tile_step: float, device: torch.device) -> ResidentModel:
        try:
            return ResidentModel(self._weights, spec, tile_step, device, self._slabs)
        except (MemoryError, RuntimeError) as error:
            # memory may end anywhere on the way: in the bytes of the checkpoint, in the network, in its copy
            if is_out_of_memory(error):
                raise OutOfMemory(f"{spec.model_id} does not fit on {device}") from error
            raise

    def _taken(self, spec: ModelSpec) -> ResidentModel | None:
        with self._changing:
            return self._models.pop(spec.dataset_id, None)

    def _keep(self, model: ResidentModel) -> None:
        with self._changing:
            self._models[model.spec.dataset_id] = model

    def _with_room(self, work: Callable[[], T]) -> T:
        """What `work` gives; while it runs out of memory, the model that was used longest ago is given up.

        Raises:
            OutOfMemory: it runs out of memory with no other model loaded.
        """
        while True:
            try:
                return work()
            except OutOfMemory:
                if not self._models:
                    raise
            self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        oldest = self._taken(next(iter(self._models.values())).spec)
        if oldest is not None:
            logger.warning("model given up for want of memory", extra={"model": oldest.spec.model_id})
        del oldest
        self.release()
