"""Which study, series and instance an object belongs to, also where its sender left the identifiers blank. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts, StudyFacts
from heimdallr_ray.dicom.header import Header
from heimdallr_ray.dicom.identity import Identified, IdentityFacts
from heimdallr_ray.errors import NotDicom
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.listener.arrival import STAND_IN_SOP_UID, Arrival
from heimdallr_ray.listener.writer import SpoolEntry

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Identity:
    """The identifiers and header facts of one object; no UID is blank."""

    study_uid: Uid
    study_uid_generated: bool
    series_uid: Uid
    sop_uid: Uid
    sop_class_uid: str
    synthetic: bool
    study: StudyFacts
    series: SeriesFacts


@dataclass(frozen=True)
class Accepted:
    """One object that is stored and whose header has been read."""

    entry: SpoolEntry
    identity: Identity
    durable: bool = False
    """True where its bytes are known to survive a power cut."""
    replayed: bool = False
    """True where it was read back from the spool: nobody knows whether it was recorded before."""


def identify(found: Identified, arrival: Arrival, sha256: Callable[[], Sha256]) -> Identity:
    """The identity of the object that `found` was read from; as `identify_instance`; `sha256` is asked if needed."""
    return _identity(found.facts, found.sop_class_uid, found.sop_uid, arrival, sha256)


def identify_instance(header: Header, arrival: Arrival, sha256: Sha256) -> Identity:
    """The identity of the object with `header`.

    A blank or malformed Study Instance UID becomes one that depends on the association or upload and on the patient:
    what came together belongs together, but never two patients. A blank Series Instance UID depends on that study and
    the series attributes. A blank SOP Instance UID is the Affected or Media Storage one; where that is blank too, it
    depends on the object's bytes (`sha256`), so that sending it again gives the same one.

    Raises:
        NotDicom: the data set says nothing at all about what it is; zeros, for example, parse as empty elements.
    """
    return _identity(header, header.sop_class_uid, header.sop_uid, arrival, lambda: sha256)


def _identity(
    header: Header | IdentityFacts,
    sop_class_uid: Uid | None,
    sop_uid: Uid | None,
    arrival: Arrival,
    sha256: Callable[[], Sha256],
) -> Identity:
    if not (header.study_uid or header.series_uid or header.modality or header.patient_id or header.rows):
        raise NotDicom("the data set has no identifying attribute")
    generated = header.study_uid is None
    study_uid = header.study_uid or Uid.derived(
        "study", arrival.intake_id, header.patient_id, header.patient_name, header.patient_birth_date
    )
    series_uid = header.series_uid or Uid.derived(
        "series",
        study_uid,
        header.modality,
        str(header.series_number),
        header.series_description,
        header.body_part,
        header.kernel,
    )
    if sop_uid is None or sop_uid == STAND_IN_SOP_UID:
        sop_uid = Uid.parse_or_none(arrival.sop_instance_uid) or Uid.derived("sop", sha256())
    study, series = _shared(header) if isinstance(header, IdentityFacts) else _groups(header)
    return Identity(
        study_uid=study_uid,
        study_uid_generated=generated,
        series_uid=series_uid,
        sop_uid=sop_uid,
        sop_class_uid=sop_class_uid or Uid.parse_or_none(arrival.sop_class_uid) or "",
        synthetic=header.synthetic or arrival.synthetic,
        study=study,
        series=series,
    )


@lru_cache(maxsize=64)
def _shared(facts: IdentityFacts) -> tuple[StudyFacts, SeriesFacts]:
    return _groups(facts)


def _groups(header: Header | IdentityFacts) -> tuple[StudyFacts, SeriesFacts]:
    study = StudyFacts(
        patient_id=header.patient_id or None,
        patient_name=header.patient_name or None,
        patient_birth_date=header.patient_birth_date or None,
        patient_sex=header.patient_sex or None,
        accession_number=header.accession_number or None,
        study_date=header.study_date or None,
        study_time=header.study_time or None,
        study_description=header.study_description or None,
        ordered_priority=header.requested_priority or None,
        n_expected=header.n_related_instances if 0 < (header.n_related_instances or 0) <= _INT32_MAX else None,
    )
    series = SeriesFacts(
        modality=header.modality or None,
        # IS may hold more than a 32-bit column (PS3.5 6.2 bounds it to 2^31 - 1, devices do not).
        series_number=header.series_number if abs(header.series_number or 0) <= _INT32_MAX else None,
        series_description=header.series_description or None,
        body_part=header.body_part or None,
    )
    return study, series


def to_received(
    entry: SpoolEntry, identity: Identity, *, durable: bool = True, replayed: bool = False
) -> ReceivedInstance:
    """The row facts of `entry`, whose file is the blob of the same digest."""
    arrival = entry.arrival
    return ReceivedInstance(
        spool_name=entry.name,
        blob_sha256=entry.sha256,
        size=entry.size,
        received_at=arrival.received_at,
        door=arrival.door,
        study_uid=identity.study_uid,
        study_uid_generated=identity.study_uid_generated,
        series_uid=identity.series_uid,
        sop_uid=identity.sop_uid,
        sop_class_uid=identity.sop_class_uid,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        association_id=arrival.intake_id,
        calling_ae=arrival.calling_ae,
        address=arrival.address,
        synthetic=identity.synthetic,
        durable=durable,
        replayed=replayed,
        study=identity.study,
        series=identity.series,
    )
