"""Series of a study: `group` instances, `select` the one to measure, `break_tie` once the phase model has looked."""

from __future__ import annotations

from heimdallr_ray.dicom.decisions import Fallback, Finalist, Line, Override, Selection, SeriesDecision
from heimdallr_ray.dicom.grouping import IndexedInstance, Kind, Series, group
from heimdallr_ray.dicom.phase import HeaderPhase, Phase
from heimdallr_ray.dicom.refusal import after_refusal
from heimdallr_ray.dicom.rules import Purpose, RulesRef, SeriesRules, default_rules, load_rules
from heimdallr_ray.dicom.selection import select
from heimdallr_ray.dicom.tie import break_tie

__all__ = [
    "Fallback",
    "Finalist",
    "HeaderPhase",
    "IndexedInstance",
    "Kind",
    "Line",
    "Override",
    "Phase",
    "Purpose",
    "RulesRef",
    "Selection",
    "Series",
    "SeriesDecision",
    "SeriesRules",
    "after_refusal",
    "break_tie",
    "default_rules",
    "group",
    "load_rules",
    "select",
]
