"""Tells a peer what became of its request: N-EVENT-REPORT on an association of our own, as provider of the service.

Source: PS3.4 section J.3.3 (events 1 and 2), PS3.7 section 10.1.1 (N-EVENT-REPORT), D.3.3.4 (role selection). The
association goes to the configured address of the peer, never to where a request came from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from ssl import SSLContext
from typing import Any, Final, Protocol, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import build_context, build_role

from heimdallr_ray.catalog.commitments import Failure, Reference
from heimdallr_ray.config import Peer, Settings
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.action import PUSH_MODEL, PUSH_MODEL_INSTANCE, TRANSFER_SYNTAXES
from heimdallr_ray.listener.connecting import CONNECT_TIMEOUT_S, Entity, Told, failure_of
from heimdallr_ray.listener.reactor import at_rest
from heimdallr_ray.listener.wire.tls import client_context

ASSOCIATE_TIMEOUT_S: Final = 15.0
ANSWER_TIMEOUT_S: Final = 60.0
"""Some archives write each instance of the report to their database before they answer."""
REST_TIMEOUT_S: Final = 10.0
"""pynetdicom's own thread comes to rest within milliseconds, or has ended."""
RELEASE_TIMEOUT_S: Final = 10.0
LONGEST_S: Final = CONNECT_TIMEOUT_S + ASSOCIATE_TIMEOUT_S + REST_TIMEOUT_S + ANSWER_TIMEOUT_S + RELEASE_TIMEOUT_S
MAX_PDU_BYTES: Final = 131_072


class EventType(IntEnum):
    """Event Type ID of a report (PS3.4 table J.3-2)."""

    ALL_COMMITTED = 1
    FAILURES_EXIST = 2


