"""When a number may be given at all: gates, and the one place where a reading becomes a Measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.metrics.result import Measurement, Provenance, Status

if TYPE_CHECKING:
    from heimdallr_ray.metrics.context import MetricContext

MAX_SPACING_MM = 5.0
"""Slices further apart than this cannot carry a volume: our own gate, which lets routine series of 5 mm pass."""
SPACING_TOLERANCE_MM = 0.05
MIN_MAIN_SHARE = 0.9
"""A structure whose largest piece holds less is `fragmented`."""


@dataclass(frozen=True)
class Quantity:
    """What is measured.

    Attributes:
        id: of the measurement and of its definition.
        version: of the definition; grows whenever the number would change.
        unit: UCUM.
        tasks: the label maps it is made from, the one that holds the measured structure first.
        coarsest_mm: models that saw the image at a coarser spacing than this are not measured from. 3 mm does for
            volumes and attenuation of large organs (within 2 % and 0.5 HU of 1.5 mm on the one CT that was compared),
            for regions and for the level of a vertebra; not for diameters, vessels, the pancreas or samples inside a
            vertebra.
    """

    id: str
    version: int
    unit: str
    tasks: tuple[str, ...]
    coarsest_mm: float = 3.0


@dataclass(frozen=True)
class Reading:
    """A number and how it came about.

    Attributes:
        value: unrounded.
        n_voxels: size of the sample.
        notes: reason codes that do not forbid the number.
        evidence: JSON scalars.
        plausible: (low, high); outside, the value is kept and called implausible.
    """

    value: float
    n_voxels: int
    notes: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plausible: tuple[float, float] | None = None


class NotMeasured(HeimdallrError):
    """A gate does not let a number pass. Never leaves this package: `measured` turns it into a Measurement."""

    code = "not_measured"

    def __init__(
        self, status: Status, reasons: tuple[str, ...], n_voxels: int = 0, evidence: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(", ".join(reasons))
        self.status = status
        self.reasons = reasons
        self.n_voxels = n_voxels
        self.evidence: Mapping[str, Any] = evidence or {}


def provenance_of(context: MetricContext, quantity: Quantity) -> Provenance:
    """The provenance of a quantity: image, and the models of all label maps it needs (joined by `+`)."""
    source = context.volume.source
    maps = [context.label_maps[task] for task in quantity.tasks if task in context.label_maps]
    return Provenance(
        definition_id=quantity.id,
        definition_version=quantity.version,
        study_uid=source.study_uid,
        series_uid=source.series_uid,
        source_manifest_sha256=source.manifest_sha256,
        task="+".join(quantity.tasks),
        model_id="+".join(one.model.model_id for one in maps),
        weights_sha256="+".join(one.model.weights_sha256 for one in maps),
        synthetic=source.synthetic or any(one.model.synthetic for one in maps),
        mode=_mode_of([one.model.mode for one in maps]),
        image_flags=",".join(context.volume.flags),
    )


def _mode_of(modes: Sequence[str]) -> str:
    """The one mode of all models; what is not exact counts, wherever it went in."""
    return next((mode for mode in modes if mode != "exact"), modes[0] if modes else "")


def measured(context: MetricContext, quantity: Quantity, read: Callable[[], Reading]) -> Measurement:
    """The measurement that `read` gives, or the reason why a gate stopped it."""
    provenance = provenance_of(context, quantity)
    try:
        require_ct(context)
        require_resolution(context, quantity)
        reading = read()
    except NotMeasured as gap:
        return Measurement(
            quantity.id, None, quantity.unit, gap.status, provenance, gap.reasons, gap.n_voxels, dict(gap.evidence)
        )
    status, notes = Status.OK, reading.notes
    if reading.plausible and not reading.plausible[0] <= reading.value <= reading.plausible[1]:
        status, notes = Status.IMPLAUSIBLE, ("implausible", *notes)
    return Measurement(
        quantity.id, reading.value, quantity.unit, status, provenance, notes, reading.n_voxels, dict(reading.evidence)
    )


def require_ct(context: MetricContext) -> None:
    """Nothing happens for CT; an unknown modality is not CT.

    Raises:
        NotMeasured: another modality.
    """
    if context.volume.source.modality != "CT":
        raise NotMeasured(Status.NOT_APPLICABLE, ("not_ct",))


def require_resolution(context: MetricContext, quantity: Quantity) -> None:
    """Nothing happens where every model saw the image as finely as the quantity asks; a stand-in may not have.

    Raises:
        NotMeasured: a model of its label maps is coarser; the evidence names both spacings.
    """
    made = {task: context.label_maps[task].model for task in quantity.tasks if task in context.label_maps}
    for task, model in made.items():
        if model.spacing_mm is not None and model.spacing_mm > quantity.coarsest_mm + SPACING_TOLERANCE_MM:
            seen = {"label_map": task, "model_spacing_mm": model.spacing_mm, "coarsest_mm": quantity.coarsest_mm}
            raise NotMeasured(Status.GATED, ("resolution_too_low",), evidence=seen)


def require_contiguous(context: MetricContext, n_voxels: int, evidence: Mapping[str, Any]) -> None:
    """Nothing happens where slices are close enough, and all there, to count volume.

    Raises:
        NotMeasured: spacing over MAX_SPACING_MM, or slices missing from the stack.
    """
    reasons: list[str] = []
    if max(context.volume.spacing_mm) > MAX_SPACING_MM + SPACING_TOLERANCE_MM:
        reasons.append("spacing_too_coarse")
    reasons.extend(
        sorted({flag.partition(":")[0] for flag in context.volume.flags} & {"missing_slices", "variable_spacing"})
    )
    if reasons:
        raise NotMeasured(Status.GATED, tuple(reasons), n_voxels, evidence)
