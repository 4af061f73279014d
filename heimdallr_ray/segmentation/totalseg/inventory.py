"""What a verified registry allows on this site: which tasks are complete, which may run, how results name models."""

from __future__ import annotations

import hashlib

from heimdallr_ray.errors import Broken, LicenceRequired, WeightsMissing
from heimdallr_ray.segmentation import tasks
from heimdallr_ray.segmentation.engine import EXACT
from heimdallr_ray.segmentation.specs import ModelSpec, TaskSpec
from heimdallr_ray.segmentation.totalseg.model import is_synthetic
from heimdallr_ray.segmentation.weights import WeightsSet, any_synthetic
from heimdallr_ray.volume import ModelRef


def combined_digest(digests: tuple[str, ...]) -> str:
    """One digest for a task: that of its model, or of the parts' digests in order."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class Inventory:
    """The rows of the task table held against the installed weights and the site's licence."""

    def __init__(self, weights: WeightsSet, *, licensed: bool) -> None:
        """`licensed`: the site has a TotalSegmentator licence for the tasks that need one."""
        self._weights = weights
        self._licensed = licensed
        self._synthetic: dict[int, bool] = {}
        self._set_aside: dict[int, str] = {}
        self.any_synthetic = any_synthetic(weights)

    @property
    def available_tasks(self) -> tuple[str, ...]:
        """Tasks whose models, the rough one for cropping included, are all in the registry and none is set aside."""
        return tuple(name for name in tasks.TASKS if all(map(self._usable, tasks.models_of(name))))

    @property
    def set_aside(self) -> dict[str, str]:
        """Tasks of which a model is installed and cannot be used, and why in words."""
        # another thread may set one aside meanwhile
        known = dict(self._set_aside)
        return {
            name: known[one.dataset_id]
            for name in tasks.TASKS
            for one in tasks.models_of(name)
            if one.dataset_id in known
        }

    def leave_out(self, spec: ModelSpec, why: str) -> None:
        """The model is not used by this replica, nor is any task that needs it."""
        self._set_aside[spec.dataset_id] = why

    def _usable(self, spec: ModelSpec) -> bool:
        return spec.dataset_id not in self._set_aside and self.installed(spec)

    @property
    def licensed_tasks(self) -> tuple[str, ...]:
        """Available tasks that may run here: open, or licensed, or with our own synthetic weights."""
        return tuple(name for name in self.available_tasks if self.may_run(tasks.TASKS[name]))

    def installed(self, spec: ModelSpec) -> bool:
        """True where every fold that the model needs is in the registry."""
        checkpoints = spec.checkpoints(self._weights.files)
        return bool(checkpoints) and all(name in self._weights.files for name in checkpoints)

    def synthetic(self, spec: ModelSpec) -> bool:
        """As `is_synthetic`, asked once per model."""
        if spec.dataset_id not in self._synthetic:
            self._synthetic[spec.dataset_id] = is_synthetic(self._weights, spec)
        return self._synthetic[spec.dataset_id]

    def may_run(self, row: TaskSpec) -> bool:
        """True where the task is open, the site is licensed, or its models are synthetic."""
        return not row.licence or self._licensed or all(self.synthetic(model) for model in row.models)

    def require(self, row: TaskSpec) -> None:
        """Nothing happens where the task may run.

        Raises:
            WeightsMissing: a model that it needs is not installed.
            Broken: a model that it needs was set aside.
            LicenceRequired: it needs a licence that the site has not set.
        """
        for spec in tasks.models_of(row.name):
            if not self.installed(spec):
                raise WeightsMissing(f"{spec.folder} is not installed")
            if spec.dataset_id in self._set_aside:
                raise Broken(self._set_aside[spec.dataset_id])
        if not self.may_run(row):
            raise LicenceRequired(f"{row.upstream_task} needs a TotalSegmentator licence of the site")

    def reference(self, row: TaskSpec, models: tuple[ModelSpec, ...], mode: str = EXACT) -> ModelRef:
        """The identity under which labels of `models`, run for `row` in `mode`, enter provenance."""
        files = [name for model in models for name in model.checkpoints(self._weights.files)]
        digests = tuple(str(self._weights.entry(name).sha256) for name in files)
        return ModelRef(
            task=row.upstream_task,
            model_id="totalsegmentator/" + "+".join(str(model.dataset_id) for model in models),
            weights_sha256=combined_digest(digests),
            synthetic=any(self.synthetic(model) for model in models),
            backend=row.backend,
            mode=mode,
            spacing_mm=None if row.spacing_mm is None else max(row.spacing_mm),
        )
