"""The objects of one STOW-RS request (PS3.18 10.5): each is taken or refused by itself, as a C-STORE would be.

Nothing is an instance before the whole request was read: a sender that hears no answer has stored nothing. What is
answered as stored is a row by then.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import EmptyInput, HeimdallrError, NotDicom, Rejected, StudyMismatch
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.receive import NotesOf, Receiver
from heimdallr_ray.listener.spool import Staging

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class StowStored:
    """One object that is an instance now, or was one before."""

    sop_class_uid: str
    sop_uid: str


@dataclass(frozen=True)
class StowFailed:
    """One object that was refused. The UIDs are those of its file meta or data set; empty where it could not be read.

    `status` is the Failure Reason (0008,1197): the status that a C-STORE of it would have got (PS3.18 table I.2-2).
    """

    sop_class_uid: str
    sop_uid: str
    code: str
    status: int

    @property
    def named(self) -> bool:
        """True where the object is known by both UIDs, which a Failed SOP Sequence asks for."""
        return bool(self.sop_class_uid and self.sop_uid)


@dataclass(frozen=True)
class StowOutcome:
    """What became of a request."""

    stored: tuple[StowStored, ...]
    failed: tuple[StowFailed, ...]
    study_uids: tuple[str, ...]
    already_there: int = 0
    size: int = 0
    """Data set bytes of the stored ones."""


class _Interrupted(Exception):
    """The request's body failed, which is no property of the object that was being read."""

    def __init__(self, error: HeimdallrError) -> None:
        super().__init__(error.code)
        self.error = error


def store_objects(
    bodies: Iterable[Iterator[bytes]],
    receiver: Receiver,
    intake_id: str,
    address: str | None = None,
    study_uid: Uid | None = None,
    notes: NotesOf = lambda items: (),
) -> StowOutcome:
    """Every object of `bodies` is an instance in the catalog, or listed as failed.

    Args:
        bodies: the bytes of one object each; used up in turn.
        receiver: the one road to the catalog.
        intake_id: of the request.
        address: of the sender.
        study_uid: where the request names a study: objects of others are refused.
        notes: of the objects that are stored; carried out with their rows.

    Raises:
        EmptyInput: no object.
        Retryable: disk or database could not take it now; nothing is stored.
        HeimdallrError: whatever the body raised; nothing is stored.
    """
    accepted: list[Accepted] = []
    failed: list[StowFailed] = []
    try:
        with receiver.spool.staging() as staging:
            for body in _uninterrupted(bodies):
                one = _store_one(_uninterrupted(body), receiver, staging, intake_id, address, study_uid)
                if isinstance(one, Accepted):
                    accepted.append(one)
                else:
                    failed.append(one)
            if not accepted and not failed:
                raise EmptyInput("the request holds no object")
            already_there = receiver.commit_upload(accepted, notes(accepted)) if accepted else 0
    except _Interrupted as interrupted:
        raise interrupted.error from interrupted
    refused = Counter(item.code for item in failed)
    if refused:
        logger.warning("stow.refused", extra={"upload": intake_id, "codes": dict(refused)})
    study_uids = tuple(sorted({str(item.identity.study_uid) for item in accepted}))
    logger.info(
        "stow.stored",
        extra={"upload": intake_id, "accepted": len(accepted), "rejected": len(failed), "studies": len(study_uids)},
    )
    return StowOutcome(
        tuple(StowStored(item.identity.sop_class_uid, str(item.identity.sop_uid)) for item in accepted),
        tuple(failed),
        study_uids,
        already_there,
        sum(item.entry.size for item in accepted),
    )


def _uninterrupted(items: Iterable[Item]) -> Iterator[Item]:
    """`items`; what the source raises is told from what their use raises."""
    try:
        yield from items
    except HeimdallrError as error:
        raise _Interrupted(error) from error


def _store_one(
    body: Iterator[bytes],
    receiver: Receiver,
    staging: Staging,
    intake_id: str,
    address: str | None,
    study_uid: Uid | None,
) -> Accepted | StowFailed:
    head = _head(body)
    meta = part10.FileMeta(0, "")
    try:
        meta = part10.identify(head)
        if meta.sop_class_uid == part10.DICOMDIR_CLASS:
            raise NotDicom("a DICOMDIR is no instance")
        arrival = Arrival(
            intake_id=intake_id,
            door=Door.STOW,
            received_at=receiver.clock.now(),
            transfer_syntax_uid=meta.transfer_syntax_uid,
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            address=address,
            source_implementation=meta.implementation_class_uid,
        )
        one = receiver.accept(arrival, chain([head[meta.dataset_offset :]], body), staging=staging)
        identity = one.identity
        if study_uid is not None and (identity.study_uid_generated or identity.study_uid != study_uid):
            receiver.spool.remove(one.entry)
            meta = part10.FileMeta(
                0, meta.transfer_syntax_uid, identity.sop_class_uid or meta.sop_class_uid, str(identity.sop_uid)
            )
            raise StudyMismatch
    except Rejected as error:
        for _passed in body:
            pass
        sop_class, sop = Uid.parse_or_none(meta.sop_class_uid), Uid.parse_or_none(meta.sop_instance_uid)
        return StowFailed(sop_class or "", sop or "", error.code, error.dimse_status)
    return one


def _head(body: Iterator[bytes]) -> bytes:
    """The first HEAD_BYTES of `body` or a little more; all of it where it is shorter."""
    head = bytearray()
    while len(head) < part10.HEAD_BYTES:
        piece = next(body, None)
        if piece is None:
            break
        head += piece
    return bytes(head)