class FailureReason(IntEnum):
    """Failure Reason (0008,1197) of a reference (PS3.3 section C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


FAILURE_MEANINGS: Final[Mapping[FailureReason, str]] = {
    FailureReason.PROCESSING_FAILURE: "the instance was received, but its bytes on the disk are damaged, gone, or "
    "cannot be read",
    FailureReason.NO_SUCH_INSTANCE: "no instance with this SOP Instance UID is in the catalog",
    FailureReason.CLASS_INSTANCE_CONFLICT: "the instance has another SOP Class than the reference says",
}
"""What each reason says; the conformance statement shows this table."""


class Delivery(StrEnum):
    """How an attempt to tell a peer ended."""

    TOLD = "told"
    """The peer answered with Success or a warning."""
    REFUSED = "refused"
    """The peer answered with a failure."""
    UNREACHABLE = "unreachable"
    REJECTED = "association_rejected"
    NOT_NEGOTIATED = "not_negotiated"
    """The peer does not accept the SOP class, or not that we provide it."""
    NO_ANSWER = "no_answer"


@dataclass(frozen=True)
class DeliveryOutcome:
    """How an attempt ended; `status` is the peer's N-EVENT-REPORT response where there was one."""

    delivery: Delivery
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What a peer is told: `failures` name positions in `references`."""

    transaction_uid: str
    references: tuple[Reference, ...]
    failures: tuple[Failure, ...]

    @property
    def event_type(self) -> EventType:
        """Whether all references are committed."""
        return EventType.FAILURES_EXIST if self.failures else EventType.ALL_COMMITTED


class SendReport(Protocol):
    """Tells a peer; every wait is bounded by `LONGEST_S` in all."""

    def __call__(self, peer: Peer, report: Report) -> DeliveryOutcome:
        """How it ended; nothing is raised for what a peer does."""
        ...


def event_information(report: Report) -> Dataset:
    """Event Information of the report (PS3.4 table J.3-2): each reference of the request is in one sequence."""
    failed = dict(report.failures)
    dataset = Dataset()
    dataset.TransactionUID = report.transaction_uid
    committed = [_item(one) for number, one in enumerate(report.references) if number not in failed]
    if committed:
        dataset.ReferencedSOPSequence = committed
    if failed:
        dataset.FailedSOPSequence = [_item(report.references[number], reason) for number, reason in failed.items()]
    return dataset


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = int(reason)
    return item


class ReportSender:
    """A `SendReport` over pynetdicom: one association for each report."""

    def __init__(self, ae_title: str, tls: Callable[[], SSLContext] | None = None) -> None:
        """Reports come from `ae_title`; `tls` makes the context for peers that want it."""
        self._ae_title = ae_title.strip()
        self._tls = tls

    @classmethod
    def of(cls, settings: Settings) -> ReportSender:
        """With our AE title, and the certificates of `settings` for peers that want TLS."""
        authorities = settings.dicom_tls_ca
        if authorities is None:
            return cls(settings.ae_title)
        certificate, key = settings.dicom_tls_certificate, settings.dicom_tls_key
        return cls(settings.ae_title, lambda: client_context(certificate, key, authorities))

    def __call__(self, peer: Peer, report: Report) -> DeliveryOutcome:
        """How the attempt ended. Takes at most `LONGEST_S`."""
        if peer.tls and self._tls is None:
            return DeliveryOutcome(Delivery.UNREACHABLE, detail="the peer wants TLS: set dicom_tls_ca")
        try:
            association, told = self._associate(peer)
        except BadSetting as error:
            return DeliveryOutcome(Delivery.UNREACHABLE, detail=error.detail)
        if not association.is_established:
            told.close()
            return _not_established(association, told, peer)
        try:
            if not association.accepted_contexts:
                return DeliveryOutcome(Delivery.NOT_NEGOTIATED, detail="the peer does not accept the SOP class")
            with at_rest(association, REST_TIMEOUT_S) as resting:
                if not resting:
                    return DeliveryOutcome(Delivery.NO_ANSWER, detail="the association ended before the report")
                # Many devices answer no role selection and take the report all the same; so it is not asked for here.
                status, _ = cast(Any, association).send_n_event_report(
                    event_information(report), int(report.event_type), UID(PUSH_MODEL), UID(PUSH_MODEL_INSTANCE)
                )
        except (RuntimeError, ValueError) as error:
            # The association ended between two lines; ValueError: no accepted context.
            return DeliveryOutcome(Delivery.NO_ANSWER, detail=str(error)[:200])
        finally:
            _end(association)
        return _judge(cast("int | None", getattr(status, "Status", None)))

    def _associate(self, peer: Peer) -> tuple[Association, Told]:
        entity = Entity(self._ae_title)
        entity.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = part10.IMPLEMENTATION_VERSION
        entity.connection_timeout = CONNECT_TIMEOUT_S
        entity.acse_timeout = ASSOCIATE_TIMEOUT_S
        entity.dimse_timeout = ANSWER_TIMEOUT_S
        entity.network_timeout = ANSWER_TIMEOUT_S
        association = cast(Any, entity).associate(
            peer.host,
            peer.port,
            contexts=[build_context(UID(PUSH_MODEL), [UID(syntax) for syntax in TRANSFER_SYNTAXES])],
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU_BYTES,
            ext_neg=[build_role(UID(PUSH_MODEL), scu_role=False, scp_role=True)],
            tls_args=(self._tls(), peer.host) if peer.tls and self._tls is not None else None,
        )
        return cast(Association, association), entity.told


def _not_established(association: Association, told: Told, peer: Peer) -> DeliveryOutcome:
    if association.is_rejected:
        primitive = cast(Any, association.acceptor.primitive)
        detail = f"result {primitive.result}, source {primitive.result_source}, reason {primitive.diagnostic}"
        return DeliveryOutcome(Delivery.REJECTED, detail=f"{peer.host}:{peer.port} rejects the association: {detail}")
    if association.rejected_contexts:
        return DeliveryOutcome(Delivery.NOT_NEGOTIATED, detail="the peer does not accept the SOP class, or our role")
    detail = f"{peer.host}:{peer.port} {failure_of(told).words}"
    return DeliveryOutcome(Delivery.UNREACHABLE, detail=detail)


def _judge(status: int | None) -> DeliveryOutcome:
    if status is None:
        return DeliveryOutcome(Delivery.NO_ANSWER, detail="no answer to the report, or one that cannot be read")
    warning = status in (0x0001, 0x0107, 0x0116) or status & 0xF000 == 0xB000
    if status == 0x0000 or warning:
        detail = f"answered with warning 0x{status:04X}" if warning else ""
        return DeliveryOutcome(Delivery.TOLD, status, detail)
    return DeliveryOutcome(Delivery.REFUSED, status, f"the peer answered the report with 0x{status:04X}")


def _end(association: Association) -> None:
    """The association is over, by release where the peer still listens, otherwise by abort."""
    if association.is_established:
        association.acse_timeout = RELEASE_TIMEOUT_S
        association.release()
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while association.is_alive() and time.monotonic() < deadline:
        if not association.is_established and not association.is_released:
            association.abort()
        time.sleep(0.02)


def failures_of(reasons: Sequence[FailureReason | None]) -> tuple[Failure, ...]:
    """The references that have a reason, by position."""
    return tuple(Failure(number, int(reason)) for number, reason in enumerate(reasons) if reason is not None)
