"""What the tests of storage commitment share: requests as bytes, and a peer that takes reports."""

from __future__ import annotations

import ssl
import struct
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,  # pyright: ignore[reportAttributeAccessIssue]
    StorageCommitmentPushModelInstance,
)
from sqlmodel import col, select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import CommitmentRow
from heimdallr_ray.clients.dimse import Entity
from tests.support.intake import Intake

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
PEER_AE = "SENDER"


def implicit(tag: int, value: bytes, length: int | None = None) -> bytes:
    """One element in Implicit VR Little Endian; a wrong `length` on request."""
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value) if length is None else length) + value


def explicit(tag: int, vr: bytes, value: bytes) -> bytes:
    """One element in Explicit VR Little Endian."""
    if vr in (b"SQ", b"UN", b"OB"):
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def uid(text: str) -> bytes:
    """A UID of even length (PS3.5 section 9.1)."""
    content = text.encode()
    return content + b"\0" * (len(content) % 2)


def reference(sop_instance: str, sop_class: str = CT) -> bytes:
    """One item of the Referenced SOP Sequence, implicit."""
    return implicit(0xFFFEE000, implicit(0x00081150, uid(sop_class)) + implicit(0x00081155, uid(sop_instance)))


def request(transaction_uid: str, references: Iterable[tuple[str, str]]) -> bytes:
    """Action Information in Implicit VR Little Endian; `references` are class and instance."""
    items = b"".join(reference(instance, sop_class) for sop_class, instance in references)
    return implicit(0x00081195, uid(transaction_uid)) + implicit(0x00081199, items)


def request_dataset(transaction_uid: str, references: Iterable[tuple[str, str]]) -> Dataset:
    """The same for pynetdicom."""
    dataset = Dataset()
    dataset.TransactionUID = transaction_uid
    dataset.ReferencedSOPSequence = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        dataset.ReferencedSOPSequence.append(item)
    return dataset


def ask(port: int, dataset: Dataset, *, calling: str = PEER_AE, called: str = "HEIMDALLR", **changes: Any) -> int:
    """The status of an N-ACTION sent with pynetdicom; `changes` are action_type and instance_uid."""
    entity = Entity(calling)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        entity.told.close()
        raise ConnectionError("no association")
    try:
        status, _ = association.send_n_action(
            dataset,
            changes.get("action_type", 1),
            StorageCommitmentPushModel,
            changes.get("instance_uid", StorageCommitmentPushModelInstance),
        )
    finally:
        if association.is_established:
            association.release()
        entity.told.close()
    if "Status" not in status:
        raise ConnectionError("no answer")
    return int(status.Status)


def report_information(
    transaction_uid: str, committed: Iterable[Dataset], failed: Iterable[tuple[Dataset, int]]
) -> Dataset:
    """Event Information of a report; `committed` and `failed` are references, as a request has them."""
    dataset, failures = Dataset(), list[Dataset]()
    dataset.TransactionUID = transaction_uid
    for reference_, reason in failed:
        item = Dataset()
        item.ReferencedSOPClassUID = reference_.ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = reference_.ReferencedSOPInstanceUID
        item.FailureReason = reason
        failures.append(item)
    if kept := list(committed):
        dataset.ReferencedSOPSequence = kept
    if failures:
        dataset.FailedSOPSequence = failures
    return dataset


def tell(port: int, called: str, information: Dataset) -> int | None:
    """The status of an N-EVENT-REPORT on an association of its own; None where the association is rejected."""
    entity = Entity("PROVIDER")
    entity.add_requested_context(StorageCommitmentPushModel)
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    association = entity.associate("127.0.0.1", port, ae_title=called, ext_neg=[role])
    if not association.is_established:
        entity.told.close()
        return None
    try:
        status, _ = association.send_n_event_report(
            information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    finally:
        if association.is_established:
            association.release()
        entity.told.close()
    return int(status.Status)


class Told:
    """One report as a peer has received it."""

    def __init__(self, event_type: int, dataset: Dataset, calling: str) -> None:
        self.event_type = event_type
        self.calling = calling
        self.transaction_uid = str(dataset.TransactionUID)
        self.committed = [str(item.ReferencedSOPInstanceUID) for item in dataset.get("ReferencedSOPSequence", [])]
        self.failed = {
            str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in dataset.get("FailedSOPSequence", [])
        }


class ReportPeer:
    """Takes reports on a port of its own; `answer` gives the status of each, `role` whether it answers the role."""

    def __init__(
        self,
        ae_title: str = PEER_AE,
        *,
        answer: Callable[[Told], int] = lambda _: 0,
        role: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tls = tls
        self.ae_title = ae_title
        self.told: list[Told] = []
        self.answer = answer
        self.role = role
        self.associations = 0
        self.most_at_once = 0
        self._open = 0
        self._lock = threading.Lock()
        self._server: Any = None
        self.port = 0

    def start(self, port: int = 0) -> None:
        _config.LOG_HANDLER_LEVEL = "none"
        entity = AE(self.ae_title)
        entity.require_called_aet = True
        if self.role:
            entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        else:
            entity.add_supported_context(StorageCommitmentPushModel)
        handlers: list[Any] = [
            (evt.EVT_N_EVENT_REPORT, self._on_report),
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]
        self._server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=self.tls
        )
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _on_accepted(self, _event: evt.Event) -> None:
        with self._lock:
            self.associations += 1
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)

    def _on_closed(self, _event: evt.Event) -> None:
        with self._lock:
            self._open -= 1

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        told = Told(
            int(cast(Any, event.request).EventTypeID),
            event.event_information,
            str(event.assoc.requestor.ae_title).strip(),
        )
        status = self.answer(told)
        with self._lock:
            self.told.append(told)
        return status, None


@contextmanager
def report_peer(ae_title: str = PEER_AE, **options: Any) -> Generator[ReportPeer]:
    """A peer that listens."""
    peer = ReportPeer(ae_title, **options)
    peer.start()
    try:
        yield peer
    finally:
        peer.stop()


def rows(database: Database) -> Sequence[CommitmentRow]:
    with database.read() as session:
        return session.exec(select(CommitmentRow).order_by(col(CommitmentRow.first_asked_at))).all()


__all__ = ["CT", "EXPLICIT", "IMPLICIT", "MR", "PEER_AE", "ReportPeer", "Told", "ask", "build_role", "report_peer"]


def flip_a_bit(intake: Intake, sop_uid: str) -> None:
    """One bit in the middle of the blob of the instance has changed on the disk."""
    blob = next(row.blob_sha256 for row in intake.instances() if row.sop_uid == sop_uid)
    path = intake.blobs.path(blob)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(content)
