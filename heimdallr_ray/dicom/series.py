"""Series of a study: `group` instances, `select` the one to measure."""

from __future__ import annotations

from heimdallr_ray.dicom.grouping import IndexedInstance, Kind, Series, group
from heimdallr_ray.dicom.selection import Selection, SeriesDecision, select

__all__ = ["IndexedInstance", "Kind", "Selection", "Series", "SeriesDecision", "group", "select"]
