"""Skeletal muscle area at L3 in square centimetres."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, Reading, measured
from heimdallr_ray.metrics.l3_muscle import MUSCLE_TASK, SPINE_TASK, muscle_slice
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "l3_muscle_area"
DEFINITION_VERSION = 1
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "cm2", (MUSCLE_TASK, SPINE_TASK)),)
PLAUSIBLE_CM2 = (20.0, 400.0)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """`skeletal_muscle` of `tissue_types` within -29 to 150 HU, in the slice through the centre of the L3 body."""

    def read() -> Reading:
        found = muscle_slice(context)
        return Reading(found.area_cm2, len(found.values), found.notes, found.evidence, PLAUSIBLE_CM2)

    return (measured(context, QUANTITIES[0], read),)
