"""The shape of a measurement: value-or-null, unit, status, reasons, provenance. Null is never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Why a measurement has, or has not, a value."""

    OK = "ok"
    NOT_APPLICABLE = "not_applicable"
    GATED = "gated"
    INCOMPLETE_FOV = "incomplete_fov"
    LABEL_ABSENT = "label_absent"
    LEVEL_UNCERTAIN = "level_uncertain"
    INSUFFICIENT_ROI = "insufficient_roi"
    IMPLAUSIBLE = "implausible"
    ERROR = "error"


@dataclass(frozen=True)
class Provenance:
    """What a number was made from."""

    definition_id: str
    definition_version: int
    study_uid: str = ""
    series_uid: str = ""
    source_manifest_sha256: str = ""
    task: str = ""
    model_id: str = ""
    weights_sha256: str = ""
    synthetic: bool = False
    mode: str = ""
    """`exact`, or `turbo` where a model was run in a way that may change single voxels; empty without a model."""
    image_flags: str = ""
    """What is unusual about the image, joined by `,`: `tilt:18.5,deskewed`."""


@dataclass(frozen=True)
class Measurement:
    """One number, or the reason why there is none.

    Attributes:
        id: stable identifier, for example `liver_volume`.
        value: unrounded number in `unit`, or None; a number only where `status` is OK or IMPLAUSIBLE.
        unit: UCUM: `mL`, `[hnsf'U]`, `cm2`, `1`.
        status: see Status.
        reasons: codes such as `border_superior`, `label_absent`, `not_ct`.
        provenance: definition, series, model and weights.
        n_voxels: size of the sample the value was taken from.
        evidence: where to look: `{"slice_k": 118}`; JSON scalars only.
    """

    id: str
    value: float | None
    unit: str
    status: Status
    provenance: Provenance
    reasons: tuple[str, ...] = ()
    n_voxels: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.value is not None and self.status not in (Status.OK, Status.IMPLAUSIBLE):
            raise ValueError(f"{self.id}: status {self.status} cannot carry a value")
        if self.value is None and self.status is Status.OK:
            raise ValueError(f"{self.id}: status ok needs a value")
        if self.value is None and not self.reasons:
            raise ValueError(f"{self.id}: a missing value needs a reason")
        if self.value is not None and not abs(self.value) < float("inf"):
            raise ValueError(f"{self.id}: value must be finite")
