"""The resident engine: TotalSegmentator's results without its processes, files and reloading."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import EmptyImage, LicenceRequired, ModalityNotSupported, OutOfMemory, WeightsMissing
from heimdallr_ray.segmentation.engine import EngineInfo, MemoryStep, Segmentation, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import DEFAULT_WANTED, Wanted, first_pass, plan
from heimdallr_ray.segmentation.specs import RESIDENT, UPSTREAM, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, models_of, task_spec
from heimdallr_ray.segmentation.totalseg import environment, kernels, memory, split
from heimdallr_ray.segmentation.totalseg.labels import labels_of, labels_of_model, require_known, table_for
from heimdallr_ray.segmentation.totalseg.memory import Road
from heimdallr_ray.segmentation.totalseg.model import ResidentModel, is_synthetic
from heimdallr_ray.segmentation.totalseg.postprocess import clean
from heimdallr_ray.segmentation.totalseg.study import ModelImage, Study
from heimdallr_ray.segmentation.totalseg.upstream import UpstreamRunner
from heimdallr_ray.segmentation.weights import WeightsSet, any_synthetic, verify
from heimdallr_ray.volume import LabelMap, ModelRef, Volume

logger = logging.getLogger(__name__)
T = TypeVar("T")


STUDIES_AT_ONCE = 2
"""One on the device, one prepared or restored: each holds its volume in several forms."""


def combined_digest(digests: tuple[str, ...]) -> str:
    """One digest for a task: that of its model, or of the parts' digests in order."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class ResidentEngine:
    """A `SegmentationEngine` over a verified registry; models load on first use or in `warm_up`.

    The masks equal those of `totalsegmentator()` in voxels, affine and header, but for three cases: an image without
    the structures a task crops to gives zeros (upstream may predict on the whole volume), a label without a name is
    refused, and so is an image of one value. Tasks whose row says so run through upstream's own entry point in a
    process of their own. The device serves one call at a time; meanwhile another study is
    checked, turned, interpolated or brought back to its grid, two studies at most.
    """

    def __init__(
        self,
        weights_dir: Path,
        device: str = "cpu",
        threads: int | None = None,
        *,
        licensed: bool = False,
        home_dir: Path | None = None,
        force_split: bool = False,
        lower_resolution: bool = False,
    ) -> None:
        """The registry is hashed, upstream's environment set, nothing is loaded yet.

        Args:
            weights_dir: registry with manifest.json.
            device: torch device: cpu, cuda, cuda:1.
            threads: CPU threads; None: all cores, as upstream.
            licensed: the site has a TotalSegmentator licence for the tasks that need one.
            home_dir: folder for upstream's config.json; None: a temporary one that goes with the process.
            force_split: images of any size are split into three parts along z, as upstream's option of this name does;
                less memory, and labels near the seams may differ.
            lower_resolution: a task that fits nowhere may be answered by its coarser one, see `memory.COARSER`; the
                label map then carries the coarser model's identity.

        Raises:
            WeightsMissing, WeightsTampered: as `verify`.
        """
        self._weights: WeightsSet = verify(weights_dir)
        self._any_synthetic = any_synthetic(self._weights)
        self._home = environment.prepare(weights_dir, home_dir)
        self._device = torch.device(device)
        self._threads = threads or os.cpu_count() or 1
        self._licensed = licensed
        self._force_split = force_split
        self._lower_resolution = lower_resolution
        self._slabs = kernels.Slabs(self._threads)
        self._upstream = UpstreamRunner(self._weights, self._home, device, self._threads)
        self._models: dict[int, ResidentModel] = {}
        self._synthetic: dict[int, bool] = {}
        self._device_lock = threading.RLock()
        self._places = threading.BoundedSemaphore(STUDIES_AT_ONCE)
        self._kept_lock = threading.Lock()
        self._study: Study | None = None
        self._study_of: weakref.ref[Volume] | None = None
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)
            environment.keep_freed_memory()

    @property
    def available_tasks(self) -> tuple[str, ...]:
        """Tasks whose models, the rough one for cropping included, are all in the registry."""
        return tuple(name for name in TASKS if all(map(self._installed, models_of(name))))

    @property
    def licensed_tasks(self) -> tuple[str, ...]:
        """Available tasks that may run here: open, or licensed, or with our own synthetic weights."""
        return tuple(name for name in self.available_tasks if self._may_run(TASKS[name]))

    def info(self) -> EngineInfo:
        """What is loaded and where."""
        with self._device_lock:
            models = tuple(self._model_ref(row, (model,)) for row, model in self._rows() if self._loaded(model))
            loads = {model.spec.model_id: model.load_s for model in self._models.values()}
        return EngineInfo(
            backend=RESIDENT,
            device=str(self._device),
            threads=self._threads,
            models=models,
            available_tasks=self.available_tasks,
            licensed_tasks=self.licensed_tasks,
            synthetic=self._any_synthetic,
            load_s=loads,
            versions=environment.versions(),
        )

    def warm_up(self) -> None:
        """All installed models that may run have been loaded and have seen one tile; kernels are compiled.

        Where they do not all fit, those used longest ago leave again and are loaded when they are asked for; one that
        does not fit alone is named in the log, and its studies take the roads of `memory.Road`.
        """
        with self._device_lock:
            if not self.available_tasks:
                raise WeightsMissing("no complete model of any known task in the weights folder")
            kernels.compile_all()
            for name in self.licensed_tasks:
                row = TASKS[name]
                for spec in row.models if row.backend == RESIDENT else ():
                    self._warm(spec, row)

    def segment(self, volume: Volume, task: str) -> Segmentation:
        """The labels of one task on the grid of `volume`; work shared with the last call's volume is not repeated.

        Raises:
            As `SegmentationEngine.segment`.
        """
        spec = task_spec(task)
        with self._places:
            study = self._study_for(volume)
            with study.lock:
                return self._task(study, spec)

    def run_plan(self, volume: Volume, wanted: tuple[Wanted, ...] = DEFAULT_WANTED) -> SegmentationRun:
        """First pass, plan, and every task of the plan.

        Raises:
            As `SegmentationEngine.run_plan`.
        """
        modality = volume.source.modality
        began = time.perf_counter()
        available = self.available_tasks
        rough = first_pass(modality, available)
        with self._places:
            study = self._study_for(volume)
            with study.lock:
                spent = Timings()
                if rough is not None:
                    spent += self._task(study, task_spec(rough)).timings
                made = plan(study.found_ml, modality, available, self.licensed_tasks, wanted)
                segmentations = {name: self._task(study, task_spec(name)) for name in made.run}
                found = dict(study.found_ml)
                steps = {name: one.steps for name, one in study.segmentations.items() if one.steps}
            self._forget(study)
        for name, segmentation in segmentations.items():
            if name != rough:
                spent += segmentation.timings
        timings = replace(spent, total_s=time.perf_counter() - began)
        return SegmentationRun(segmentations, made, found, timings, steps)

    def _forget(self, study: Study) -> None:
        with self._kept_lock:
            if self._study is study:
                self._study = self._study_of = None

    def _study_for(self, volume: Volume) -> Study:
        with self._kept_lock:
            if self._study is not None and self._study_of is not None and self._study_of() is volume:
                return self._study
        made = Study(volume, self._slabs)
        with self._kept_lock:
            self._study, self._study_of = made, weakref.ref(volume)
        return made

    def _rows(self) -> list[tuple[TaskSpec, ModelSpec]]:
        return [(row, model) for row in TASKS.values() for model in row.models]

    def _loaded(self, spec: ModelSpec) -> bool:
        return spec.dataset_id in self._models

    def _is_synthetic(self, spec: ModelSpec) -> bool:
        if spec.dataset_id not in self._synthetic:
            self._synthetic[spec.dataset_id] = is_synthetic(self._weights, spec)
        return self._synthetic[spec.dataset_id]

    def _may_run(self, row: TaskSpec) -> bool:
        return not row.licence or self._licensed or all(self._is_synthetic(model) for model in row.models)

    def _installed(self, spec: ModelSpec) -> bool:
        checkpoints = spec.checkpoints(self._weights.files)
        return bool(checkpoints) and all(name in self._weights.files for name in checkpoints)

    def _require(self, row: TaskSpec) -> None:
        for spec in models_of(row.name):
            if not self._installed(spec):
                raise WeightsMissing(f"{spec.folder} is not installed")
        if not self._may_run(row):
            raise LicenceRequired(f"{row.upstream_task} needs a TotalSegmentator licence of the site")

    def _model(self, spec: ModelSpec, row: TaskSpec) -> ResidentModel:
        model = self._models.pop(spec.dataset_id, None)
        if model is None:
            model = self._with_room(
                lambda: ResidentModel(self._weights, spec, row.tile_step, self._device, self._slabs)
            )
            logger.info("model loaded", extra={"model": spec.model_id, "load_s": round(model.load_s, 3)})
        # the dictionary's order is that of the last use
        self._models[spec.dataset_id] = model
        return model

    def _warm(self, spec: ModelSpec, row: TaskSpec) -> None:
        try:
            model = self._model(spec, row)
            del self._models[spec.dataset_id]
            self._with_room(model.warm_up)
        except OutOfMemory as error:
            logger.warning("model does not fit", extra={"model": spec.model_id, "detail": error.detail})
            return
        self._models[spec.dataset_id] = model

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
            oldest = self._models.pop(next(iter(self._models)))
            logger.warning("model given up for want of memory", extra={"model": oldest.spec.model_id})
            del oldest
            self._release()

    def _model_ref(self, row: TaskSpec, models: tuple[ModelSpec, ...]) -> ModelRef:
        files = [name for model in models for name in model.checkpoints(self._weights.files)]
        digests = tuple(str(self._weights.entry(name).sha256) for name in files)
        return ModelRef(
            task=row.upstream_task,
            model_id="totalsegmentator/" + "+".join(str(model.dataset_id) for model in models),
            weights_sha256=combined_digest(digests),
            synthetic=any(self._is_synthetic(model) for model in models),
            backend=row.backend,
        )

    def _task(self, study: Study, spec: TaskSpec) -> Segmentation:
        done = study.segmentations.get(spec.name)
        if done is not None:
            return done
        modality = study.volume.source.modality
        if modality != spec.modality:
            raise ModalityNotSupported(f"{spec.name} reads {spec.modality}, the image is {modality}")
        self._require(spec)
        try:
            segmentation = self._made(study, spec)
        except OutOfMemory:
            coarser = memory.COARSER.get(spec.name)
            if not self._lower_resolution or coarser not in self.licensed_tasks:
                raise
            segmentation = self._stands_in(study, spec, task_spec(coarser))
        study.segmentations[spec.name] = segmentation
        return segmentation

    def _stands_in(self, study: Study, spec: TaskSpec, coarser: TaskSpec) -> Segmentation:
        """The coarser task's labels under its own model's name, said to be in the place of `spec`."""
        with self._device_lock:
            self._release()
        step = MemoryStep(self._model_ref(spec, spec.models).model_id, memory.EVERY_ROAD, coarser.name)
        logger.warning("out of memory", extra=asdict(step))
        made = self._task(study, coarser)
        return replace(made, task=spec.name, steps=(step, *made.steps))

    def _made(self, study: Study, spec: TaskSpec) -> Segmentation:
        began = time.perf_counter()
        steps: list[MemoryStep] = []
        try:
            if spec.backend == UPSTREAM:
                array, affine, spent = self._outside(study, spec)
            else:
                array, affine, spent = self._inside(study, spec, steps)
        except MemoryError as error:
            raise OutOfMemory(f"the image does not fit into the host's memory at the spacing of {spec.name}") from error
        label_map = LabelMap(
            array=array,
            affine_ras=affine,
            labels=labels_of(spec),
            model=self._model_ref(spec, spec.models),
            source_manifest_sha256=study.volume.source.manifest_sha256,
        )
        timings = replace(spent, total_s=time.perf_counter() - began)
        segmentation = Segmentation(spec.name, label_map, timings, tuple(steps))
        logger.info(
            "segmented",
            extra={
                "task": spec.name,
                "total_s": round(timings.total_s, 3),
                "forward_s": round(timings.forward_s, 3),
                "synthetic": label_map.model.synthetic,
            },
        )
        return segmentation

    def _image(self, study: Study, spec: TaskSpec) -> ModelImage | None:
        if spec.crop is None:
            return study.image(spec.spacing_mm)
        rough = self._task(study, task_spec(spec.crop.task)).label_map
        return study.cropped(spec.spacing_mm, rough.mask(*spec.crop.structures), spec.crop.margin_mm)

    def _inside(
        self, study: Study, spec: TaskSpec, steps: list[MemoryStep]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], Timings]:
        """Labels on the grid of the volume, their affine and what they cost, from the resident models."""
        image = self._image(study, spec)
        spent = study.take_timings()
        if image is None:
            return np.zeros(study.native.array.shape, np.uint8), study.native.affine, spent
        with self._device_lock:
            labels, predicted = self._predict(spec, image, steps)
        restoring = time.perf_counter()
        clean(labels, image.affine, spec)
        if spec.name == FIRST_PASS:
            study.found_ml = _found_ml(labels, image.affine, labels_of(spec))
        array, affine = study.restore(labels, image)
        return array, affine, spent + predicted + Timings(restore_s=time.perf_counter() - restoring)

    def _outside(self, study: Study, spec: TaskSpec) -> tuple[NDArray[np.uint8], NDArray[np.float64], Timings]:
        """The same from TotalSegmentator's own entry point."""
        with self._device_lock:
            array, affine, spent = self._upstream.run(study.volume, spec)
        require_known(array, labels_of(spec), spec.name)
        return array, affine, study.take_timings() + spent

    def _predict(self, spec: TaskSpec, image: ModelImage, steps: list[MemoryStep]) -> tuple[NDArray[np.uint8], Timings]:
        """Labels of the task, `[x, y, z]` on the grid of `image`; what was tried for want of memory goes to `steps`.

        Raises:
            EmptyImage: all voxels are 0 at the model's spacing.
            Broken: a model gave a label that its table does not hold.
            OutOfMemory: a model does not fit in any way.
        """
        if not image.zyx.any():
            raise EmptyImage("all voxels of the image are 0 at the model's spacing")
        merged = np.zeros(image.zyx.shape, np.uint8)
        spent = Timings()
        pieces = split.pieces(image.zyx.shape, len(spec.models), force=self._force_split)
        parts = split.pieces(image.zyx.shape, len(spec.models), force=True)
        order = memory.roads(accelerated=self._device.type != "cpu", splittable=len(parts) > len(pieces))
        for one in spec.models:

            def attempt(road: Road, one: ModelSpec = one) -> tuple[list[NDArray[np.uint8]], Timings]:
                return self._run(one, spec, image, parts if road.in_parts else pieces, road)

            (labels, timings), taken = memory.first_that_fits(one.model_id, order, attempt, self._release)
            for step in taken:
                logger.warning("out of memory", extra=asdict(step))
            steps.extend(taken)
            table, known = table_for(spec, one), labels_of_model(spec, one)
            for piece, seen in zip(pieces if len(labels) == len(pieces) else parts, labels, strict=True):
                require_known(seen, known, one.model_id)
                part = table[seen]
                np.copyto(merged[piece.kept], part, where=part != 0)
            spent += timings
        return merged.transpose(2, 1, 0), spent

    def _run(
        self, one: ModelSpec, row: TaskSpec, image: ModelImage, pieces: tuple[split.Piece, ...], road: Road
    ) -> tuple[list[NDArray[np.uint8]], Timings]:
        """`[z, y, x]` labels of what each piece keeps."""
        if road.on_host and self._device.type != "cpu":
            # it leaves the device, and is loaded there anew when it is asked for next
            self._models.pop(one.dataset_id, None)
            self._release()
            model = ResidentModel(self._weights, one, row.tile_step, torch.device("cpu"), self._slabs)
        else:
            model = self._model(one, row)
        found: list[NDArray[np.uint8]] = []
        spent = Timings()
        for piece in pieces:
            labels, timings = self._alone_if_need_be(model, image.zyx[piece.shown], image.affine, road)
            found.append(labels.transpose(2, 1, 0)[piece.inner])
            spent += timings
        return found, spent

    def _alone_if_need_be(
        self, model: ResidentModel, zyx: NDArray[np.float32], affine: NDArray[np.float64], road: Road
    ) -> tuple[NDArray[np.uint8], Timings]:
        """As `ResidentModel.predict`; before another road is taken, all other models leave the device."""
        others = [number for number in self._models if number != model.spec.dataset_id]
        try:
            return model.predict(zyx, affine, road.sums)
        except OutOfMemory:
            if not others or model.device != self._device:
                raise
        for number in others:
            del self._models[number]
        logger.warning("models given up for want of memory", extra={"models": len(others)})
        self._release()
        return model.predict(zyx, affine, road.sums)

    def _release(self) -> None:
        """What torch keeps of freed memory goes back to the device."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _found_ml(labels: NDArray[np.uint8], affine: NDArray[np.float64], names: Mapping[int, str]) -> dict[str, float]:
    """Millilitres of each structure on the model's own grid."""
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0
    counts = np.bincount(labels.ravel(), minlength=256)
    return {name: float(counts[value]) * voxel_ml for value, name in names.items() if counts[value]}
