"""What a door knows of one object, and how a spooled file carries it so that its row can be rebuilt from it alone.

A spooled file is a Part 10 file: zero preamble, our group 0002 and the data set bytes exactly as received. Private
Information (0002,0102) holds what the association or upload knew, as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import NotDicom
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener import part10

SPOOL_VERSION = 1
_MAX_UID_TEXT = 64


@dataclass(frozen=True)
class Arrival:
    """What a door knows of one object before its data set is looked at.

    `intake_id` is the association's or the upload's id. `sop_class_uid` and `sop_instance_uid` are the Affected UIDs of
    the C-STORE request or those of the file meta, as sent (possibly blank or malformed).
    """

    intake_id: str
    door: Door
    received_at: datetime
    transfer_syntax_uid: str
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    calling_ae: str | None = None
    address: str | None = None
    source_implementation: str = ""
    synthetic: bool = False


def stand_in_sop_uid(spool_name: str) -> Uid:
    """What group 0002 holds where the sender gave no valid SOP Instance UID; never taken for one of the sender."""
    return Uid.derived("spool", spool_name)


def _private_information(name: str, arrival: Arrival) -> bytes:
    document = {
        "v": SPOOL_VERSION,
        "spool_name": name,
        "intake_id": arrival.intake_id,
        "door": arrival.door.value,
        "received_at": arrival.received_at.isoformat(),
        "transfer_syntax_uid": arrival.transfer_syntax_uid,
        "calling_ae": arrival.calling_ae,
        "address": arrival.address,
        "affected_sop_class_uid": arrival.sop_class_uid[:_MAX_UID_TEXT],
        "affected_sop_instance_uid": arrival.sop_instance_uid[:_MAX_UID_TEXT],
        "source_implementation": arrival.source_implementation[:_MAX_UID_TEXT],
        "synthetic": arrival.synthetic,
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def encode_arrival(name: str, arrival: Arrival) -> bytes:
    """Preamble and group 0002 of the spooled file `name` (PS3.10 section 7.1); the data set bytes follow it."""
    # A blank or malformed UID never goes into group 0002; the raw text stays in the JSON.
    sop_class = Uid.parse_or_none(arrival.sop_class_uid) or ""
    sop_instance = Uid.parse_or_none(arrival.sop_instance_uid) or stand_in_sop_uid(name)
    return part10.encode_meta(
        part10.FileMeta(
            dataset_offset=0,
            transfer_syntax_uid=arrival.transfer_syntax_uid,
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            implementation_class_uid=part10.IMPLEMENTATION_CLASS_UID,
            implementation_version=part10.IMPLEMENTATION_VERSION,
            source_ae=(arrival.calling_ae or "")[:16],
            private_creator_uid=part10.PRIVATE_CREATOR_UID,
            private_information=_private_information(name, arrival),
        )
    )


def parse_arrival(head: bytes) -> tuple[str, Arrival, int]:
    """Spool name, arrival facts and data set offset of a spooled file that begins with `head`.

    Raises:
        NotDicom: the file was not written by this spool, or its private information is damaged.
    """
    meta = part10.parse_meta(head)
    if meta.private_creator_uid != part10.PRIVATE_CREATOR_UID:
        raise NotDicom("not a file of this spool")
    try:
        fields = cast("dict[str, Any]", json.loads(meta.private_information.rstrip(b"\0")))
        if fields["v"] != SPOOL_VERSION:
            raise NotDicom(f"spool version {fields['v']} is not known")
        arrival = Arrival(
            intake_id=str(fields["intake_id"]),
            door=Door(fields["door"]),
            received_at=datetime.fromisoformat(fields["received_at"]),
            transfer_syntax_uid=str(fields["transfer_syntax_uid"]),
            sop_class_uid=str(fields["affected_sop_class_uid"]),
            sop_instance_uid=str(fields["affected_sop_instance_uid"]),
            calling_ae=cast("str | None", fields["calling_ae"]),
            address=cast("str | None", fields["address"]),
            source_implementation=str(fields["source_implementation"]),
            synthetic=bool(fields["synthetic"]),
        )
        return str(fields["spool_name"]), arrival, meta.dataset_offset
    except (KeyError, TypeError, ValueError) as error:
        raise NotDicom("damaged spool information") from error
