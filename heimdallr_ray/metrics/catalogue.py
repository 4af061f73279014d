"""All measurements, in the order in which they are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from heimdallr_ray.errors import BadSetting, HeimdallrError
from heimdallr_ray.metrics import (
    body_regions,
    intracranial_hemorrhage_volume,
    kidney_attenuation,
    kidney_volume,
    l3_muscle_area,
    l3_muscle_attenuation,
    liver_attenuation,
    liver_volume,
    spleen_attenuation,
    spleen_volume,
)
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, provenance_of
from heimdallr_ray.metrics.result import Measurement, Status

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One measuring function, the quantities it always returns, in order, and what it can be made from.

    Attributes:
        label_maps: sets of label maps, by TotalSegmentator's task names, that would do, the preferred set first; empty:
            the one set that its quantities name.
        modality: DICOM Modality (0008,0060) that it can be measured on.
    """

    measure: Callable[[MetricContext], tuple[Measurement, ...]]
    quantities: tuple[Quantity, ...]
    label_maps: tuple[tuple[str, ...], ...] = ()
    modality: str = "CT"

    @property
    def name(self) -> str:
        """Its first quantity's."""
        return self.quantities[0].id

    @property
    def needs(self) -> tuple[tuple[str, ...], ...]:
        """`label_maps`, or what the quantities name, each once."""
        return self.label_maps or (tuple(dict.fromkeys(task for one in self.quantities for task in one.tasks)),)


CATALOGUE: tuple[Metric, ...] = tuple(
    Metric(module.measure, module.QUANTITIES)
    for module in (
        intracranial_hemorrhage_volume,
        liver_volume,
        liver_attenuation,
        spleen_volume,
        spleen_attenuation,
        kidney_volume,
        kidney_attenuation,
        l3_muscle_area,
        l3_muscle_attenuation,
        body_regions,
    )
)


def asked_for(names: Collection[str], catalogue: tuple[Metric, ...] = CATALOGUE) -> tuple[Metric, ...]:
    """The measurements of which any quantity is named, in the order of the catalogue; all of them for no name.

    Raises:
        BadSetting: a name is no quantity of the catalogue.
    """
    unknown = sorted(set(names) - {one.id for metric in catalogue for one in metric.quantities})
    if unknown:
        raise BadSetting(f"measurements: there is no {', '.join(map(repr, unknown))}")
    return tuple(metric for metric in catalogue if not names or any(one.id in names for one in metric.quantities))


def measure_all(context: MetricContext, catalogue: tuple[Metric, ...] = CATALOGUE) -> tuple[Measurement, ...]:
    """Every quantity of the catalogue, measured or with the reason why not; a failure of one stops no other."""
    measurements: list[Measurement] = []
    for metric in catalogue:
        try:
            measurements.extend(metric.measure(context))
        except Exception as error:  # A defect in one measurement must not take the others' numbers from the reader.
            code = error.code if isinstance(error, HeimdallrError) else "measurement_failed"
            reason = getattr(error, "reason", code)
            _log.exception("measurement.failed", extra={"metric": metric.quantities[0].id, "code": code})
            measurements.extend(
                Measurement(
                    quantity.id,
                    None,
                    quantity.unit,
                    Status.ERROR,
                    provenance_of(context, quantity),
                    tuple(dict.fromkeys((code, str(reason)))),
                )
                for quantity in metric.quantities
            )
    return tuple(measurements)
