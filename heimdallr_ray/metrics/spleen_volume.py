"""Spleen volume in millilitres."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, measured
from heimdallr_ray.metrics.organ import TASK, Organ, organ_volume
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "spleen_volume"
DEFINITION_VERSION = 1
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "mL", (TASK,)),)
ORGAN = Organ("spleen", min_ml=10.0, max_ml=5000.0, min_roi_ml=20.0)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """All voxels of the label `spleen`, see `organ_volume`."""
    return (measured(context, QUANTITIES[0], lambda: organ_volume(context, ORGAN)),)
