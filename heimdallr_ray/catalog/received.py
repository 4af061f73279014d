"""What the doors hand to the catalog: one durable instance and the header facts that group it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.ids import Sha256, Uid


@dataclass(frozen=True)
class StudyFacts:
    """Study and patient attributes, already bounded to their VR's length; None where absent or blank."""

    patient_id: str | None = None
    patient_name: str | None = None
    patient_birth_date: str | None = None
    patient_sex: str | None = None
    accession_number: str | None = None
    study_date: str | None = None
    study_time: str | None = None
    study_description: str | None = None
    ordered_priority: str | None = None
    n_expected: int | None = None
    """Number of Study Related Instances (0020,1208)."""


@dataclass(frozen=True)
class SeriesFacts:
    """Series attributes, already bounded to their VR's length."""

    modality: str | None = None
    series_number: int | None = None
    series_description: str | None = None
    body_part: str | None = None


@dataclass(frozen=True)
class ReceivedInstance:
    """One object whose bytes are the blob `blob_sha256` and whose row is not yet committed.

    `study_uid`, `series_uid` and `sop_uid` are never blank: where the sender left them so, the door derived them
    (`study_uid_generated`).
    """

    spool_name: str
    blob_sha256: Sha256
    size: int
    received_at: datetime
    door: Door
    study_uid: Uid
    study_uid_generated: bool
    series_uid: Uid
    sop_uid: Uid
    sop_class_uid: str
    transfer_syntax_uid: str
    association_id: str | None = None
    calling_ae: str | None = None
    address: str | None = None
    synthetic: bool = False
    durable: bool = True
    """False: the bytes are not yet known to survive a power cut (the setting durability = study)."""
    replayed: bool = False
    """True: read back from the spool, so that it may have been recorded before: a duplicate has no row to tell."""
    study: StudyFacts = StudyFacts()
    series: SeriesFacts = SeriesFacts()
