"""What the measurements of a site ask of its models: where the catalogue and the planner meet."""

from __future__ import annotations

from collections.abc import Collection

from heimdallr_ray.metrics.catalogue import asked_for
from heimdallr_ray.segmentation.planner import Demand, Need


def demand_of(measurements: Collection[str]) -> Demand:
    """What a registry has to serve.

    Args:
        measurements: that the site names; none: all.

    Raises:
        BadSetting: there is no such measurement.
    """
    return Demand(tuple(Need(one.name, one.needs) for one in asked_for(measurements)), named=bool(measurements))
