"""Volume and attenuation of a solid organ: the definitions that liver, spleen and kidneys share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from heimdallr_ray.metrics.axes import pixel_cm2
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import MIN_MAIN_SHARE, NotMeasured, Reading, require_contiguous
from heimdallr_ray.metrics.labelstats import LabelStatistics, mean_sd, percentile
from heimdallr_ray.metrics.result import Status
from heimdallr_ray.metrics.rois import eroded

TASK = "total"
EROSION_MM = 3.0
"""Partial volume at the surface pulls the mean down: at 3 mm voxels liver 44.5 to 46.5, kidney 18 to 22 HU."""
METAL_HU = 3071
"""Top of the 12-bit CT range; above it a sample holds metal."""
METAL_SHARE = 0.001


@dataclass(frozen=True)
class Organ:
    """What distinguishes one organ from another.

    Attributes:
        label: TotalSegmentator's name.
        min_ml: a smaller label is a crumb, not the organ.
        max_ml: a larger volume is implausible.
        min_roi_ml: least sample for the attenuation, after erosion.
        lateral: the organ is one of a pair, so sides must be beyond doubt.
    """

    label: str
    min_ml: float
    max_ml: float
    min_roi_ml: float
    lateral: bool = False


PLAUSIBLE_HU = (-150.0, 500.0)


def _where(context: MetricContext, found: LabelStatistics) -> dict[str, Any]:
    axis = context.axes.axial
    index = context.largest_slice(found)
    area_cm2 = int(found.slice_counts[axis][index]) * pixel_cm2(context.volume.affine_ras, axis)
    return {"label": found.name, "slice_axis": axis, "slice_index": index, "slice_area_cm2": area_cm2}


def _require_sides(context: MetricContext, organ: Organ, n_voxels: int, evidence: dict[str, Any]) -> tuple[str, ...]:
    if not context.orientation_suspect:
        return ()
    if organ.lateral:
        raise NotMeasured(Status.GATED, ("orientation_suspect",), n_voxels, evidence)
    return ("orientation_suspect",)


def organ_volume(context: MetricContext, organ: Organ) -> Reading:
    """Millilitres of all voxels of the label.

    Raises:
        NotMeasured: label absent, a crumb, cut by the edge of the scan (with the side), in pieces, slices too far
            apart or missing, or sides in doubt for one of a pair.
    """
    found = context.structure(TASK, organ.label)
    main, share = context.main_piece(TASK, organ.label)
    evidence = {**_where(context, found), "segmented_ml": found.volume_ml, "main_share": share}
    if cut := context.borders_touched(found):
        raise NotMeasured(Status.INCOMPLETE_FOV, cut, found.n_voxels, evidence)
    if main.volume_ml < organ.min_ml:
        raise NotMeasured(Status.INSUFFICIENT_ROI, ("below_minimum_volume",), found.n_voxels, evidence)
    notes = _require_sides(context, organ, found.n_voxels, evidence)
    if share < MIN_MAIN_SHARE:
        raise NotMeasured(Status.GATED, ("fragmented",), found.n_voxels, evidence)
    require_contiguous(context, found.n_voxels, evidence)
    return Reading(found.volume_ml, found.n_voxels, notes, evidence, (organ.min_ml, organ.max_ml))


def organ_attenuation(context: MetricContext, organ: Organ) -> Reading:
    """Mean HU of the largest connected piece of the label, eroded by EROSION_MM.

    An organ cut by the edge of the scan keeps its attenuation. There is no fall-back to the whole label: a sample that
    is too small after erosion gives no number. Percentiles, SD and the mean of the whole label are in the evidence.

    Raises:
        NotMeasured: label absent, sample too small, or sides in doubt for one of a pair.
    """
    found = context.structure(TASK, organ.label)
    main, share = context.main_piece(TASK, organ.label)
    roi = eroded(main, EROSION_MM)
    evidence = {
        **_where(context, found),
        "erosion_mm": EROSION_MM,
        "roi_ml": roi.volume_ml,
        "whole_label_mean_hu": found.mean,
    }
    if roi.volume_ml < organ.min_roi_ml:
        raise NotMeasured(Status.INSUFFICIENT_ROI, ("insufficient_roi",), roi.n_voxels, evidence)
    notes = [*context.borders_touched(found), *_require_sides(context, organ, roi.n_voxels, evidence)]
    values, counts = np.unique(roi.values(context.volume.array), return_counts=True)
    mean, sd = mean_sd(values, counts)
    evidence["sd_hu"] = sd
    evidence.update({f"p{percent:02d}_hu": percentile(values, counts, percent) for percent in (5, 25, 50, 75, 95)})
    if share < MIN_MAIN_SHARE:
        notes.append("fragmented")
    if counts[values > METAL_HU].sum() > METAL_SHARE * roi.n_voxels:
        notes.append("metal")
    return Reading(mean, roi.n_voxels, tuple(notes), evidence, PLAUSIBLE_HU)
