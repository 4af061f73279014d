"""C-STORE client: a folder of DICOM files to any storage SCP, each data set sent with the bytes it has on disk.

Source: PS3.4 annex B (Storage SCU), PS3.7 section 9.1.1, PS3.8 annex D.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from ssl import SSLContext
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context
from pynetdicom.transport import AddressInformation, AssociationSocket

from heimdallr_ray.clients.files import Outgoing, SkippedFile, select
from heimdallr_ray.errors import BadSetting, NotReady
from heimdallr_ray.listener.transport import PromptSocket

logger = logging.getLogger(__name__)

MAX_CONTEXTS = 128
"""Presentation context ids are the odd numbers of one byte (PS3.8 9.3.2.2)."""
MAX_PDU_BYTES = 131_072
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0
PAUSE_FIRST_S = 0.25
PAUSE_LAST_S = 2.0
DEFAULT_ATTEMPTS = 5
_NOT_SENT = 0x0122
"""SOP class not supported (PS3.7 C.5.6): our code for a file whose context the peer did not accept."""

_REASONS = (
    (0xFFFF, 0x0122, "the peer does not take this SOP class"),
    (0xFFFF, 0x0124, "the peer does not allow it"),
    (0xFF00, 0xA700, "the peer has no resources"),
    (0xFF00, 0xA900, "the peer says that the data set does not match its SOP class"),
    (0xF000, 0xC000, "the peer cannot understand the object"),
)
"""Mask, status under it, words."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FileStatus:
    """The answer to one file: DIMSE status, or None where none came."""

    path: str
    sop_uid: str
    status: int | None
    reason: str = ""

    @property
    def acknowledged(self) -> bool:
        """True for Success and the Warning range (PS3.4 table B.2-1): the peer has the object."""
        return self.status is not None and (self.status == 0x0000 or self.status & 0xF000 == 0xB000)


@dataclass(frozen=True)
class SendReport:
    """What became of every file."""

    files: tuple[FileStatus, ...]
    skipped: int
    """Files that are no DICOM objects, and DICOMDIRs."""
    associations: int
    bytes_sent: int
    seconds: float
    skipped_files: tuple[SkippedFile, ...] = ()
    """The first of them, each with its reason."""
    study_uids: tuple[str, ...] = ()
    """StudyInstanceUIDs of which the peer has at least one object."""
    without_study_uid: int = 0
    """Objects that the peer has and that name no study; it gives them one."""

    @property
    def sent(self) -> int:
        """Files that the peer has."""
        return sum(item.acknowledged for item in self.files)

    @property
    def failed(self) -> int:
        """Files that the peer refused or never answered."""
        return len(self.files) - self.sent

    @property
    def acknowledged(self) -> tuple[str, ...]:
        """SOP Instance UIDs that the peer has."""
        return tuple(item.sop_uid for item in self.files if item.acknowledged)

    def as_json(self) -> dict[str, Any]:
        """The report for a program; of the files only those that failed."""
        return {
            "sent": self.sent,
            "failed": self.failed,
            "skipped": self.skipped,
            "associations": self.associations,
            "bytes": self.bytes_sent,
            "seconds": round(self.seconds, 3),
            "study_uids": list(self.study_uids),
            "without_study_uid": self.without_study_uid,
            "skipped_files": [asdict(item) for item in self.skipped_files],
            "failures": [asdict(item) for item in self.files if not item.acknowledged],
        }


@dataclass
class _Tally:
    answers: dict[Path, FileStatus] = field(default_factory=dict[Path, FileStatus])
    associations: int = 0
    bytes_sent: int = 0


def reason_of(status: int) -> str:
    """A failure status in words; empty for Success and warnings. Source: PS3.4 table B.2-1, PS3.7 annex C."""
    if status == 0x0000 or status & 0xF000 == 0xB000:
        return ""
    words = next((text for mask, value, text in _REASONS if status & mask == value), "the peer refuses it")
    return f"{words} (status 0x{status:04X})"


def send_folder(
    path: Path,
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str = "HEIMDALLR_SCU",
    on_progress: Progress | None = None,
    attempts: int = DEFAULT_ATTEMPTS,
) -> SendReport:
    """Every DICOM object at or below `path` has been offered to the peer.

    Data sets are sent as they lie on the disk, in the transfer syntax they have; nothing is re-encoded. An association
    that breaks is tried again, up to `attempts` times in a row without progress; what was answered is not sent twice.

    Args:
        path: a folder, searched recursively, or one file.
        host: the peer's address.
        port: the peer's port.
        called_ae: the peer's AE title.
        calling_ae: our AE title.
        on_progress: called with files done and files in all.
        attempts: associations in a row that may fail without one file being acknowledged.

    Raises:
        EmptyInput: nothing at `path` is a DICOM object.
        BadSetting: an AE title is not one, or the peer rejects the association for good.
        NotReady: the peer could not be reached, or went away, `attempts` times in a row.
    """
    selection = select(path)
    outgoing = selection.outgoing
    started = time.monotonic()
    tally = _Tally()
    for batch in _batches(outgoing):
        _send_batch(batch, host, port, called_ae, calling_ae, attempts, tally, on_progress, len(outgoing))
    there = [item.study_uid for item in outgoing if tally.answers[item.path].acknowledged]
    return SendReport(
        files=tuple(tally.answers[item.path] for item in outgoing),
        skipped=selection.skipped,
        associations=tally.associations,
        bytes_sent=tally.bytes_sent,
        seconds=time.monotonic() - started,
        skipped_files=selection.named,
        study_uids=tuple(sorted({uid for uid in there if uid})),
        without_study_uid=there.count(""),
    )


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """The files in order, cut where one association would need more than MAX_CONTEXTS contexts."""
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for item in outgoing:
        if item.context not in contexts and len(contexts) == MAX_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        contexts.add(item.context)
        batch.append(item)
    yield batch


