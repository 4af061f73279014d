"""Instances as a door hands them to the catalog, without files behind them."""

from __future__ import annotations

import hashlib
from datetime import datetime

from heimdallr_ray.catalog.received import ReceivedInstance, SeriesFacts, StudyFacts
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.ids import Sha256, Uid
from tests.support.clock import EPOCH


def digest(text: str) -> Sha256:
    return Sha256(hashlib.sha256(text.encode()).hexdigest())


def received(
    number: int,
    *,
    study: int = 1,
    series: int = 1,
    content: str = "",
    spool: str = "",
    at: datetime = EPOCH,
    facts: StudyFacts | None = None,
    series_facts: SeriesFacts | None = None,
    door: Door = Door.DICOM,
    synthetic: bool = False,
    association: str | None = "a1",
    ae: str | None = "SCANNER",
    address: str | None = None,
) -> ReceivedInstance:
    """Instance `number` of a study; `content` makes other bytes, `spool` another arrival of it."""
    name = f"{study}.{series}.{number}.{content}"
    return ReceivedInstance(
        spool_name=f"{name}.{spool}"[:64],
        blob_sha256=digest("blob" + name),
        size=1000 + number,
        received_at=at,
        door=door,
        study_uid=Uid(f"1.2.{study}"),
        study_uid_generated=False,
        series_uid=Uid(f"1.2.{study}.{series}"),
        sop_uid=Uid(f"1.2.{study}.{series}.{number}"),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        association_id=association,
        calling_ae=ae,
        address=address,
        synthetic=synthetic,
        study=facts or StudyFacts(),
        series=series_facts or SeriesFacts(modality="CT"),
    )
