"""What a connection may do before and while pynetdicom listens to it: addresses, PDU lengths, times, object size.

pynetdicom reads the length that a PDU declares (up to 4 GiB) before it checks anything; `GuardedSocket` looks at the
six bytes of PDU header first (PS3.8 section 9.3.1).
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from heimdallr_ray.config import Settings
from heimdallr_ray.listener.transport import PromptSocket, prompt

logger = logging.getLogger(__name__)

MAX_PDU_BYTES = 131_072
"""What we announce as Maximum Length Received (PS3.8 D.1); dcmtk never sends more."""
PRE_ACCEPT_PDU_BYTES = 1 << 20
"""128 presentation contexts with all transfer syntaxes are under 300 kB."""
MAX_COMMAND_BYTES = 1 << 20
ASSOCIATE_TIMEOUT_S = 5.0
"""From the connection to the complete A-ASSOCIATE-RQ."""
PDU_TIMEOUT_S = 30.0
"""For one whole PDU once its first byte has come: 4.4 kB/s at the least."""
NETWORK_TIMEOUT_S = 300.0
"""Silence between two messages; some devices pause for minutes between series."""
MAX_WAITING_MESSAGES = 2
"""Without an asynchronous window (PS3.7 D.3.3.3, never negotiated here) a peer waits for each answer."""
PENDING_FACTOR = 2
"""Connections, also those without an association, per association that may be open."""

_A_ABORT = struct.pack(">BBIBBBB", 0x07, 0, 4, 0, 0, 2, 0)
"""A-ABORT by the service provider, no reason given (PS3.8 section 9.3.8)."""
_P_DATA = 0x04
_PDU_TYPES = range(0x01, 0x08)


@dataclass(frozen=True)
class Refusal:
    """Why an association is rejected: A-ASSOCIATE-RJ fields (PS3.8 table 9-21) and a word for the log."""

    reason: str
    result: int
    source: int
    diagnostic: int


@dataclass(frozen=True)
class GateRules:
    """Who may associate, and how much one association may send."""

    ae_title: str
    calling_aes: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    max_associations: int
    max_object_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> GateRules:
        """The rules that `settings` ask for."""
        return cls(
            ae_title=settings.ae_title.strip(),
            calling_aes=frozenset(title.strip() for title in settings.allowed_calling_aes),
            networks=tuple(ipaddress.ip_network(text) for text in settings.allowed_addresses),
            max_associations=settings.max_associations,
            max_object_bytes=settings.max_instance_mib << 20,
        )

    def admits_address(self, address: str) -> bool:
        """True where `address` lies in an allowed network, or no network is named."""
        if not self.networks:
            return True
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any(candidate in network for network in self.networks for candidate in (parsed, mapped) if candidate)

    def refusal(self, called_ae: str, calling_ae: str, open_associations: int, *, has_room: bool) -> Refusal | None:
        """The reason to reject this association, or None."""
        if called_ae.strip() != self.ae_title:
            return Refusal("called_ae", 0x01, 0x01, 0x07)
        if self.calling_aes and calling_ae.strip() not in self.calling_aes:
            return Refusal("calling_ae", 0x01, 0x01, 0x03)
        if open_associations >= self.max_associations:
            return Refusal("too_many_associations", 0x02, 0x03, 0x02)
        if not has_room:
            return Refusal("storage_full", 0x02, 0x03, 0x01)
        return None


class Tally:
    """Counts by name; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """`name` has happened `amount` times more."""
        with self._lock:
            self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """All counts."""
        with self._lock:
            return dict(self._counts)


class GuardedSocket(PromptSocket):
    """Reads PDUs of bounded length in bounded time; a peer that breaks a bound is aborted and cut off."""

    def __init__(self, assoc: Association, client_socket: socket.socket, rules: GateRules, tally: Tally) -> None:
        prompt(client_socket)
        client_socket.settimeout(PDU_TIMEOUT_S)
        super().__init__(assoc, client_socket=client_socket)
        self._rules = rules
        self._tally = tally
        self._opened = time.monotonic()
        self._body_expected = False

    def recv(self, nr_bytes: int) -> bytearray:
        """Called by pynetdicom for the six header bytes of a PDU, then for its body.

        Raises:
            OSError: the peer broke a bound or went away; the connection is closed.
        """
        if self._body_expected:
            self._body_expected = False
            return self._read(nr_bytes)
        header = self._read(nr_bytes)
        if len(header) == 6:
            pdu_type, _, length = struct.unpack(">BBL", header)
            self._check(pdu_type, length)
            self._body_expected = pdu_type in _PDU_TYPES
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
        if int(message.data_set.tell()) + length > self._rules.max_object_bytes + MAX_PDU_BYTES:
            self._cut("object_too_large")

    def _cut(self, reason: str) -> None:
        self._tally.add(f"cut.{reason}")
        remote = self.assoc.requestor.address_info
        logger.warning("connection.cut", extra={"reason": reason, "address": remote.address if remote else None})
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
        rules: GateRules,
        tally: Tally,
    ) -> None:
        """As the parent; `rules` decide whom it talks to."""
        self.rules = rules
        self.tally = tally
        cast(Any, super()).__init__(ae, address, ae_title, contexts, ssl_context, evt_handlers, _GuardedHandler)

    def verify_request(self, request: object, client_address: object) -> bool:
        """True where the connection may stay open."""
        address = _host(client_address)
        if not self.rules.admits_address(address):
            reason = "address"
        elif len(self.active_associations) >= PENDING_FACTOR * self.rules.max_associations:
            reason = "too_many_connections"
        else:
            return True
        self.tally.add(f"refused.{reason}")
        logger.warning("connection.refused", extra={"reason": reason, "address": address})
        return False

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
        association.set_socket(
            GuardedSocket(association, cast(socket.socket, self.request), server.rules, server.tally)
        )
        return association