def _send_batch(
    batch: Sequence[Outgoing],
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str,
    attempts: int,
    tally: _Tally,
    on_progress: Progress | None,
    total: int,
) -> None:
    waiting = list(batch)
    failures = 0
    pause_s = PAUSE_FIRST_S
    while waiting:
        before = len(waiting)
        association = _associate(waiting, host, port, called_ae, calling_ae)
        if association is not None:
            tally.associations += 1
            try:
                _send_over(association, waiting, tally, on_progress, total)
            finally:
                _end(association)
            waiting = [item for item in waiting if item.path not in tally.answers]
        if len(waiting) < before:
            failures, pause_s = 0, PAUSE_FIRST_S
        else:
            failures += 1
        if waiting:
            if failures >= attempts:
                raise NotReady(
                    f"{host}:{port} does not take images; {len(waiting)} {'is' if len(waiting) == 1 else 'are'} left"
                )
            logger.warning("send.again", extra={"left": len(waiting), "failures": failures})
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LAST_S)


class _Entity(ApplicationEntity):
    """Associates over a PromptSocket."""

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[SSLContext, str] | None
    ) -> AssociationSocket:
        created = PromptSocket(assoc, address=address)
        created.tls_args = tls_args
        return created


def _associate(
    waiting: Sequence[Outgoing], host: str, port: int, called_ae: str, calling_ae: str
) -> Association | None:
    """An association with all contexts the files need, or None where the peer is not there now.

    Raises:
        BadSetting: the peer rejects us permanently, or an AE title is malformed.
    """
    try:
        entity = _Entity(calling_ae)
        entity.connection_timeout = CONNECT_TIMEOUT_S
        entity.acse_timeout = CONNECT_TIMEOUT_S
        entity.dimse_timeout = ANSWER_TIMEOUT_S
        entity.network_timeout = ANSWER_TIMEOUT_S
        contexts = [
            build_context(UID(sop_class), [UID(syntax)])
            for sop_class, syntax in sorted({item.context for item in waiting})
        ]
        association = cast(Any, entity).associate(
            host,
            port,
            contexts=contexts,
            ae_title=called_ae,
            max_pdu=MAX_PDU_BYTES,
        )
    except (ValueError, TypeError) as error:
        raise BadSetting(f"AE title or address: {error}") from error
    association = cast(Association, association)
    if association.is_established:
        return association
    rejection = cast(Any, association.acceptor.primitive) if association.is_rejected else None
    if rejection is not None and rejection.result == 0x01:
        reason = {0x03: "calling AE title not recognised", 0x07: "called AE title not recognised"}.get(
            int(rejection.diagnostic), "rejected"
        )
        raise BadSetting(f"{host}:{port} rejects the association: {reason}")
    return None


def _end(association: Association) -> None:
    if association.is_established:
        association.release()
    else:
        association.abort()


def _send_over(
    association: Association,
    waiting: Sequence[Outgoing],
    tally: _Tally,
    on_progress: Progress | None,
    total: int,
) -> None:
    """Files are sent until the last or until the association breaks; what was answered stands in `tally`."""
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0])): int(cast(int, context.context_id))
        for context in association.accepted_contexts
    }
    for number, item in enumerate(waiting, start=1):
        if not association.is_established:
            return
        context_id = accepted.get(item.context)
        if context_id is None:
            status: int | None = _NOT_SENT
            reason = "the peer does not accept this SOP class in this transfer syntax"
        else:
            status, reason = _store(association, item, context_id, number), ""
        if status is None:
            return
        reason = reason or reason_of(status)
        tally.answers[item.path] = FileStatus(str(item.path), item.sop_uid, status, reason)
        if status == 0x0000:
            tally.bytes_sent += item.path.stat().st_size - item.dataset_offset
        if on_progress is not None:
            on_progress(len(tally.answers), total)


def _store(association: Association, item: Outgoing, context_id: int, number: int) -> int | None:
    """The peer's status, or None where no answer came. The data set is streamed from the file as it is."""
    content = item.path.read_bytes()
    request = C_STORE()
    request.MessageID = number % 65_535 + 1
    request.AffectedSOPClassUID = item.sop_class_uid
    request.AffectedSOPInstanceUID = item.sop_uid
    request.Priority = 0x02
    request.DataSet = BytesIO(content[item.dataset_offset :])
    # pynetdicom's own send_c_store decodes and encodes the data set again, so the message goes through its DIMSE
    # provider directly, in the way send_c_store does it.
    provider = cast(Any, association)
    provider._reactor_checkpoint.clear()
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while not provider._is_paused:
        if not association.is_established or time.monotonic() > deadline:
            provider._reactor_checkpoint.set()
            return None
        time.sleep(0.0005)
    try:
        provider.dimse.send_msg(request, context_id)
        _, answer = provider.dimse.get_msg(block=True)
    finally:
        provider._reactor_checkpoint.set()
    if answer is None or not answer.is_valid_response:
        association.abort()
        return None
    return int(answer.Status)
