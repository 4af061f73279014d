"""Ordered priority (theirs) and urgency (ours) on one scale, where 0 is the most urgent class."""

from __future__ import annotations

from heimdallr_ray.catalog.states import JobPriority, Urgency

ROUTINE_CLASS = JobPriority.LIVE[Urgency.P3]
ORDERED_CLASS = {"STAT": JobPriority.LIVE[Urgency.P1], "HIGH": JobPriority.LIVE[Urgency.P1]}
"""Class of RequestedProcedurePriority (0040,1003); what is not here is routine."""
_ORDERED_RANK = {"STAT": 0, "HIGH": 1, "ROUTINE": 2, "MEDIUM": 2, "LOW": 3}


def ordered_class(ordered_priority: str | None) -> int:
    """The class that the order asks for; unknown and absent are routine."""
    return ORDERED_CLASS.get((ordered_priority or "").strip().upper(), ROUTINE_CLASS)


def urgency_class(urgency: str | None) -> int:
    """The class of our urgency; none yet is routine."""
    return ROUTINE_CLASS if urgency is None else JobPriority.LIVE[Urgency(urgency)]


def effective_class(urgency: str | None, ordered_priority: str | None) -> int:
    """The more urgent of ours and theirs."""
    return min(urgency_class(urgency), ordered_class(ordered_priority))


def higher_order(one: str | None, other: str | None) -> str | None:
    """The more urgent of two ordered priorities; None only where both are."""
    if one is None or other is None:
        return one if other is None else other
    return min(one, other, key=lambda item: _ORDERED_RANK.get(item.strip().upper(), 2))
