"""pynetdicom's server behind the gate: PDUs of bounded length in bounded time, connections counted.

pynetdicom reads the length that a PDU declares (up to 4 GiB) before it checks anything; `GuardedSocket` looks at the
six bytes of PDU header first (PS3.8 section 9.3.1).
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from ssl import SSLContext
from typing import Any, Protocol, cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from heimdallr_ray.errors import NotDicom, TooLarge
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.gate import (
    ASSOCIATE_TIMEOUT_S,
    MAX_COMMAND_BYTES,
    MAX_PDU_BYTES,
    MAX_WAITING_MESSAGES,
    PDU_TIMEOUT_S,
    PRE_ACCEPT_PDU_BYTES,
    GateRules,
)
from heimdallr_ray.listener.request_bounds import require_bounded
from heimdallr_ray.listener.transport import PromptSocket, prompt

logger = logging.getLogger(__name__)

_A_ABORT = struct.pack(">BBIBBBB", 0x07, 0, 4, 0, 0, 2, 0)
"""A-ABORT by the service provider, no reason given (PS3.8 section 9.3.8)."""
_ASSOCIATE_RQ = 0x01
_P_DATA = 0x04
_PDU_TYPES = range(0x01, 0x08)


class Doorkeeper(Protocol):
    """Whose rules hold, and who hears of those that break them. The registry is one."""

    rules: GateRules

    def cut(self, reason: str, address: str, known: OpenAssociation | None) -> None:
        """A connection is cut off."""
        ...

    def refuse_connection(self, reason: str, address: str) -> None:
        """A connection is closed before anything is read."""
        ...


class GuardedSocket(PromptSocket):
    """Reads PDUs of bounded length in bounded time; a peer that breaks a bound is aborted and cut off."""

    def __init__(self, assoc: Association, client_socket: socket.socket, registry: Doorkeeper) -> None:
        prompt(client_socket)
        client_socket.settimeout(PDU_TIMEOUT_S)
        super().__init__(assoc, client_socket=client_socket)
        self._registry = registry
        self._opened = time.monotonic()
        self._body_expected = self._asks = False

    def recv(self, nr_bytes: int) -> bytearray:
        """Called by pynetdicom for the six header bytes of a PDU, then for its body.

        Raises:
            OSError: the peer broke a bound or went away; the connection is closed.
        """
        if self._body_expected:
            self._body_expected = False
            body = self._read(nr_bytes)
            if self._asks and len(body) == nr_bytes:
                self._require_bounded(body)
            return body
        header = self._read(nr_bytes)
        if len(header) == 6:
            pdu_type, _, length = struct.unpack(">BBL", header)
            self._check(pdu_type, length)
            self._body_expected = pdu_type in _PDU_TYPES
            self._asks = pdu_type == _ASSOCIATE_RQ
        return header

    def _read(self, size: int) -> bytearray:
        accepted = bool(self.assoc.is_established)
        deadline = time.monotonic() + PDU_TIMEOUT_S if accepted else self._opened + ASSOCIATE_TIMEOUT_S
        buffer = bytearray(size)
        view = memoryview(buffer)
        received = 0
        connection = cast(socket.socket, self.socket)
        while received < size:
            left = deadline - time.monotonic()
            if left <= 0:
                self._cut("slow_sender")
            connection.settimeout(left)
            try:
                count = connection.recv_into(view[received:])
            except TimeoutError:
                continue
            if not count:
                view.release()
                return buffer[:received]
            received += count
        connection.settimeout(PDU_TIMEOUT_S)
        return buffer

    def _check(self, pdu_type: int, length: int) -> None:
        """Nothing happens where a PDU of this type and length may come now.

        Raises:
            ConnectionAbortedError: it may not.
        """
        established = bool(self.assoc.is_established)
        if length > (MAX_PDU_BYTES if established and pdu_type == _P_DATA else PRE_ACCEPT_PDU_BYTES):
            self._cut("pdu_too_long")
        if pdu_type != _P_DATA:
            return
        dimse = cast(Any, self.assoc.dimse)
        if int(dimse.msg_queue.qsize()) > MAX_WAITING_MESSAGES:
            self._cut("too_many_requests")
        message = dimse.message
        if message is None:
            return
        if int(message.encoded_command_set.tell()) + length > MAX_COMMAND_BYTES + MAX_PDU_BYTES:
            self._cut("command_too_long")
        if int(message.data_set.tell()) + length > self._registry.rules.max_object_bytes + MAX_PDU_BYTES:
            self._cut("object_too_large")

    def _require_bounded(self, body: bytearray) -> None:
        """Nothing happens where the request asks for no more than a peer could use.

        Raises:
            ConnectionAbortedError: it asks for more.
        """
        try:
            require_bounded(body)
        except TooLarge:
            self._cut("request_too_large")
        except NotDicom:
            self._cut("malformed_request")

    def _cut(self, reason: str) -> None:
        self._registry.cut(reason, _address_of(self.assoc), None)
        connection = cast(socket.socket, self.socket)
        try:
            connection.settimeout(1.0)
            connection.sendall(_A_ABORT)
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            logger.debug("connection.cut_unheard", extra={"reason": reason})
        raise ConnectionAbortedError(reason)


def _host(client_address: object) -> str:
    """The address of a socket pair `(host, port, ...)`."""
    return str(cast("tuple[object, ...]", client_address)[0])


def _address_of(association: Association) -> str:
    info = association.requestor.address_info
    return str(info.address) if info else ""


class GatedServer(ThreadedAssociationServer):
    """pynetdicom's server, with address rules, a bound on connections, and guarded sockets."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: SSLContext | None = None,
        evt_handlers: list[Any] | None = None,
        *,
        registry: Doorkeeper,
    ) -> None:
        """As the parent; the rules of `registry` decide whom it talks to."""
        self.registry = registry
        self.turned_s = time.monotonic()
        """When its loop turned last."""
        cast(Any, super()).__init__(ae, address, ae_title, contexts, ssl_context, evt_handlers, _GuardedHandler)

    def service_actions(self) -> None:
        """Called by socketserver's loop at each of its turns."""
        self.turned_s = time.monotonic()

    def verify_request(self, request: object, client_address: object) -> bool:
        """True where the connection may stay open."""
        address = _host(client_address)
        active = [_address_of(association) for association in self.active_associations]
        reason = self.registry.rules.connection_refusal(address, len(active), active.count(address))
        if reason:
            self.registry.refuse_connection(reason, address)
        return not reason

    def handle_error(self, request: object, client_address: object) -> None:
        """A failure while a connection is set up goes to the log; the server goes on."""
        logger.exception("connection.failed", extra={"address": _host(client_address)})


class _GuardedHandler(RequestHandler):
    """Gives each association a guarded socket."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        server = cast(GatedServer, self.server)
        # The parent has queued Evt5 (connection indication) for its own socket; the guarded one queues it again.
        association.dul.event_queue.get_nowait()
        association.dul.socket = None
        association.set_socket(GuardedSocket(association, cast(socket.socket, self.request), server.registry))
        return association
