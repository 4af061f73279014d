"""The rules: thresholds as versioned, cited rows. The reason shown to a reader is written from the row that fired."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from heimdallr_ray.metrics.result import Status


class Urgency(StrEnum):
    """Our urgency of a study; P0 is the most urgent. The catalog's column holds the same four values."""

    P0 = "P0"
    P1 = "P1"
    P2 = "P2"
    P3 = "P3"

    @property
    def word(self) -> str:
        """The word shown beside the class."""
        return {"P0": "CRITICAL", "P1": "URGENT", "P2": "SOON", "P3": "ROUTINE"}[self.value]


@dataclass(frozen=True)
class Rule:
    """One threshold.

    Attributes:
        id: stable name.
        version: grows whenever the rule would fire differently.
        finding: what is found where it fires, in words.
        measurement_id: the measurement that it looks at.
        evidence_key: the entry of the measurement's evidence that is compared; None: its value.
        statuses: the measurement must have one of these.
        at_least: fires where the compared number is not smaller.
        unit: of `at_least`, UCUM.
        urgency: of the study where it fires.
        citation: where the threshold comes from.
    """

    id: str
    version: int
    finding: str
    measurement_id: str
    evidence_key: str | None
    statuses: frozenset[Status]
    at_least: float
    unit: str
    urgency: Urgency
    citation: str


RULES: tuple[Rule, ...] = (
    Rule(
        id="ich-any",
        version=1,
        finding="intracranial hemorrhage",
        measurement_id="intracranial_hemorrhage_volume",
        # The largest connected piece: a hundred single voxels of noise are not a bleed of 0.1 mL.
        evidence_key="largest_component_ml",
        # Blood that the scan cuts off, or that lies in slices too far apart, has no volume, yet it is blood.
        statuses=frozenset({Status.OK, Status.INCOMPLETE_FOV, Status.GATED}),
        at_least=0.1,
        unit="mL",
        urgency=Urgency.P0,
        citation="ACR Actionable Reporting Work Group category 1 (Larson, J Am Coll Radiol 2014)",
    ),
)
