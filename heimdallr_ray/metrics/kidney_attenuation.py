"""Mean attenuation of each kidney in Hounsfield units."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, measured
from heimdallr_ray.metrics.organ import TASK, Organ, organ_attenuation
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "kidney_attenuation"
DEFINITION_VERSION = 1
SIDES = ("right", "left")
QUANTITIES = tuple(Quantity(f"kidney_{side}_attenuation", DEFINITION_VERSION, "[hnsf'U]", (TASK,)) for side in SIDES)
ORGANS = tuple(Organ(f"kidney_{side}", min_ml=10.0, max_ml=2000.0, min_roi_ml=10.0, lateral=True) for side in SIDES)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """Mean HU of the main piece of each kidney eroded by 3 mm, see `organ_attenuation`."""
    return tuple(
        measured(context, quantity, lambda organ=organ: organ_attenuation(context, organ))
        for quantity, organ in zip(QUANTITIES, ORGANS, strict=True)
    )
