"""The reference backend: C-ECHO and C-STORE by pynetdicom, every data set held whole, bytes kept as sent.

Source: PS3.4 annex B (Storage Service Class), PS3.7 section 9.1.1 (C-STORE), PS3.8 section 9.3 (association).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any, cast

from pynetdicom import _config, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import Event

from heimdallr_ray.catalog.states import How
from heimdallr_ray.errors import BadSetting, HeimdallrError
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.action import PUSH_MODEL, TRANSFER_SYNTAXES, Action, ActionStatus
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.contexts import VERIFICATION, is_storage, transfer_syntax_for
from heimdallr_ray.listener.gate import (
    ASSOCIATE_TIMEOUT_S,
    MAX_PDU_BYTES,
    NETWORK_TIMEOUT_S,
    PENDING_FACTOR,
    Refusal,
)
from heimdallr_ray.listener.guarded import GatedServer
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.transport import quote_nobody

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
BIND_RETRY_S = 0.5
TURN_S = 20.0
"""A server whose loop has not turned for so long is stuck."""
_CHUNK_BYTES = 1 << 20


class StoreScp:
    """The listening server. State here is only about what is open; everything that counts is on the disk."""

    def __init__(self, registry: Registry, *, desk: CommitmentDesk | None = None) -> None:
        """`desk`: where storage commitment is asked for; None: it is not offered."""
        self.registry = registry
        self._desk = desk
        self._clock = registry.clock
        self._lock = threading.Lock()
        self._open: dict[Association, OpenAssociation] = {}
        self._server: GatedServer | None = None
        self._thread: threading.Thread | None = None

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
        quote_nobody()
        rules = self.registry.rules
        entity = ApplicationEntity(rules.ae_title)
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
        entity.require_calling_aet = sorted(rules.calling_aes)
        entity.maximum_associations = PENDING_FACTOR * rules.max_associations
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
        logger.info("listener.open", extra={"host": host, "port": self.port, "ae_title": rules.ae_title})

    def _bind(self, entity: ApplicationEntity, host: str, port: int) -> GatedServer:
        server = cast(Any, entity).make_server(
            (host, port),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._on_requested),
                (evt.EVT_RELEASED, self._on_closed, [How.RELEASED, ""]),
                (evt.EVT_ABORTED, self._on_closed, [How.ABORTED, "aborted"]),
                (evt.EVT_CONN_CLOSE, self._on_closed, [How.ABORTED, "connection closed"]),
                (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_N_ACTION, self._on_action),
            ],
            server_class=GatedServer,
            registry=self.registry,
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
        return not self.trouble

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty where nothing is."""
        server = self._server
        if server is None or self._thread is None or not self._thread.is_alive():
            return "the thread that accepts connections has ended"
        silent_s = time.monotonic() - server.turned_s
        return f"no connection could be accepted for {silent_s:.0f} s" if silent_s > TURN_S else ""

    def sync(self, timeout_s: float) -> bool:
        """True: the registry is in this process."""
        return True

    def stop(self, grace_s: float = 5.0) -> None:
        """No new connection is accepted; open associations get `grace_s` to end, then they are aborted."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        deadline = self._clock.monotonic() + grace_s
        while self._still_open() and self._clock.monotonic() < deadline:
            time.sleep(0.05)
        for association in list(server.active_associations):
            association.abort()
        if self._thread is not None:
            self._thread.join(grace_s)
        logger.info("listener.closed")

    def _still_open(self) -> bool:
        with self._lock:
            dead = [(item, known) for item, known in self._open.items() if not item.is_alive()]
            for association, _ in dead:
                del self._open[association]
            left = bool(self._open)
        for _, known in dead:
            self.registry.close(known, How.ABORTED, "connection closed")
        return left

    # Events ----------------------------------------------------------------------------------------------------------

    def _on_requested(self, event: Event) -> None:
        self._still_open()
        association = event.assoc
        request = cast(Any, association.requestor.primitive)
        _prefer_plain(request)
        opened = self.registry.request(
            str(request.called_ae_title).strip(),
            str(request.calling_ae_title).strip(),
            _address(association),
            str(request.implementation_class_uid or ""),
        )
        if isinstance(opened, Refusal):
            association.acse.send_reject(opened.result, opened.source, opened.diagnostic)
            association.kill()
            return
        with self._lock:
            self._open[association] = opened

    def _on_closed(self, event: Event, how: How, reason: str) -> None:
        with self._lock:
            opened = self._open.pop(event.assoc, None)
        if opened is not None:
            self.registry.close(opened, how, reason)

    def _on_echo(self, _event: Event) -> int:
        self.registry.tally.add("echo")
        return SUCCESS

    def _on_store(self, event: Event) -> int:
        began_s = self._clock.monotonic()
        with self._lock:
            opened = self._open.get(event.assoc)
        if opened is None:
            # The peer has gone between its last byte and now; nobody would hear Success.
            return HeimdallrError.dimse_status
        if not is_storage(str(event.context.abstract_syntax)):
            self.registry.count_refusal("store.sop_class")
            return SOP_CLASS_NOT_SUPPORTED
        request = cast(Any, event.request)
        dataset = cast("BytesIO | None", request.DataSet) or BytesIO()
        arrival = opened.arrival(
            self._clock.now(),
            str(event.context.transfer_syntax),
            str(request.AffectedSOPClassUID or ""),
            str(request.AffectedSOPInstanceUID or ""),
        )
        try:
            with dataset.getbuffer() as view:
                accepted = self.registry.receiver.accept(arrival, _chunks(view), expected_size=len(view))
        except HeimdallrError as error:
            return self.registry.store_refused(opened, error)
        self.registry.stored(opened, accepted, self._clock.monotonic() - began_s)
        return SUCCESS

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
        return self.registry.ask(self._desk, opened, information.getvalue(), syntax, action), None


def _prefer_plain(request: Any) -> None:  # noqa: ANN401
    """Puts our choice of transfer syntax first: that is the one which pynetdicom accepts for a storage context."""
    for context in request.presentation_context_definition_list:
        offered = [str(syntax) for syntax in context.transfer_syntax]
        chosen = transfer_syntax_for(str(context.abstract_syntax), offered)
        if chosen:
            context.transfer_syntax = [chosen, *(syntax for syntax in offered if syntax != chosen)]


def _address(association: Association) -> str:
    info = association.requestor.address_info
    return str(info.address) if info else ""


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), _CHUNK_BYTES):
        with view[start : start + _CHUNK_BYTES] as part:
            yield part
