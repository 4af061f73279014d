"""Storage commitment as its provider: the request is read within bounds, made a row, and only then answered.

Source: PS3.4 annex J (Push Model), PS3.7 section 10.1.4 and annex C (N-ACTION and its statuses). Nothing here knows of
a network library; who receives an N-ACTION asks `CommitmentDesk.ask`, and `commitment_worker` sends the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from heimdallr_ray.catalog.commitments import MAX_WAITING, Asked, CommitmentRequest, Reference, record_request
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Peer
from heimdallr_ray.dicom.elements import EXPLICIT, IMPLICIT, Element, Encoding, NeedMore, Walk
from heimdallr_ray.errors import CommitmentRefused, HeimdallrError, Rejected, StorageFull
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener.action import (
    MAX_REQUEST_BYTES,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST,
    REQUEST_COMMITMENT,
    Action,
    ActionStatus,
)
from heimdallr_ray.listener.part10 import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from heimdallr_ray.security.audit import Action as AuditAction
from heimdallr_ray.security.audit import Actor, AuditLog

logger = logging.getLogger(__name__)

MAX_REFERENCES: Final = 20_000
"""One reference is about 120 bytes; the largest examinations have some thousand images."""
REPORT_DELAY_S: Final = 1.0
"""A report that overtakes the answer to its own request is not recognised by every device."""

_TRANSACTION_UID: Final = 0x00081195
_REFERENCED_SOP_SEQUENCE: Final = 0x00081199
_REFERENCED_SOP_CLASS_UID: Final = 0x00081150
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_BEHIND_REFERENCES: Final = 0x00081200
"""Nothing behind the references is looked at."""
_MAX_UID_BYTES: Final = 66


STATUS_MEANINGS: Final[Mapping[ActionStatus, str]] = {
    ActionStatus.SUCCESS: "the request is on the disk; a report will follow on another association",
    ActionStatus.PROCESSING_FAILURE: "the request could not be recorded now (the database or the disk does not "
    "answer); it may be sent again",
    ActionStatus.NO_SUCH_INSTANCE: "another Requested SOP Instance UID than the well-known one",
    ActionStatus.INVALID_ARGUMENT: "Transaction UID, references or a UID in them are absent or malformed; or the "
    "Transaction UID was used for other references",
    ActionStatus.NO_SUCH_CLASS: "another SOP Class than Storage Commitment Push Model",
    ActionStatus.NO_SUCH_ACTION: "another Action Type ID than 1",
    ActionStatus.NOT_AUTHORIZED: "the calling AE title is not in `commitment_peers`, so no report could be sent to it",
    ActionStatus.MISTYPED_ARGUMENT: "the data set cannot be read, or an attribute has another value representation",
    ActionStatus.RESOURCE_LIMITATION: f"more than {MAX_REFERENCES} references or {MAX_REQUEST_BYTES >> 20} MiB, data "
    f"nested too deep, or no room on the disk; or {MAX_WAITING} requests of this peer wait for their report",
}
"""What each status says of the request; the conformance statement shows this table."""


def parse_request(dataset: bytes, transfer_syntax_uid: str) -> tuple[Uid, tuple[Reference, ...]]:
    """Transaction UID and references of the Action Information in `dataset`; a repeated reference counts once.

    Reads at most `MAX_REQUEST_BYTES`, without recursion; memory is in proportion to the data set.

    Raises:
        CommitmentRefused: says with which status the request is answered.
    """
    if len(dataset) > MAX_REQUEST_BYTES:
        raise CommitmentRefused(ActionStatus.RESOURCE_LIMITATION, f"the request has {len(dataset)} bytes")
    encodings = {IMPLICIT_LITTLE: IMPLICIT, EXPLICIT_LITTLE: EXPLICIT}
    if transfer_syntax_uid not in encodings:
        raise CommitmentRefused(ActionStatus.MISTYPED_ARGUMENT, "a transfer syntax that was not negotiated")
    walk = Walk(dataset, len(dataset))
    try:
        return _read(walk, encodings[transfer_syntax_uid])
    except NeedMore as error:
        raise CommitmentRefused(ActionStatus.MISTYPED_ARGUMENT, "the data set ends inside an element") from error
    except CommitmentRefused:
        raise
    except Rejected as error:
        large = error.http_status == 413
        status = ActionStatus.RESOURCE_LIMITATION if large else ActionStatus.MISTYPED_ARGUMENT
        raise CommitmentRefused(status, error.detail) from error


def _read(walk: Walk, encoding: Encoding) -> tuple[Uid, tuple[Reference, ...]]:
    top: dict[int, Element] = {}
    for element in walk.elements(0, len(walk.buffer), encoding, stop=_BEHIND_REFERENCES):
        if element.tag < _BEHIND_REFERENCES:
            top[element.tag] = element
    transaction_uid = _uid(walk, top.get(_TRANSACTION_UID), "Transaction UID (0008,1195)")
    sequence = top.get(_REFERENCED_SOP_SEQUENCE)
    if sequence is None:
        raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, "no Referenced SOP Sequence (0008,1199)")
    if sequence.vr not in (b"", b"SQ", b"UN"):
        raise CommitmentRefused(ActionStatus.MISTYPED_ARGUMENT, "Referenced SOP Sequence (0008,1199) is no sequence")
    found: dict[Reference, None] = {}
    for number, item in enumerate(walk.items(sequence), start=1):
        if number > MAX_REFERENCES:
            raise CommitmentRefused(ActionStatus.RESOURCE_LIMITATION, f"more than {MAX_REFERENCES} references")
        sop_class = _uid(walk, item.get(_REFERENCED_SOP_CLASS_UID), "Referenced SOP Class UID (0008,1150)")
        instance = _uid(walk, item.get(_REFERENCED_SOP_INSTANCE_UID), "Referenced SOP Instance UID (0008,1155)")
        found[Reference(str(sop_class), str(instance))] = None
    if not found:
        raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, "Referenced SOP Sequence (0008,1199) is empty")
    return transaction_uid, tuple(found)


def _uid(walk: Walk, element: Element | None, name: str) -> Uid:
    if element is None:
        raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, f"no {name}")
    if element.vr not in (b"", b"UI", b"UN") or element.undefined:
        raise CommitmentRefused(ActionStatus.MISTYPED_ARGUMENT, f"{name} has another value representation")
    if element.end - element.start > _MAX_UID_BYTES:
        raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, f"{name} is no UID")
    parsed = Uid.parse_or_none(walk.value(element).decode("ascii", "replace"))
    if parsed is None:
        raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, f"{name} is no UID")
    return parsed


class CommitmentDesk:
    """Takes requests for commitment. Safe for several threads; several desks may share a database."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        peers: Mapping[str, Peer],
        on_asked: Callable[[], None] | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """A desk over a migrated `database`.

        Args:
            database: Where requests are kept.
            clock: Says when a request came and when its report is due.
            peers: Where reports go, by AE title.
            on_asked: Called after a request was recorded, so that a worker looks at once.
            audit: Told of each request in its transaction.
        """
        self._audit = audit
        self._database = database
        self._clock = clock
        self._peers = peers
        self._on_asked = on_asked

    def ask(
        self,
        dataset: bytes,
        transfer_syntax: str,
        calling_ae: str,
        address: str | None,
        association_id: str | None,
        action: Action = REQUEST,
    ) -> int:
        """The request is durable and its status Success, or nothing has changed and the status says why.

        Args:
            dataset: Action Information as received; empty where the request had none.
            transfer_syntax: Of the presentation context.
            calling_ae: Who asks; the report goes to the peer of this title.
            address: Where the request came from; kept for the log, never connected to.
            association_id: Of the intake.
            action: What the command says beside it.

        Returns:
            A status of `ActionStatus`.
        """
        peer = calling_ae.strip()
        facts = {"association": association_id, "address": address, "calling_ae": peer}
        try:
            request, asked = self._record(dataset, transfer_syntax, peer, address, association_id, action)
        except CommitmentRefused as error:
            logger.warning(
                "commitment.refused", extra={**facts, "reason": error.detail, "status": f"0x{error.status:04X}"}
            )
            return error.status
        except HeimdallrError as error:
            full = isinstance(error, StorageFull)
            status = ActionStatus.RESOURCE_LIMITATION if full else ActionStatus.PROCESSING_FAILURE
            logger.warning(
                "commitment.refused",
                extra={**facts, "reason": error.detail, "code": error.code, "status": f"0x{status:04X}"},
            )
            return status
        logger.info("commitment.asked", extra={**facts, "references": len(request.references), "asked": asked.value})
        if self._on_asked is not None:
            self._on_asked()
        return ActionStatus.SUCCESS

    def _record(
        self,
        dataset: bytes,
        transfer_syntax: str,
        calling_ae: str,
        address: str | None,
        association_id: str | None,
        action: Action,
    ) -> tuple[CommitmentRequest, Asked]:
        if action.sop_class_uid != PUSH_MODEL:
            raise CommitmentRefused(ActionStatus.NO_SUCH_CLASS, "another SOP Class than Storage Commitment Push Model")
        if action.sop_instance_uid != PUSH_MODEL_INSTANCE:
            raise CommitmentRefused(ActionStatus.NO_SUCH_INSTANCE, "another SOP Instance than the well-known one")
        if action.action_type != REQUEST_COMMITMENT:
            raise CommitmentRefused(ActionStatus.NO_SUCH_ACTION, f"Action Type ID {action.action_type}")
        if calling_ae not in self._peers:
            detail = "no address for the report: name this AE title in the setting commitment_peers"
            raise CommitmentRefused(ActionStatus.NOT_AUTHORIZED, detail)
        transaction_uid, references = parse_request(dataset, transfer_syntax)
        request = CommitmentRequest(str(transaction_uid), references, calling_ae, address, association_id)
        now = self._clock.now()
        with self._database.write() as session:
            asked, row_id = record_request(session, request, now, now + timedelta(seconds=REPORT_DELAY_S))
            if self._audit is not None and asked in (Asked.NEW, Asked.AGAIN):
                actor = Actor.ae(calling_ae, address)
                facts = {"commitment": row_id, "references": len(references), "asked": asked.value}
                self._audit.append(session, AuditAction.COMMITMENT_ASKED, actor, now=now, detail=facts)
        if asked is Asked.OTHER:
            raise CommitmentRefused(ActionStatus.INVALID_ARGUMENT, "the Transaction UID was used for other references")
        if asked is Asked.TOO_MANY:
            raise CommitmentRefused(ActionStatus.RESOURCE_LIMITATION, f"{MAX_WAITING} requests of this peer wait")
        return request, asked
