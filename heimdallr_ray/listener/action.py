"""Names and numbers of storage commitment: what an N-ACTION asks and how it is answered (PS3.4 J, PS3.7 C)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from heimdallr_ray.listener.part10 import EXPLICIT_LITTLE, IMPLICIT_LITTLE

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""
PUSH_MODEL_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its well-known SOP Instance (PS3.4 section J.3.5)."""
REQUEST_COMMITMENT: Final = 1
"""The one Action Type ID (PS3.4 table J.3-1)."""
TRANSFER_SYNTAXES: Final = (EXPLICIT_LITTLE, IMPLICIT_LITTLE)
"""Of requests and reports."""

MAX_REQUEST_BYTES: Final = 8 << 20


class ActionStatus(IntEnum):
    """Statuses of the N-ACTION response that are given here (PS3.7 section 10.1.4.1.10)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT = 0x0115
    NO_SUCH_CLASS = 0x0118
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213


@dataclass(frozen=True)
class Action:
    """What an N-ACTION request says beside its data set."""

    sop_class_uid: str = PUSH_MODEL
    sop_instance_uid: str = PUSH_MODEL_INSTANCE
    action_type: int = REQUEST_COMMITMENT


REQUEST: Final = Action()
"""The one request that there is."""
