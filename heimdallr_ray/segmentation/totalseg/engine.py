"""The resident engine: TotalSegmentator's results without its processes, files and reloading."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from heimdallr_ray.errors import (
    Broken,
    DeviceLost,
    EmptyImage,
    ModalityNotSupported,
    ModelOverBudget,
    OutOfMemory,
    Rejected,
    WeightsMissing,
)
from heimdallr_ray.segmentation import tasks
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.engine import (
    EXACT,
    TURBO,
    EngineInfo,
    MemoryStep,
    Segmentation,
    SegmentationRun,
    Timings,
)
from heimdallr_ray.segmentation.planner import DEFAULT_WANTED, LeftOut, LeftOutCode, Plan, Wanted, first_pass, plan
from heimdallr_ray.segmentation.specs import RESIDENT, UPSTREAM, ModelSpec, TaskSpec
from heimdallr_ray.segmentation.tasks import FIRST_PASS, task_spec
from heimdallr_ray.segmentation.totalseg import environment, kernels, memory, split
from heimdallr_ray.segmentation.totalseg.inventory import Inventory
from heimdallr_ray.segmentation.totalseg.labels import labels_of, labels_of_model, require_known, table_for
from heimdallr_ray.segmentation.totalseg.memory import Road
from heimdallr_ray.segmentation.totalseg.offer import Offer
from heimdallr_ray.segmentation.totalseg.outside import run_outside
from heimdallr_ray.segmentation.totalseg.postprocess import clean
from heimdallr_ray.segmentation.totalseg.store import ModelStore
from heimdallr_ray.segmentation.totalseg.study import ModelImage, Study
from heimdallr_ray.segmentation.totalseg.turbo import START_S
from heimdallr_ray.segmentation.totalseg.upstream import UpstreamRunner
from heimdallr_ray.segmentation.weights import registry_to_fill, verify
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, require_same_grid

logger = logging.getLogger(__name__)


STUDIES_AT_ONCE = 2
"""One on the device, one prepared or restored: each holds its volume in several forms."""


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
        mode: str = EXACT,
        memory_mib: int = 0,
        compile_dir: Path | None = None,
        start_s: float = START_S,
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
            mode: `exact`, or `turbo`: models take the faster ways that leave their labels as they are, see `turbo`.
            memory_mib: what all models together may take on the device, see `store`; 0: what there is.
            compile_dir: folder of this user's for what `turbo` compiles; None: one that goes with the process.
            start_s: in which a stack has to be ready; `turbo` takes no more than half of it.

        Raises:
            WeightsMissing, WeightsTampered: as `verify`.
            Broken: a folder cannot be written, or `compile_dir` is not ours alone.
        """
        weights = verify(weights_dir)
        self._inventory = Inventory(weights, licensed=licensed)
        self._registry = registry_to_fill(weights_dir)
        home = environment.prepare(weights_dir, home_dir)
        self._device = torch.device(device)
        self._threads = threads or os.cpu_count() or 1
        self._force_split = force_split
        self._slabs = kernels.Slabs(self._threads)
        self._upstream = UpstreamRunner(weights, home, device, self._threads)
        self._mode, self._memory_mib = mode, memory_mib
        if mode == TURBO:
            environment.prepare_compiler(compile_dir or home / "compiled")
        self._store = ModelStore(
            weights, self._device, self._slabs, turbo=mode == TURBO, budget_mib=memory_mib, start_s=start_s
        )
        self._offer = Offer(self._inventory, self._store, lower_resolution=lower_resolution)
        self._device_lock = threading.RLock()
        self._places = threading.BoundedSemaphore(STUDIES_AT_ONCE)
        # collecting a volume may forget its study in the thread that holds the lock
        self._kept_lock = threading.RLock()
        self._study: Study | None = None
        self._study_of: weakref.ref[Volume] | None = None
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)
            environment.keep_freed_memory()

    @property
    def available_tasks(self) -> tuple[str, ...]:
        """As `Offer.available_tasks`."""
        return self._offer.available_tasks

    @property
    def licensed_tasks(self) -> tuple[str, ...]:
        """As `Offer.licensed_tasks`."""
        return self._offer.licensed_tasks

    @property
    def copied_images(self) -> int:
        """Images that were copied to an accelerator so far: one for all models at a spacing of a study."""
        return self._store.copied_images

    def info(self) -> EngineInfo:
        """What is loaded and where; does not wait for the study that is on the device."""
        loaded = {model.spec.dataset_id: model for model in self._store.loaded}
        rows = [(row, spec) for row in tasks.TASKS.values() for spec in row.models]
        needs = self._store.needs_mib
        turbo = {spec.model_id: self._store.steps_of(spec) for _, spec in rows}
        return EngineInfo(
            backend=RESIDENT,
            device=str(self._device),
            threads=self._threads,
            models=tuple(self._reference(row, (spec,)) for row, spec in rows if spec.dataset_id in loaded),
            available_tasks=self.available_tasks,
            licensed_tasks=self.licensed_tasks,
            synthetic=self._inventory.any_synthetic,
            load_s={model.spec.model_id: model.load_s for model in loaded.values()},
            versions=environment.versions(),
            mode=self._mode,
            turbo={name: steps for name, steps in turbo.items() if steps},
            needs_mib={spec.model_id: needs[spec.dataset_id] for _, spec in rows if spec.dataset_id in needs},
            budget_mib=self._memory_mib,
            notes=(*self._store.notes, *dict.fromkeys(self._inventory.set_aside.values())),
            set_aside=self._inventory.set_aside,
            over_budget=self._offer.over_budget,
        )

    def warm_up(self, wanted: tuple[Wanted, ...] | None = None) -> None:
        """All installed models that may run have been loaded and have seen one tile; kernels are compiled.

        With `wanted`, only those that some image can make run for it; others are loaded when they are asked for.
        Where they do not all fit, those used longest ago leave again and are loaded when they are asked for; one that
        does not fit alone is named in the log, and its studies take the roads of `memory.Road`. One that the budget
        refuses leaves its tasks to what stands in for them, which is then loaded in its place. One that cannot be
        built is set aside with the tasks that need it; whether the site can do without them is for the caller to say.

        Raises:
            WeightsMissing: no task is left.
            Broken: the first pass cannot be built, without which no task reads CT.
            DeviceLost: the device refuses everything after an error of a model.
            ModelOverBudget: the first pass does not fit into the budget.
        """
        with self._device_lock:
            if not self.available_tasks:
                raise WeightsMissing("no complete model of any known task in the weights folder")
            kernels.compile_all()
            warmed: set[str] = set()
            # each round adds a task, so there are no more rounds than tasks
            while named := [name for name in self._offer.may_need(wanted) if name not in warmed]:
                warmed.update(named)
                rows = [row for row in (tasks.TASKS[name] for name in named) if row.backend == RESIDENT]
                self._store.starting_with(len({spec for row in rows for spec in row.models}))
                for row in rows:
                    for spec in row.models:
                        self._warm(spec, row)
            over = self._offer.over_budget
        if FIRST_PASS in over:
            raise ModelOverBudget(f"{over[FIRST_PASS]}; without the first pass no CT is read")

    def _warm(self, spec: ModelSpec, row: TaskSpec) -> None:
        if row.name in self._inventory.set_aside:
            return
        try:
            self._store.warm(spec, row)
        except Broken as error:
            if row.name == FIRST_PASS or isinstance(error, DeviceLost):
                raise
            why = f"{spec.dataset_folder} is set aside: {error.detail}; install it anew with --replace"
            logger.exception("model.set_aside", extra={"model": spec.model_id, "code": error.code})
            self._inventory.leave_out(spec, why)

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

    def run_plan(
        self,
        volume: Volume,
        wanted: tuple[Wanted, ...] = DEFAULT_WANTED,
        earlier: SegmentationRun | None = None,
        deadline: Deadline | None = None,
    ) -> SegmentationRun:
        """First pass, plan, and every task of the plan; what `earlier` holds is taken over, and costs nothing here.

        Raises:
            As `SegmentationEngine.run_plan`.
        """
        modality = volume.source.modality
        began = time.perf_counter()
        available = self.available_tasks
        rough = first_pass(modality, available)
        deadline = deadline or Deadline()
        with deadline.holding(self._places, "the study"):
            study = self._study_for(volume)
            try:
                with study.lock:
                    study.deadline = deadline
                    spent = Timings()
                    if earlier is not None:
                        self._take_over(study, earlier)
                    if rough is not None:
                        spent += self._task(study, task_spec(rough)).timings
                    made = plan(
                        study.found_ml,
                        modality,
                        available,
                        self.licensed_tasks,
                        wanted,
                        refused=self._offer.over_budget,
                        set_aside=self._inventory.set_aside,
                        registry=self._registry,
                    )
                    segmentations, made = self._planned(study, made)
                    found = dict(study.found_ml)
                    steps = {name: one.steps for name, one in study.segmentations.items() if one.steps}
            finally:
                self._forget(volume)
        for name, segmentation in segmentations.items():
            if name != rough:
                spent += segmentation.timings
        timings = replace(spent, total_s=time.perf_counter() - began)
        return SegmentationRun(segmentations, made, found, timings, steps)

    def _planned(self, study: Study, made: Plan) -> tuple[dict[str, Segmentation], Plan]:
        """What the tasks of the plan gave, and the plan without those from which nothing is made and which failed.

        Raises:
            As `segment` and OutOfTime, for a task that something is made from; OutOfMemory and DeviceLost for any.
        """
        segmentations: dict[str, Segmentation] = {}
        failed: list[LeftOut] = []
        for name in made.run:
            try:
                segmentations[name] = self._task(study, task_spec(name))
            except (Broken, Rejected) as error:
                if name not in made.extra or isinstance(error, (OutOfMemory, DeviceLost)):
                    raise
                logger.exception("task.failed", extra={"task": name, "code": error.code})
                failed.append(LeftOut(name, LeftOutCode.of(error.code), f"{error.code}: {error.detail}"))
        return segmentations, made.without(failed)

    def _take_over(self, study: Study, earlier: SegmentationRun) -> None:
        """Labels that the same models made of the same image stand, those of other models are made anew."""
        for name, made in earlier.segmentations.items():
            require_same_grid(study.volume, made.label_map)
            row = task_spec(name)
            if name not in self.available_tasks or made.model != self._reference(row, row.models):
                continue
            study.segmentations.setdefault(name, replace(made, timings=Timings()))
            if name == FIRST_PASS:
                study.found_ml = dict(earlier.found_ml)

    def _reference(self, row: TaskSpec, models: tuple[ModelSpec, ...]) -> ModelRef:
        """Their identity; what cropped the image counts for the mode."""
        rough = row.models if row.crop is None else (*row.models, *task_spec(row.crop.task).models)
        mode = self._store.mode_of(rough) if row.backend == RESIDENT else EXACT
        return self._inventory.reference(row, models, mode)

    def _forget(self, volume: Volume) -> None:
        with self._kept_lock:
            if self._study_of is not None and self._study_of() is volume:
                self._study = self._study_of = None

    def _gone(self, volume: weakref.ref[Volume]) -> None:
        with self._kept_lock:
            if self._study_of is volume:
                self._study = self._study_of = None

    def _study_for(self, volume: Volume) -> Study:
        """The study of `volume`; that of the last volume is kept for as long as somebody else holds the volume."""
        with self._kept_lock:
            if self._study is not None and self._study_of is not None and self._study_of() is volume:
                return self._study
        made = Study(volume, self._slabs)
        with self._kept_lock:
            self._study, self._study_of = made, weakref.ref(volume, self._gone)
        return made

    def _task(self, study: Study, spec: TaskSpec) -> Segmentation:
        done = study.segmentations.get(spec.name)
        if done is not None:
            return done
        modality = study.source.modality
        if modality != spec.modality:
            raise ModalityNotSupported(f"{spec.name} reads {spec.modality}, the image is {modality}")
        self._inventory.require(spec)
        try:
            if spec.backend == RESIDENT:
                self._store.require(spec.models)
            segmentation = self._made(study, spec)
        except (OutOfMemory, ModelOverBudget) as error:
            coarser = self._offer.stand_in(spec.name)
            if coarser is None or study.deadline.optional:
                raise
            failed = memory.BUDGET if isinstance(error, ModelOverBudget) else memory.EVERY_ROAD
            segmentation = self._stands_in(study, spec, task_spec(coarser), failed)
        study.segmentations[spec.name] = segmentation
        return segmentation

    def _stands_in(self, study: Study, spec: TaskSpec, coarser: TaskSpec, failed: str) -> Segmentation:
        """The coarser task's labels under its own model's name, said to be in the place of `spec`."""
        with self._device_lock:
            self._store.release()
        step = MemoryStep(self._reference(spec, spec.models).model_id, failed, coarser.name)
        logger.warning("task.out_of_memory", extra=asdict(step))
        made = self._task(study, coarser)
        return replace(made, task=spec.name, steps=(step, *made.steps))

    def _made(self, study: Study, spec: TaskSpec) -> Segmentation:
        began = time.perf_counter()
        steps: list[MemoryStep] = []
        try:
            if spec.backend == UPSTREAM:
                model_id = self._inventory.reference(spec, spec.models).model_id
                with study.deadline.holding(self._device_lock, spec.name):
                    array, affine, spent, taken = run_outside(
                        self._upstream, self._store, study, spec, model_id, accelerated=self._device.type != "cpu"
                    )
                steps.extend(taken)
            else:
                array, affine, spent = self._inside(study, spec, steps)
        except MemoryError as error:
            raise OutOfMemory(f"the image does not fit into the host's memory at the spacing of {spec.name}") from error
        label_map = LabelMap(
            array=array,
            affine_ras=affine,
            labels=labels_of(spec),
            model=self._reference(spec, spec.models),
            source_manifest_sha256=study.source.manifest_sha256,
        )
        timings = replace(spent, total_s=time.perf_counter() - began)
        segmentation = Segmentation(spec.name, label_map, timings, tuple(steps))
        logger.info(
            "task.segmented",
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
        with study.deadline.holding(self._device_lock, spec.name):
            labels, predicted = self._predict(study, spec, image, steps)
        restoring = time.perf_counter()
        clean(labels, image.affine, spec)
        if spec.name == FIRST_PASS:
            study.found_ml = _found_ml(labels, image.affine, labels_of(spec))
        array, affine = study.restore(labels, image)
        return array, affine, spent + predicted + Timings(restore_s=time.perf_counter() - restoring)

    def _predict(
        self, study: Study, spec: TaskSpec, image: ModelImage, steps: list[MemoryStep]
    ) -> tuple[NDArray[np.uint8], Timings]:
        """Labels of the task, `[x, y, z]` on the grid of `image`; what was tried for want of memory goes to `steps`.

        Raises:
            EmptyImage: all voxels are 0 at the model's spacing.
            Broken: a model gave a label that its table does not hold.
            OutOfMemory: a model does not fit in any way.
            OutOfTime: the study's deadline is past before the last tile of the last model.
        """
        if not image.zyx.any():
            raise EmptyImage("all voxels of the image are 0 at the model's spacing")
        merged = np.zeros(image.zyx.shape, np.uint8)
        spent = Timings()
        pieces = split.pieces(image.zyx.shape, len(spec.models), force=self._force_split)
        parts = split.pieces(image.zyx.shape, len(spec.models), force=True)
        order = memory.roads(accelerated=self._device.type != "cpu", splittable=len(parts) > len(pieces))
        if study.deadline.optional:
            order = order[:1]
        for one in spec.models:

            def attempt(road: Road, one: ModelSpec = one) -> tuple[list[NDArray[np.uint8]], Timings]:
                def go_on() -> None:
                    study.deadline.require(one.model_id)

                go_on()
                return self._run(one, spec, image, parts if road.in_parts else pieces, road, go_on)

            (labels, timings), taken = memory.first_that_fits(one.model_id, order, attempt, self._store.release)
            for step in taken:
                logger.warning("task.out_of_memory", extra=asdict(step))
            steps.extend(taken)
            table, known = table_for(spec, one), labels_of_model(spec, one)
            for piece, seen in zip(pieces if len(labels) == len(pieces) else parts, labels, strict=True):
                require_known(seen, known, one.model_id)
                part = table[seen]
                np.copyto(merged[piece.kept], part, where=part != 0)
            spent += timings
        return merged.transpose(2, 1, 0), spent

    def _run(
        self,
        one: ModelSpec,
        row: TaskSpec,
        image: ModelImage,
        pieces: tuple[split.Piece, ...],
        road: Road,
        go_on: Callable[[], None],
    ) -> tuple[list[NDArray[np.uint8]], Timings]:
        """`[z, y, x]` labels of what each piece keeps."""
        model = self._store.for_road(one, row, road)
        found: list[NDArray[np.uint8]] = []
        spent = Timings()
        for piece in pieces:
            labels, timings = self._store.predict(model, image, piece.shown, road, go_on)
            found.append(labels.transpose(2, 1, 0)[piece.inner])
            spent += timings
        return found, spent


def _found_ml(labels: NDArray[np.uint8], affine: NDArray[np.float64], names: Mapping[int, str]) -> dict[str, float]:
    """Millilitres of each structure on the model's own grid."""
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0
    counts = np.bincount(labels.ravel(), minlength=256)
    return {name: float(counts[value]) * voxel_ml for value, name in names.items() if counts[value]}
