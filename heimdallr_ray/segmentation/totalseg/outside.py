"""A task outside the engine's own networks: on which device it is tried, and what makes room for it."""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import OutOfMemory
from heimdallr_ray.segmentation.engine import MemoryStep, Timings
from heimdallr_ray.segmentation.specs import TaskSpec
from heimdallr_ray.segmentation.totalseg import memory
from heimdallr_ray.segmentation.totalseg.labels import labels_of, require_known
from heimdallr_ray.segmentation.totalseg.memory import Road
from heimdallr_ray.segmentation.totalseg.store import ModelStore
from heimdallr_ray.segmentation.totalseg.study import Study
from heimdallr_ray.segmentation.totalseg.upstream import UpstreamRunner

logger = logging.getLogger(__name__)


def run_outside(
    runner: UpstreamRunner, store: ModelStore, study: Study, spec: TaskSpec, model_id: str, *, accelerated: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float64], Timings, tuple[MemoryStep, ...]]:
    """The labels from TotalSegmentator's own entry point; a device without room for it gives place to the host.

    All attempts together end before the study's deadline. Whoever calls holds the device.

    Args:
        runner: starts the child.
        store: the models of this process, which leave the device where the child finds no room.
        study: whose volume it is.
        spec: the task.
        model_id: for the record of what was tried.
        accelerated: the engine's device is not the host.

    Returns:
        Labels on the grid of the volume, their affine, what they cost, and what was tried for want of memory.

    Raises:
        As `UpstreamRunner.run`; OutOfMemory names what was tried.
        Broken: a label that the task's table does not hold.
    """

    def attempt(road: Road) -> tuple[NDArray[np.uint8], NDArray[np.float64], Timings]:
        try:
            return runner.run(study.volume, spec, study.deadline, on_host=road.on_host)
        except OutOfMemory:
            # what this process holds on the device, the child's allocator cannot ask for
            if road.on_host or not accelerated or study.deadline.optional or not store.give_up_all():
                raise
        return runner.run(study.volume, spec, study.deadline)

    order = (Road.WHOLE, Road.CPU) if accelerated and not study.deadline.optional else (Road.WHOLE,)
    store.release()
    (array, affine, spent), taken = memory.first_that_fits(model_id, order, attempt, store.release)
    for step in taken:
        logger.warning("task.out_of_memory", extra=asdict(step))
    require_known(array, labels_of(spec), spec.name)
    return array, affine, study.take_timings() + spent, taken
