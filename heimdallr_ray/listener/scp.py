"""The DICOM door: C-ECHO and C-STORE by pynetdicom, for every storage class and transfer syntax, bytes kept as sent.

Source: PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE), PS3.8 section 9.3 (association).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from heimdallr_ray.catalog.states import Door
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import BadSetting, HeimdallrError
from heimdallr_ray.ids import NewId, new_id
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.commitment import PUSH_MODEL, TRANSFER_SYNTAXES, Action, ActionStatus, CommitmentDesk
from heimdallr_ray.listener.gate import (
    ASSOCIATE_TIMEOUT_S,
    MAX_PDU_BYTES,
    NETWORK_TIMEOUT_S,
    PENDING_FACTOR,
    GatedServer,
    GateRules,
    Tally,
)
from heimdallr_ray.listener.receive import Receiver

logger = logging.getLogger(__name__)

VERIFICATION = "1.2.840.10008.1.1"
SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
BIND_RETRY_S = 0.5
_CHUNK_BYTES = 1 << 20


@dataclass
class OpenAssociation:
    """What is known of one association while it is open."""

    id: str
    calling_ae: str
    address: str
    opened_at: float
    study_uids: set[str] = field(default_factory=set[str])
    stored: int = 0
    refused: int = 0


class StoreScp:
    """The listening server. State here is only about what is open; everything that counts is on the disk."""

    def __init__(
        self,
        rules: GateRules,
        receiver: Receiver,
        clock: Clock,
        make_id: NewId = new_id,
        desk: CommitmentDesk | None = None,
    ) -> None:
        self._rules = rules
        self._desk = desk
        self._receiver = receiver
        self._clock = clock
        self._make_id = make_id
        self._lock = threading.Lock()
        self._open: dict[Association, OpenAssociation] = {}
        self._server: GatedServer | None = None
        self._thread: threading.Thread | None = None
        self.tally = Tally()

    # Life ------------------------------------------------------------------------------------------------------------

    def start(self, host: str, port: int, bind_timeout_s: float = 30.0) -> None:
        """The port answers.

        A socket of a killed predecessor may linger a moment, so a used address is tried again.

        Raises:
            BadSetting: the address cannot be bound, or is still in use after `bind_timeout_s`.
        """
        # Settings of the whole process, as pynetdicom has them: all storage classes, and no dump of messages to a log.
        _config.UNRESTRICTED_STORAGE_SERVICE = True
        _config.LOG_HANDLER_LEVEL = "none"
        entity = ApplicationEntity(self._rules.ae_title)
        entity.add_supported_context(VERIFICATION)
        if self._desk is not None:
            entity.add_supported_context(PUSH_MODEL, list(TRANSFER_SYNTAXES))
        entity.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = part10.IMPLEMENTATION_VERSION
        entity.maximum_pdu_size = MAX_PDU_BYTES
        entity.acse_timeout = ASSOCIATE_TIMEOUT_S
        entity.dimse_timeout = NETWORK_TIMEOUT_S
        entity.network_timeout = NETWORK_TIMEOUT_S
        # The same rules again inside pynetdicom, in case the handler below should ever fail.
        entity.require_called_aet = True
        entity.require_calling_aet = sorted(self._rules.calling_aes)
        entity.maximum_associations = PENDING_FACTOR * self._rules.max_associations
        deadline = self._clock.monotonic() + bind_timeout_s
        while True:
            try:
                self._server = self._bind(entity, host, port)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or self._clock.monotonic() > deadline:
                    raise BadSetting(f"cannot listen on dicom_host and dicom_port: {error.strerror}") from error
                time.sleep(BIND_RETRY_S)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="dicom-accept", daemon=True
        )
        self._thread.start()
        logger.info("listener.open", extra={"host": host, "port": self.port, "ae_title": self._rules.ae_title})

    def _bind(self, entity: ApplicationEntity, host: str, port: int) -> GatedServer:
        server = cast(Any, entity).make_server(
            (host, port),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_RELEASED, self._on_closed, ["released"]),
                (evt.EVT_ABORTED, self._on_closed, ["aborted"]),
                (evt.EVT_CONN_CLOSE, self._on_closed, ["connection closed"]),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_N_ACTION, self._on_action),
            ],
            server_class=GatedServer,
            rules=self._rules,
            tally=self.tally,
        )
        gated = cast(GatedServer, server)
        cast(Any, entity)._servers.append(gated)
        return gated

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while closed."""
        return int(self._server.server_address[1]) if self._server else 0

    @property
    def alive(self) -> bool:
        """True while connections are accepted."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, grace_s: float = 5.0) -> None:
        """No new connection is accepted; open associations get `grace_s` to end, then they are aborted."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        deadline = self._clock.monotonic() + grace_s
        while self.open_associations() and self._clock.monotonic() < deadline:
            time.sleep(0.05)
        for association in list(server.active_associations):
            association.abort()
        if self._thread is not None:
            self._thread.join(grace_s)
        logger.info("listener.closed")

    # What is open ----------------------------------------------------------------------------------------------------

    def open_associations(self) -> tuple[OpenAssociation, ...]:
        """Associations that are open now."""
        with self._lock:
            for association in [item for item in self._open if not item.is_alive()]:
                del self._open[association]
            return tuple(self._open.values())

    def busy_study_uids(self) -> frozenset[str]:
        """Studies to which an association has sent that is still open."""
        with self._lock:
            return frozenset(uid for item, known in self._open.items() if item.is_alive() for uid in known.study_uids)

    # Events ----------------------------------------------------------------------------------------------------------

    def _on_requested(self, event: Event) -> None:
        association = event.assoc
        request = cast(Any, association.requestor.primitive)
        address = _address(association)
        calling_ae, called_ae = str(request.calling_ae_title), str(request.called_ae_title)
        refusal = self._rules.refusal(called_ae, calling_ae, len(self.open_associations()), has_room=self._has_room())
        if refusal is not None:
            self.tally.add(f"rejected.{refusal.reason}")
            logger.warning(
                "association.rejected",
                extra={
                    "reason": refusal.reason,
                    "address": address,
                    "calling_ae": calling_ae.strip(),
                    "called_ae": called_ae.strip(),
                },
            )
            association.acse.send_reject(refusal.result, refusal.source, refusal.diagnostic)
            association.kill()
            return
        opened = OpenAssociation(self._make_id(), calling_ae.strip()[:16], address, self._clock.monotonic())
        with self._lock:
            self._open[association] = opened
        self.tally.add("associations")
        logger.info(
            "association.opened",
            extra={"association": opened.id, "address": address, "calling_ae": opened.calling_ae},
        )

    def _on_closed(self, event: Event, how: str) -> None:
        with self._lock:
            opened = self._open.pop(event.assoc, None)
        if opened is not None:
            logger.info(
                "association.closed",
                extra={
                    "association": opened.id,
                    "how": how,
                    "stored": opened.stored,
                    "refused": opened.refused,
                    "seconds": round(self._clock.monotonic() - opened.opened_at, 3),
                },
            )

    def _on_echo(self, _event: Event) -> int:
        self.tally.add("echo")
        return SUCCESS

    def _on_store(self, event: Event) -> int:
        with self._lock:
            opened = self._open.get(event.assoc)
        if opened is None:
            # The peer has gone between its last byte and now; nobody would hear Success.
            return HeimdallrError.dimse_status
        if str(event.context.abstract_syntax) == VERIFICATION:
            return SOP_CLASS_NOT_SUPPORTED
        try:
            self._store(event, opened)
        except HeimdallrError as error:
            opened.refused += 1
            self.tally.add(f"store.{error.code}")
            logger.warning(
                "store.refused",
                extra={
                    "association": opened.id,
                    "code": error.code,
                    "reason": error.detail,
                    "status": f"0x{error.dimse_status:04X}",
                },
            )
            return error.dimse_status
        opened.stored += 1
        self.tally.add("stored")
        return SUCCESS

    def _store(self, event: Event, opened: OpenAssociation) -> None:
        request = cast(Any, event.request)
        dataset = cast("BytesIO | None", request.DataSet) or BytesIO()
        with dataset.getbuffer() as view:
            accepted = self._receiver.accept(
                Arrival(
                    intake_id=opened.id,
                    door=Door.DICOM,
                    received_at=self._clock.now(),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    sop_class_uid=str(request.AffectedSOPClassUID or ""),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
                    calling_ae=opened.calling_ae or None,
                    address=opened.address,
                ),
                _chunks(view),
                expected_size=len(view),
            )
        opened.study_uids.add(str(accepted.identity.study_uid))
        self._receiver.enqueue(accepted)
        self.tally.add("bytes", accepted.entry.size)

    def _on_action(self, event: Event) -> tuple[int, None]:
        with self._lock:
            opened = self._open.get(event.assoc)
        if opened is None or self._desk is None:
            return ActionStatus.PROCESSING_FAILURE, None
        request = cast(Any, event.request)
        information = cast("BytesIO | None", request.ActionInformation) or BytesIO()
        action = Action(
            str(request.RequestedSOPClassUID or ""),
            str(request.RequestedSOPInstanceUID or ""),
            int(request.ActionTypeID),
        )
        syntax = str(event.context.transfer_syntax)
        status = self._desk.ask(
            information.getvalue(), syntax, opened.calling_ae, opened.address or None, opened.id, action
        )
        self.tally.add("commitment.asked" if status == ActionStatus.SUCCESS else "commitment.refused")
        return status, None

    def _has_room(self) -> bool:
        try:
            self._receiver.spool.require_room()
        except HeimdallrError:
            return False
        return True


def _address(association: Association) -> str:
    info = association.requestor.address_info
    return str(info.address) if info else ""


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), _CHUNK_BYTES):
        with view[start : start + _CHUNK_BYTES] as part:
            yield part
