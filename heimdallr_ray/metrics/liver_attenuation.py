"""Mean liver attenuation in Hounsfield units."""

from __future__ import annotations

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, measured
from heimdallr_ray.metrics.organ import TASK, Organ, organ_attenuation
from heimdallr_ray.metrics.result import Measurement

DEFINITION_ID = "liver_attenuation"
DEFINITION_VERSION = 1
QUANTITIES = (Quantity(DEFINITION_ID, DEFINITION_VERSION, "[hnsf'U]", (TASK,)),)
ORGAN = Organ("liver", min_ml=100.0, max_ml=6000.0, min_roi_ml=100.0)


def measure(context: MetricContext) -> tuple[Measurement, ...]:
    """Mean HU of the main piece of the label `liver` eroded by 3 mm, see `organ_attenuation`."""
    return (measured(context, QUANTITIES[0], lambda: organ_attenuation(context, ORGAN)),)
