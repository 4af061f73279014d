"""The L3 slice and the skeletal muscle in it: what muscle area and muscle attenuation share.

The level is the centre of the vertebral body, not of all voxels of the vertebra: on a real scan the processes pull the
centroid 5 mm (L3) to 11 mm (T12) away from the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.metrics.axes import pixel_cm2, slice_obliquity_deg, to_ras_mm
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import NotMeasured
from heimdallr_ray.metrics.labelstats import LabelStatistics
from heimdallr_ray.metrics.result import Status
from heimdallr_ray.metrics.rois import core_centre_ijk

SPINE_TASK = "total"
MUSCLE_TASK = "tissue_types"
MUSCLE_HU = (-29, 150)
"""Skeletal muscle window; fat inside the label lies below it (as in Prado et al., Lancet Oncol 2008)."""
MIN_MUSCLE_CM2 = 10.0
MIN_VERTEBRA_ML = 5.0
MIN_BODY_DEPTH_MM = 5.0
"""Half the height of the smallest adult lumbar body is about twice this; a crumb or an arch alone is thinner."""
MIN_SPACING_RATIO = 0.75
"""The distances to both neighbours differ by at most a quarter, or the level is in doubt."""
MAX_OBLIQUITY_DEG = 30.0


@dataclass(frozen=True)
class MuscleSlice:
    """Muscle voxels of the slice through the centre of the L3 body.

    Attributes:
        values: HU of the muscle voxels inside the window.
        area_cm2: their area.
        notes: reason codes that do not forbid a number.
        evidence: JSON scalars.
    """

    values: NDArray[Any]
    area_cm2: float
    notes: tuple[str, ...]
    evidence: dict[str, Any]


def _height_mm(context: MetricContext, structure: LabelStatistics) -> float:
    return to_ras_mm(context.volume.affine_ras, structure.centroid_ijk)[2]


def _require_level(context: MetricContext, l3: LabelStatistics) -> tuple[str, ...]:
    """Neighbouring lumbar vertebrae, where they are there, lie in order and evenly spaced."""
    found = context.statistics(SPINE_TASK)
    heights = [
        _height_mm(context, found[name])
        for name in ("vertebrae_L1", "vertebrae_L2", "vertebrae_L3", "vertebrae_L4", "vertebrae_L5")
        if name in found and (name == l3.name or not context.borders_touched(found[name]))
    ]
    if any(below >= above for above, below in pairwise(heights)):
        raise NotMeasured(Status.LEVEL_UNCERTAIN, ("vertebrae_out_of_order",), l3.n_voxels)
    above, below = found.get("vertebrae_L2"), found.get("vertebrae_L4")
    if above is None or below is None or context.borders_touched(above) or context.borders_touched(below):
        return ("level_unverified",)
    here = _height_mm(context, l3)
    gaps = (_height_mm(context, above) - here, here - _height_mm(context, below))
    if min(gaps) < MIN_SPACING_RATIO * max(gaps):
        raise NotMeasured(Status.LEVEL_UNCERTAIN, ("vertebrae_unevenly_spaced",), l3.n_voxels)
    return ()


def _l3_slice(context: MetricContext) -> tuple[int, tuple[str, ...]]:
    l3 = context.structure(SPINE_TASK, "vertebrae_L3")
    axial = context.axes.axial
    if slice_obliquity_deg(context.volume.affine_ras, axial) > MAX_OBLIQUITY_DEG:
        raise NotMeasured(Status.GATED, ("oblique_slices",), l3.n_voxels)
    if cut := context.borders_touched(l3):
        raise NotMeasured(Status.INCOMPLETE_FOV, cut, l3.n_voxels)
    main, _ = context.main_piece(SPINE_TASK, l3.name)
    if main.volume_ml < MIN_VERTEBRA_ML:
        raise NotMeasured(Status.LEVEL_UNCERTAIN, ("below_minimum_volume",), l3.n_voxels)
    notes = _require_level(context, l3)
    centre, depth_mm = core_centre_ijk(main)
    if depth_mm < MIN_BODY_DEPTH_MM:
        raise NotMeasured(Status.LEVEL_UNCERTAIN, ("vertebral_body_not_found",), l3.n_voxels)
    return context.axial_slice_at(centre), notes


def muscle_slice(context: MetricContext) -> MuscleSlice:
    """The skeletal muscle in the slice through the centre of the L3 vertebral body.

    Raises:
        NotMeasured: a task was not run, L3 or muscle absent, L3 or the muscle cut by the edge of the scan, level in
            doubt, or too little muscle.
    """
    tissue = context.label_map(MUSCLE_TASK)
    index, notes = _l3_slice(context)
    muscle = context.structure(MUSCLE_TASK, "skeletal_muscle")
    axial = context.axes.axial
    # Not numpy.take: it copies the whole volume where the axis order is not C.
    at = (slice(None),) * axial + (index,)
    in_slice, image = tissue.array[at] == muscle.value, context.volume.array[at]
    inside = in_slice & (image >= MUSCLE_HU[0]) & (image <= MUSCLE_HU[1])
    n_label, n_inside = int(np.count_nonzero(in_slice)), int(np.count_nonzero(inside))
    area_cm2 = n_inside * pixel_cm2(context.volume.affine_ras, axial)
    evidence: dict[str, Any] = {
        "label": "skeletal_muscle",
        "slice_axis": axial,
        "slice_index": index,
        "level": "L3",
        "window_low_hu": MUSCLE_HU[0],
        "window_high_hu": MUSCLE_HU[1],
        "segmented_cm2": n_label * pixel_cm2(context.volume.affine_ras, axial),
    }
    if n_label == 0:
        raise NotMeasured(Status.LABEL_ABSENT, ("label_absent",), 0, evidence)
    first, second = (axis for axis in range(3) if axis != axial)
    edges = (
        (first, False, in_slice[0]),
        (first, True, in_slice[-1]),
        (second, False, in_slice[:, 0]),
        (second, True, in_slice[:, -1]),
    )
    cut = tuple(sorted(f"border_{context.axes.side(axis, high=high)}" for axis, high, edge in edges if edge.any()))
    if cut:
        raise NotMeasured(Status.INCOMPLETE_FOV, cut, n_inside, evidence)
    if area_cm2 < MIN_MUSCLE_CM2:
        raise NotMeasured(Status.INSUFFICIENT_ROI, ("insufficient_roi",), n_inside, evidence)
    return MuscleSlice(image[inside], area_cm2, notes, evidence)
