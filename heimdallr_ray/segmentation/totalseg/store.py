"""The networks that a replica holds: loaded when they are asked for, given up when memory is short."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import ModelOverBudget, OutOfMemory
from heimdallr_ray.segmentation.engine import EXACT, TURBO, Timings
from heimdallr_ray.segmentation.specs import ModelSpec, TaskSpec
from heimdallr_ray.segmentation.totalseg import kernels
from heimdallr_ray.segmentation.totalseg.budget import MIB, Need, leaving
from heimdallr_ray.segmentation.totalseg.device import require_computing
from heimdallr_ray.segmentation.totalseg.memory import Road, named
from heimdallr_ray.segmentation.totalseg.model import ResidentModel, always
from heimdallr_ray.segmentation.totalseg.ondevice import Uploads
from heimdallr_ray.segmentation.totalseg.recipe import PLAIN
from heimdallr_ray.segmentation.totalseg.study import ModelImage
from heimdallr_ray.segmentation.totalseg.turbo import START_S, Verdict, phantom_tile, seconds_for, tuned
from heimdallr_ray.segmentation.weights import WeightsSet

logger = logging.getLogger(__name__)
T = TypeVar("T")
_HOST = torch.device("cpu")
SETTING: Final = "HEIMDALLR_SEGMENTER_MEMORY_MIB"


class ModelStore:
    """Models by the number of their data set, in the order of their last use.

    Whoever calls holds the device: the methods are not meant for several threads. Only the properties are, so that
    what a replica tells of itself does not wait for the study that it works on.
    """

    def __init__(
        self,
        weights: WeightsSet,
        device: torch.device,
        slabs: kernels.Slabs,
        *,
        turbo: bool = False,
        budget_mib: int = 0,
        start_s: float = START_S,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            weights: verified registry.
            device: where the models run.
            slabs: threads of the kernels.
            turbo: a model takes the faster ways that leave its labels as they are, see `turbo`.
            budget_mib: what all models together may take on the device; 0: what it has.
            start_s: in which all of them have to be warm, `turbo`'s search included.
        """
        self._weights, self._device, self._slabs = weights, device, slabs
        self._turbo, self._start_s = turbo, start_s
        self._tuning_s = seconds_for(1, start_s)
        self._limit = budget_mib * MIB if budget_mib else None
        self._uploads = Uploads(device)
        self._uploading = device.type != "cpu"
        self._models: dict[int, ResidentModel] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._needs: dict[int, Need] = {}
        self._refused: dict[int, str] = {}
        self._notes: dict[str, str] = {}
        self._changing = threading.Lock()

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """The models on the device, the one used longest ago first."""
        with self._changing:
            return tuple(self._models.values())

    @property
    def refused(self) -> Mapping[int, str]:
        """Models that do not fit into the budget by themselves, and why in words."""
        with self._changing:
            return dict(self._refused)

    @property
    def needs_mib(self) -> Mapping[int, float]:
        """What each model that was warmed up needs by itself."""
        with self._changing:
            return {number: need.mib for number, need in self._needs.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: models that are refused or do not fit, and those that go on in exact mode."""
        with self._changing:
            return tuple(self._notes.values())

    @property
    def copied_images(self) -> int:
        """Images that were copied to the device so far."""
        return self._uploads.copied

    def steps_of(self, spec: ModelSpec) -> tuple[str, ...]:
        """The steps by which a model is faster than exact mode; none in exact mode."""
        with self._changing:
            verdict = self._verdicts.get(spec.dataset_id)
        return () if verdict is None else verdict.recipe.steps

    def mode_of(self, specs: Iterable[ModelSpec]) -> str:
        """`turbo` where one of the models is called in a faster way."""
        return TURBO if any(self.steps_of(spec) for spec in specs) else EXACT

    def require(self, specs: Iterable[ModelSpec]) -> None:
        """Nothing happens where none of the models is refused.

        Raises:
            ModelOverBudget: one is.
        """
        refused = self.refused
        for spec in specs:
            if spec.dataset_id in refused:
                raise ModelOverBudget(refused[spec.dataset_id])

    def model(self, spec: ModelSpec, row: TaskSpec) -> ResidentModel:
        """The model, on the device and the one used last; others left where the budget asks for it.

        Raises:
            ModelOverBudget: it does not fit into the budget by itself.
            As `ResidentModel`.
        """
        self.require((spec,))
        model = self._taken(spec)
        if model is None:
            model = self._brought(spec, row)
            logger.info("model.loaded", extra={"model": spec.model_id, "load_s": round(model.load_s, 3)})
        self._keep(model)
        return model

    def starting_with(self, models: int) -> None:
        """So many models are about to be warmed up, and share the seconds that a start has for `turbo`."""
        self._tuning_s = seconds_for(models, self._start_s)

    def warm(self, spec: ModelSpec, row: TaskSpec) -> None:
        """The model is loaded and has seen one tile, or is named in log and notes because it does not fit.

        Raises:
            As `ResidentModel`, but for OutOfMemory.
        """
        try:
            model = self.model(spec, row)
            self._taken(spec)
            if not model.activation_bytes:
                self._with_room(lambda: self._measure(model))
        except (OutOfMemory, ModelOverBudget) as error:
            logger.warning("model.does_not_fit", extra={"model": spec.model_id, "detail": error.detail})
            self._note(spec, "memory", error.detail)
            return
        self._keep(model)

    def for_road(self, spec: ModelSpec, row: TaskSpec, road: Road) -> ResidentModel:
        """The model where `road` wants it; on the host it is exact, the caller's alone, and loaded anew afterwards.

        Raises:
            As `model`.
        """
        if not road.on_host or self._device.type == "cpu":
            return self.model(spec, row)
        self._taken(spec)
        self.release()
        return self._built(spec, row, _HOST)

    def predict(
        self, model: ResidentModel, image: ModelImage, planes: slice, road: Road, go_on: Callable[[], None] = always
    ) -> tuple[NDArray[np.uint8], Timings]:
        """As `ResidentModel.predict`; before another road is taken, all other models leave the device.

        Args:
            model: from `for_road`.
            image: what the study shows to models of this spacing.
            planes: the part of it along z.
            road: how the model is run.
            go_on: called before each tile; what it raises ends the prediction.

        Raises:
            As `ResidentModel.predict`.
        """
        if road is not Road.WHOLE:
            self._uploads.forget()
        others = [other.spec for other in self.loaded if other.spec != model.spec]
        try:
            return self._predicted(model, image, planes, road, go_on)
        except OutOfMemory:
            if not others or model.device != self._device:
                raise
        for other in others:
            self._taken(other)
        logger.warning("models.given_up", extra={"models": len(others)})
        self.release()
        return self._predicted(model, image, planes, road, go_on)

    def _predicted(
        self, model: ResidentModel, image: ModelImage, planes: slice, road: Road, go_on: Callable[[], None]
    ) -> tuple[NDArray[np.uint8], Timings]:
        uploaded: torch.Tensor | None = None
        if self._uploading and road is Road.WHOLE and model.takes_uploads(image):
            with named(f"the image of {model.spec.model_id} does not fit on {self._device}"):
                uploaded = self._uploads.of(image)[planes]
        return model.predict(image.zyx[planes], image.affine, road.sums, uploaded, go_on)

    def give_up_all(self) -> bool:
        """No model is on the device any more; False where none was."""
        with self._changing:
            given_up = len(self._models)
            self._models.clear()
        self._uploads.forget()
        if given_up:
            logger.warning("models.given_up", extra={"models": given_up})
        self.release()
        return given_up > 0

    def release(self) -> None:
        """What torch keeps of freed memory goes back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _brought(self, spec: ModelSpec, row: TaskSpec) -> ResidentModel:
        """A model that is not there, on the device, by its recipe and inside the budget."""
        self._leave_for(self._needs.get(spec.dataset_id))
        plain = self._with_room(lambda: self._built(spec, row, self._device))
        model = self._with_room(lambda: self._by_its_recipe(plain, row)) if self._turbo else plain
        if self._limit is not None:
            self._with_room(lambda: self._admit(model))
        return model

    def _built(self, spec: ModelSpec, row: TaskSpec, device: torch.device) -> ResidentModel:
        # memory may end anywhere on the way: in the bytes of the checkpoint, in the network, in its copy
        with named(f"{spec.model_id} does not fit on {device}"):
            return ResidentModel(self._weights, spec, row.tile_step, device, self._slabs)

    def _by_its_recipe(self, model: ResidentModel, row: TaskSpec) -> ResidentModel:
        """The model as its verdict says, found now where there is none yet; built anew where it has to be exact."""
        spec = model.spec
        verdict = self._verdicts.get(spec.dataset_id)
        if verdict is not None:
            if verdict.recipe == PLAIN:
                return model
            try:
                model.use(verdict.recipe)
                self._measure(model)
            except (RuntimeError, OSError, ImportError) as error:
                require_computing(self._device)
                failed = f"{', '.join(verdict.recipe.steps)}: failed with {type(error).__name__} when loaded again"
                self._settle(spec, replace(verdict, recipe=PLAIN, notes=(failed,)))
                return self._built(spec, row, self._device)
            return model
        self._measure(model)
        began = time.perf_counter()
        verdict = tuned(model, phantom_tile(model, row), began + self._tuning_s)
        self._settle(spec, verdict)
        if verdict.recipe == PLAIN:
            return self._built(spec, row, self._device)
        self._measure(model)
        return model

    def _settle(self, spec: ModelSpec, verdict: Verdict) -> None:
        with self._changing:
            self._verdicts[spec.dataset_id] = verdict
        facts = {"model": spec.model_id, "notes": list(verdict.notes)}
        how = ", ".join(verdict.recipe.steps)
        self._note(spec, "turbo", f"runs {f'by {how}' if how else 'in exact mode'} ({'; '.join(verdict.notes)})")
        if verdict.recipe == PLAIN:
            logger.warning("turbo.fell_back", extra=facts)
            return
        seconds = {"exact_s": round(verdict.exact_s, 3), "turbo_s": round(verdict.turbo_s, 3)}
        logger.info("turbo.taken", extra={**facts, **seconds, "steps": list(verdict.recipe.steps)})

    def _measure(self, model: ResidentModel) -> None:
        number = model.spec.dataset_id
        if number in self._needs:
            model.activation_bytes = self._needs[number].activations
        model.warm_up()
        with self._changing:
            self._needs[number] = Need(model.weights_bytes, model.activation_bytes)

    def _admit(self, model: ResidentModel) -> None:
        """The model is inside the budget, beside those that were used last."""
        if not model.activation_bytes:
            self._measure(model)
        need, limit = self._needs[model.spec.dataset_id], self._limit
        if limit is not None and need.together > limit:
            least = -(-need.together // MIB)
            words = (
                f"{model.spec.model_id} needs {least} MiB, the budget is {limit // MIB} MiB; set {SETTING} to {least}"
            )
            words += " or more, or to 0 for no bound"
            with self._changing:
                self._refused[model.spec.dataset_id] = words
            raise ModelOverBudget(words)
        self._leave_for(need)

    def _leave_for(self, coming: Need | None) -> None:
        if coming is None:
            return
        there = [(one.spec, Need(one.weights_bytes, one.activation_bytes)) for one in self.loaded]
        numbered = [(spec.dataset_id, need) for spec, need in there]
        specs = {spec.dataset_id: spec for spec, _ in there}
        for number in leaving(numbered, coming, self._limit):
            self._taken(specs[number])
            logger.info("model.given_up", extra={"model": specs[number].model_id, "why": "budget"})
            self.release()

    def _note(self, spec: ModelSpec, about: str, words: str) -> None:
        with self._changing:
            self._notes[f"{spec.model_id} {about}"] = words if spec.model_id in words else f"{spec.model_id}: {words}"

    def _taken(self, spec: ModelSpec) -> ResidentModel | None:
        with self._changing:
            return self._models.pop(spec.dataset_id, None)

    def _keep(self, model: ResidentModel) -> None:
        with self._changing:
            self._models[model.spec.dataset_id] = model

    def _with_room(self, work: Callable[[], T]) -> T:
        """What `work` gives; while it runs out of memory, copied images and then the oldest models are given up.

        Raises:
            OutOfMemory: it runs out of memory with nothing else on the device.
        """
        while True:
            try:
                return work()
            except OutOfMemory:
                if not self._models and not self._uploads.held:
                    raise
            if self._uploads.held:
                self._uploads.forget()
            else:
                oldest = self._taken(self.loaded[0].spec)
                if oldest is not None:
                    logger.warning("model.given_up", extra={"model": oldest.spec.model_id, "why": "memory"})
                del oldest
            self.release()
