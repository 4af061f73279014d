"""What is known of one association while it is open."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.listener.arrival import Arrival

MAX_STUDIES = 4096
"""Studies that are remembered for one association; one that sends more keeps the newest."""

MAX_UID_TEXT = 65
"""Of the UIDs of a request: one character more than a UID has, so that one that was too long stays none."""


@dataclass
class OpenAssociation:
    """One association. AE titles are as the peer sent them, cut to 16 characters (PS3.5 table 6.2-1)."""

    id: str
    calling_ae: str
    called_ae: str
    address: str
    opened_at: datetime
    opened_s: float
    implementation: str = ""
    study_uids: dict[str, None] = field(default_factory=dict[str, None])
    stored: int = 0
    refused: int = 0
    n_bytes: int = 0

    def count(self, study_uid: str, size: int) -> None:
        """One more object of `size` bytes is stored."""
        self.study_uids[study_uid] = None
        if len(self.study_uids) > MAX_STUDIES:
            del self.study_uids[next(iter(self.study_uids))]
        self.stored += 1
        self.n_bytes += size

    def arrival(self, now: datetime, transfer_syntax: str, sop_class: str, sop_instance: str) -> Arrival:
        """What is known of an object that this association sends."""
        return Arrival(
            intake_id=self.id,
            door=Door.DICOM,
            received_at=now,
            transfer_syntax_uid=transfer_syntax,
            sop_class_uid=sop_class[:MAX_UID_TEXT],
            sop_instance_uid=sop_instance[:MAX_UID_TEXT],
            calling_ae=self.calling_ae or None,
            address=self.address,
            source_implementation=self.implementation,
        )
