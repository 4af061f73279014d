"""Volume of each kidney in millilitres. TotalSegmentator's cyst labels are separate and are not counted."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, measured
from heimdallr_ray.metrics.organ import TASK, Organ, organ_volume
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "kidney_volume"
DEFINITION_VERSION = 1
SIDES = ("right", "left")
QUANTITIES = tuple(Quantity(f"kidney_{side}_volume", DEFINITION_VERSION, "mL", (TASK,)) for side in SIDES)
ORGANS = tuple(Organ(f"kidney_{side}", min_ml=10.0, max_ml=2000.0, min_roi_ml=10.0, lateral=True) for side in SIDES)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """All voxels of `kidney_right` and of `kidney_left`, see `organ_volume`."""
    return tuple(
        measured(context, quantity, lambda organ=organ: organ_volume(context, organ))
        for quantity, organ in zip(QUANTITIES, ORGANS, strict=True)
    )
