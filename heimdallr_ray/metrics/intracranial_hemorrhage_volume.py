"""Intracranial haemorrhage: millilitres in all, and per connected component.

The model (TotalSegmentator `cerebral_bleed`) was trained on intracerebral bleeds; subdural, epidural and subarachnoid
blood are not covered. An empty mask is a measured 0 mL and excludes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import NotMeasured, Quantity, Reading, measured, require_contiguous
from heimdallr_ray.metrics.labelstats import LabelStatistics
from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.metrics.rois import components, region_of

DEFINITION_ID = "intracranial_hemorrhage_volume"
DEFINITION_VERSION = 1
BLEED_TASK = "cerebral_bleed"
BRAIN_TASK = "total"
LABEL = "intracerebral_hemorrhage"
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "mL", (BLEED_TASK, BRAIN_TASK)),)
MIN_BRAIN_ML = 100.0
"""Less brain than this is a crumb of the label or the very edge of a neck scan."""
BLOOD_HU = (40.0, 90.0)
"""Acute blood; a component outside is noted, never removed."""
BELOW = "brain_border_inferior"
"""Head scans begin at the skull base: the brain stem always leaves the image there."""
LISTED_COMPONENTS = 5
PLAUSIBLE_ML = (0.0, 500.0)


def _brain(context: MetricContext) -> LabelStatistics | None:
    brain = context.statistics(BRAIN_TASK).get("brain") if context.has(BRAIN_TASK) else None
    return brain if brain is not None and brain.volume_ml >= MIN_BRAIN_ML else None


def _component_evidence(
    context: MetricContext, bleed: LabelStatistics, brain: LabelStatistics | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    region = region_of(context.label_map(BLEED_TASK), bleed)
    labelled, sizes = components(region)
    axial = context.axes.axial
    affine = context.volume.affine_ras
    voxel_ml = context.volume.voxel_ml
    evidence: dict[str, Any] = {
        "label": LABEL,
        "slice_axis": axial,
        "slice_index": context.largest_slice(bleed),
        "segmented_ml": bleed.volume_ml,
        "n_components": len(sizes),
        "largest_component_ml": int(sizes.max()) * voxel_ml,
    }
    notes: set[str] = set()
    image = context.volume.array[region.box]
    largest_first = np.lexsort((np.arange(len(sizes)), -sizes))
    for rank, component in enumerate(largest_first[:LISTED_COMPONENTS].tolist(), start=1):
        voxels = np.nonzero(labelled == component + 1)
        mean_hu = float(image[voxels].mean(dtype=np.float64))
        evidence[f"component_{rank}_ml"] = int(sizes[component]) * voxel_ml
        evidence[f"component_{rank}_mean_hu"] = mean_hu
        if brain is not None and not context.orientation_suspect:
            centre = [float(at.mean()) + edge.start for at, edge in zip(voxels, region.box, strict=True)]
            offset_mm = float(affine[0, :3] @ (np.array(centre) - np.array(brain.centroid_ijk)))
            evidence[f"component_{rank}_side"] = "right" if offset_mm > 0 else "left"
        if not BLOOD_HU[0] <= mean_hu <= BLOOD_HU[1]:
            notes.add("outside_blood_range")
    return evidence, tuple(sorted(notes))


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """All voxels of `intracerebral_hemorrhage`; evidence lists the components, largest first.

    No brain in the field of view is `not_applicable`, whether the model ran or not. Where the `total` label map is
    missing, found blood is measured and noted, but an empty mask is not called 0 mL; nor is it where the scan ends
    inside the brain on any side but the lower one, on which every head scan ends, or leaves gaps. Blood cut by the edge
    of the scan has no volume; its components stay in the evidence, so that triage still sees them.
    """

    def read() -> Reading:
        brain = _brain(context)
        no_brain = context.has(BRAIN_TASK) and brain is None
        try:
            bleed = context.statistics(BLEED_TASK).get(LABEL)
        except NotMeasured as gap:
            if no_brain and gap.reasons != ("anatomy_absent",):
                # A missing model matters to triage only where there is something to look at.
                raise NotMeasured(Status.NOT_APPLICABLE, ("brain_not_in_field",)) from gap
            raise
        if no_brain:
            raise NotMeasured(Status.NOT_APPLICABLE, ("brain_not_in_field",), bleed.n_voxels if bleed else 0)
        notes = () if brain is None else tuple(f"brain_{side}" for side in context.borders_touched(brain))
        if bleed is None:
            if brain is None:
                raise NotMeasured(Status.GATED, ("brain_not_verified",))
            if set(notes) - {BELOW}:
                raise NotMeasured(Status.INCOMPLETE_FOV, notes)
            axial = context.axes.axial
            empty = {
                "label": LABEL,
                "n_components": 0,
                "largest_component_ml": 0.0,
                "slice_axis": axial,
                "slice_index": context.largest_slice(brain),
            }
            # Blood may lie between slices that are far apart or missing.
            require_contiguous(context, 0, empty)
            return Reading(0.0, 0, ("negative_not_excluded", *notes), empty)
        evidence, seen = _component_evidence(context, bleed, brain)
        if cut := context.borders_touched(bleed):
            raise NotMeasured(Status.INCOMPLETE_FOV, cut, bleed.n_voxels, evidence)
        require_contiguous(context, bleed.n_voxels, evidence)
        if brain is None:
            notes = ("brain_not_verified",)
        return Reading(bleed.volume_ml, bleed.n_voxels, (*notes, *seen), evidence, PLAUSIBLE_ML)

    return (measured(context, QUANTITIES[0], read),)
