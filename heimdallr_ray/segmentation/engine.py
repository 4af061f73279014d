"""What the rest of the product knows about segmentation: a protocol and plain values, no torch.

An engine takes a `Volume` and gives one `LabelMap` per task, on the grid of that volume. Label maps of different tasks
stay apart: `total`, `tissue_types` and `cerebral_bleed` overlap in space and each carries its own model reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Protocol

from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.planner import DEFAULT_WANTED, Plan, Wanted
from heimdallr_ray.volume import LabelMap, ModelRef, Volume

EXACT: Final = "exact"
"""The labels are upstream's, bit for bit."""
TURBO: Final = "turbo"
"""Faster; single voxels may differ from upstream's."""


@dataclass(frozen=True)
class Timings:
    """Seconds and shared steps of one task or one study; what another task of the study already paid for is 0.

    Attributes:
        load_s: checks of the volume (something in it, all values finite).
        resample_s: canonical view and interpolation to the model's spacing.
        preprocess_s: cropping to non-zero, normalisation, nnU-Net's own resampling of the image.
        forward_s: inside the bare network calls, nothing else.
        assemble_s: tiles in and out, accumulation, division, argmax, nnU-Net's own resampling of the logits.
        restore_s: labels back to the grid of the volume.
        total_s: wall clock of the whole call; the parts add up to a little less.
        loads: how often the volume was checked.
        canonical_views: how often it, or a crop of it, was turned to canonical axes.
        resamplings: how often it, or a crop of it, was interpolated to a model's spacing.
    """

    load_s: float = 0.0
    resample_s: float = 0.0
    preprocess_s: float = 0.0
    forward_s: float = 0.0
    assemble_s: float = 0.0
    restore_s: float = 0.0
    total_s: float = 0.0
    loads: int = 0
    canonical_views: int = 0
    resamplings: int = 0

    @property
    def outside_forward_s(self) -> float:
        """What the call cost besides the network itself."""
        return self.total_s - self.forward_s

    def __add__(self, other: Timings) -> Timings:
        """Part by part."""
        return Timings(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class MemoryStep:
    """Memory ran out while a model worked, and what was done next.

    Attributes:
        model_id: for example totalsegmentator/297.
        failed: the road on which it ran out, see `totalseg.memory.Road`, or `every_road`, or `memory_budget`.
        taken: the road that was tried next, or the task at a lower resolution that stands in.
    """

    model_id: str
    failed: str
    taken: str


@dataclass(frozen=True)
class Segmentation:
    """The labels of one task and what they cost."""

    task: str
    """Name of the row in `tasks.TASKS`."""
    label_map: LabelMap
    timings: Timings
    steps: tuple[MemoryStep, ...] = ()
    """What was tried because memory ran out, in order; empty where everything fitted."""

    @property
    def model(self) -> ModelRef:
        """The model that made the labels."""
        return self.label_map.model

    @property
    def backend(self) -> str:
        """`resident`, or `upstream` where the task ran through TotalSegmentator's own entry point."""
        return self.label_map.model.backend


@dataclass(frozen=True)
class SegmentationRequest:
    """A volume and what its purpose asks for: tasks, or needs of which the plan picks the tasks.

    Attributes:
        volume: what is segmented.
        wanted: of it.
        earlier: what was segmented of it before, and is not segmented again as long as the models are the same.
    """

    volume: Volume
    wanted: tuple[Wanted, ...] = DEFAULT_WANTED
    earlier: SegmentationRun | None = None


@dataclass(frozen=True)
class SegmentationRun:
    """Everything that was segmented of one study, and why the rest was not.

    Attributes:
        segmentations: task name to labels, in the order in which they ran.
        plan: what ran, and what was left out for which reason.
        found_ml: structures that the first pass saw, in ml on its coarse grid; good for "is it there", not a
            measurement.
        timings: sum over the first pass and all tasks.
        memory_steps: task name to what was tried because memory ran out; the first pass and rough tasks too.
    """

    segmentations: Mapping[str, Segmentation]
    plan: Plan
    found_ml: Mapping[str, float]
    timings: Timings
    memory_steps: Mapping[str, tuple[MemoryStep, ...]] = field(default_factory=dict[str, tuple[MemoryStep, ...]])


@dataclass(frozen=True)
class EngineInfo:
    """What a replica says about itself.

    Attributes:
        backend: `resident`.
        device: torch's name of the device.
        threads: intra-operation threads on the CPU.
        models: one reference per loaded model.
        available_tasks: tasks whose model folders are installed and whose models can be used.
        licensed_tasks: tasks that may run here: open ones, synthetic ones, and all with a site licence.
        synthetic: any of the installed models is synthetic.
        load_s: seconds from construction to ready, model by model.
        versions: of TotalSegmentator, nnU-Net and torch.
        mode: what was asked for, `exact` or `turbo`.
        turbo: by model, the steps by which it is faster than in exact mode; only models that have some.
        needs_mib: by model, weights and one tile's activations on the device, measured when it was warmed up.
        budget_mib: what all of them together may take; 0: no bound.
        notes: what a person should know: models that are refused, set aside or do not fit, and of each model that
            turbo tried which steps were kept or not, and why.
        set_aside: tasks with an installed model that cannot be built, and why in words.
        over_budget: tasks with a model that does not fit into the budget and for which none stands in, and why.
    """

    backend: str
    device: str
    threads: int
    models: tuple[ModelRef, ...]
    available_tasks: tuple[str, ...]
    licensed_tasks: tuple[str, ...]
    synthetic: bool
    load_s: Mapping[str, float]
    versions: Mapping[str, str]
    mode: str = EXACT
    turbo: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    needs_mib: Mapping[str, float] = field(default_factory=dict[str, float])
    budget_mib: int = 0
    notes: tuple[str, ...] = ()
    set_aside: Mapping[str, str] = field(default_factory=dict[str, str])
    over_budget: Mapping[str, str] = field(default_factory=dict[str, str])


class SegmentationEngine(Protocol):
    """A segmenter that stays loaded. Calls are served one at a time."""

    def warm_up(self, wanted: tuple[Wanted, ...] | None = None) -> None:
        """All installed models that may run are loaded and have seen one tile; with `wanted`, those that it may need.

        Raises:
            WeightsMissing: the first-pass model is not installed.
            WeightsTampered: a file differs from the manifest.
        """
        ...

    def info(self) -> EngineInfo:
        """What is loaded and where."""
        ...

    def segment(self, volume: Volume, task: str) -> Segmentation:
        """The labels of one task on the grid of `volume`.

        Raises:
            EmptyImage: the volume holds one value only.
            NotAVolume: the volume holds NaN or infinity, or is too thin along an axis.
            NotFound: no such task.
            ModalityNotSupported: the task does not read this modality.
            WeightsMissing, WeightsTampered, LicenceRequired: the model cannot be used here.
            OutOfMemory: the model did not fit, not even in parts on the host; names what was tried.
            ModelOverBudget: the model is larger than the site's memory budget.
        """
        ...

    def run_plan(
        self,
        volume: Volume,
        wanted: tuple[Wanted, ...] = DEFAULT_WANTED,
        earlier: SegmentationRun | None = None,
        deadline: Deadline | None = None,
    ) -> SegmentationRun:
        """First pass, plan, and every task of the plan; what `earlier` holds is taken over, and costs nothing here.

        A task from which nothing is made and that has not ended at the deadline is left out; None: a day.

        Raises:
            GeometryMismatch: `earlier` belongs to another image.
            OutOfTime: another task has not ended at the deadline.
            As `segment`; a wanted task that cannot run is not an error but an entry in `plan.left_out`.
        """
        ...
