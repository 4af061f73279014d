"""Mean skeletal muscle attenuation at L3 in Hounsfield units."""

from __future__ import annotations

import numpy as np

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, Reading, measured
from heimdallr_ray.metrics.l3_muscle import MUSCLE_TASK, SPINE_TASK, muscle_slice
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "l3_muscle_attenuation"
DEFINITION_VERSION = 1
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "[hnsf'U]", (MUSCLE_TASK, SPINE_TASK)),)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """Mean HU of the voxels that `l3_muscle_area` counts."""

    def read() -> Reading:
        found = muscle_slice(context)
        evidence = {**found.evidence, "sd_hu": float(np.std(found.values, dtype=np.float64))}
        mean = float(np.mean(found.values, dtype=np.float64))
        return Reading(mean, len(found.values), found.notes, evidence)

    return (measured(context, QUANTITIES[0], read),)
