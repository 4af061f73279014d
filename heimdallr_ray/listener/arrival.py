"""What a door knows of one object, and how the spool keeps it so that a row can be rebuilt from files alone.

A spooled file is a Part 10 file: zero preamble, our group 0002 and the data set bytes exactly as received. It holds
nothing of the way by which it came, so the same object sent twice gives the same file and the same sha256. What the
association or upload knew is one small record beside the files, and a file's name tells its record and its sha256.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import NotDicom
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener import part10

RECORD_VERSION = 2
MAX_RECORD_BYTES = 16 * 1024
_MAX_UID_TEXT = 64
STAND_IN_SOP_UID = Uid.derived("spool", "no SOP Instance UID")
"""What group 0002 holds where the sender gave no valid SOP Instance UID; never taken for one of the sender."""


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


def encode_file_start(arrival: Arrival) -> bytes:
    """Preamble and group 0002 of a spooled file (PS3.10 section 7.1); the data set bytes follow it.

    Depends on transfer syntax and the two SOP UIDs alone. Changing what is written here changes the sha256 of every
    object, and one that is sent again would no longer be known as the same.
    """
    # A blank or malformed UID never goes into group 0002.
    uid = (Uid.parse_or_none(arrival.sop_instance_uid) or STAND_IN_SOP_UID).encode("ascii")
    sop_class_uid = Uid.parse_or_none(arrival.sop_class_uid) or ""
    before, behind = part10.meta_around(len(uid), sop_class_uid, arrival.transfer_syntax_uid)
    return before + uid + behind


def encode_record(arrival: Arrival) -> bytes:
    """The record of the association or upload by which `arrival` came, as JSON."""
    document = {
        "v": RECORD_VERSION,
        "intake_id": arrival.intake_id,
        "door": arrival.door.value,
        "calling_ae": arrival.calling_ae,
        "address": arrival.address,
        "source_implementation": arrival.source_implementation[:_MAX_UID_TEXT],
        "synthetic": arrival.synthetic,
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def parse_record(content: bytes, received_at: datetime) -> Arrival:
    """What the record says of every object of its association or upload; the object's own UIDs are blank.

    Raises:
        NotDicom: it is no record of this spool, or damaged.
    """
    try:
        fields = cast("dict[str, Any]", json.loads(content))
        if fields["v"] != RECORD_VERSION:
            raise NotDicom(f"spool version {fields['v']} is not known")
        return Arrival(
            intake_id=str(fields["intake_id"]),
            door=Door(fields["door"]),
            received_at=received_at,
            transfer_syntax_uid="",
            calling_ae=cast("str | None", fields["calling_ae"]),
            address=cast("str | None", fields["address"]),
            source_implementation=str(fields["source_implementation"]),
            synthetic=bool(fields["synthetic"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NotDicom("damaged record of an intake") from error


def with_file_start(arrival: Arrival, head: bytes) -> tuple[Arrival, int]:
    """`arrival` with what the spooled file that begins with `head` says of itself, and its data set's offset.

    Raises:
        NotDicom: no file meta information.
        TooLarge: group 0002 is longer than MAX_META_BYTES.
    """
    meta = part10.parse_meta(head)
    sop = "" if meta.sop_instance_uid == STAND_IN_SOP_UID else meta.sop_instance_uid
    found = replace(
        arrival,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        sop_class_uid=meta.sop_class_uid,
        sop_instance_uid=sop,
    )
    return found, meta.dataset_offset
