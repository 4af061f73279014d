"""Liver volume in millilitres."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, measured
from heimdallr_ray.metrics.organ import TASK, Organ, organ_volume
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "liver_volume"
DEFINITION_VERSION = 1
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "mL", (TASK,)),)
ORGAN = Organ("liver", min_ml=100.0, max_ml=6000.0, min_roi_ml=100.0)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """All voxels of the label `liver`, see `organ_volume`."""
    return (measured(context, QUANTITIES[0], lambda: organ_volume(context, ORGAN)),)
