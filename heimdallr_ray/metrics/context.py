"""What a measurement may look at: one image, the label maps made from it, and facts about the patient.

Grids are checked here, once per task; patient directions always come from the affine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, floor

from heimdallr_ray.errors import GeometryMismatch
from heimdallr_ray.metrics.axes import Axes, axes_of
from heimdallr_ray.metrics.gates import NotMeasured
from heimdallr_ray.metrics.labelstats import LabelStatistics, label_statistics
from heimdallr_ray.metrics.result import Status
from heimdallr_ray.metrics.rois import Region, main_component, region_of
from heimdallr_ray.volume import LabelMap, Volume, require_same_grid

PAIRS = (("liver", "spleen"), ("kidney_right", "kidney_left"))
"""The first lies further to the patient's right than the second."""
PAIR_MIN_ML = 10.0
"""A structure smaller than this says nothing about sides."""


@dataclass(frozen=True)
class PatientFacts:
    """What the headers say of the patient; None where they say nothing."""

    age_years: float | None = None
    sex: str | None = None
    height_m: float | None = None
    weight_kg: float | None = None


NOT_RUN = "not_run"
"""Entry of the evidence: what the planner saw where a segmentation was not run."""


@dataclass(frozen=True)
class MetricContext:
    """One image and everything that was made from it.

    Attributes:
        volume: the image, CT in Hounsfield units.
        label_maps: by TotalSegmentator's own task name: `total` at any resolution, which the model tells.
        not_run: task to the planner's code (`licence`, `anatomy_absent`, ...) for tasks that were not run.
        not_run_because: task to what the planner saw, in its words; goes into the evidence.
        patient: facts from the headers.
    """

    volume: Volume
    label_maps: Mapping[str, LabelMap]
    not_run: Mapping[str, str] = field(default_factory=dict[str, str])
    patient: PatientFacts = PatientFacts()
    not_run_because: Mapping[str, str] = field(default_factory=dict[str, str])
    _statistics: dict[str, Mapping[str, LabelStatistics]] = field(
        default_factory=dict[str, "Mapping[str, LabelStatistics]"], init=False, repr=False, compare=False
    )

    _pieces: dict[tuple[str, str], tuple[Region, float]] = field(
        default_factory=dict[tuple[str, str], "tuple[Region, float]"], init=False, repr=False, compare=False
    )

    @cached_property
    def axes(self) -> Axes:
        """Patient directions of the array axes."""
        return axes_of(self.volume.affine_ras)

    def label_map(self, task: str) -> LabelMap:
        """The label map of a task, on the grid of the image.

        Raises:
            NotMeasured: the task was not run, or its label map belongs to another grid or image.
        """
        found = self.label_maps.get(task)
        if found is None:
            seen = self.not_run_because.get(task)
            raise NotMeasured(
                Status.NOT_APPLICABLE,
                (self.not_run.get(task, "task_not_run"),),
                evidence={} if seen is None else {NOT_RUN: seen},
            )
        try:
            require_same_grid(self.volume, found)
        except GeometryMismatch as mismatch:
            raise NotMeasured(Status.GATED, (mismatch.code,)) from mismatch
        return found

    def has(self, task: str) -> bool:
        """True where the task was run and its label map is on the grid of the image."""
        try:
            self.label_map(task)
        except NotMeasured:
            return False
        return True

    def statistics(self, task: str) -> Mapping[str, LabelStatistics]:
        """Statistics of all structures of a task, made on the first call.

        Raises:
            NotMeasured: as `label_map`.
        """
        found = self._statistics.get(task)
        if found is None:
            found = label_statistics(self.volume, self.label_map(task))
            self._statistics[task] = found
        return found

    def structure(self, task: str, name: str) -> LabelStatistics:
        """Statistics of one structure.

        Raises:
            NotMeasured: as `label_map`, or the structure has no voxel. That is not a negative finding.
        """
        found = self.statistics(task).get(name)
        if found is None:
            raise NotMeasured(Status.LABEL_ABSENT, ("label_absent",))
        return found

    def main_piece(self, task: str, name: str) -> tuple[Region, float]:
        """The largest connected piece of a structure and its share of the structure, made on the first call.

        Raises:
            NotMeasured: as `structure`.
        """
        key = (task, name)
        if key not in self._pieces:
            self._pieces[key] = main_component(region_of(self.label_map(task), self.structure(task, name)))
        return self._pieces[key]

    def largest_slice(self, structure: LabelStatistics) -> int:
        """Index along the axial array axis of the slice in which the structure is largest."""
        axial = self.axes.axial
        return structure.largest_slice(axial, ascending=self.axes.ascending[axial])

    def axial_slice_at(self, index_ijk: tuple[float, float, float]) -> int:
        """Index of the axial slice nearest to a point; half-way, the superior one, whichever way the array runs."""
        axial = self.axes.axial
        at = index_ijk[axial]
        return floor(at + 0.5) if self.axes.ascending[axial] else ceil(at - 0.5)

    def borders_touched(self, structure: LabelStatistics) -> tuple[str, ...]:
        """The patient sides on which the structure reaches the edge of the scan, as `border_superior` and so on."""
        return tuple(sorted(f"border_{self.axes.side(axis, high=high)}" for axis, high in structure.borders))

    @cached_property
    def orientation_suspect(self) -> bool:
        """True where a paired organ lies on the wrong side: a wrong affine, mixed-up labels, or situs inversus."""
        if not self.has("total"):
            return False
        found = self.statistics("total")
        x_axis = self.volume.affine_ras[0, :3]
        for right, left in PAIRS:
            a, b = found.get(right), found.get(left)
            if a is None or b is None or min(a.volume_ml, b.volume_ml) < PAIR_MIN_ML:
                continue
            if float(x_axis @ a.centroid_ijk) <= float(x_axis @ b.centroid_ijk):
                return True
        return False
