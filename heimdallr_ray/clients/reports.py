"""A port for the reports of storage commitment, open while somebody waits for one.

A provider tells on the association on which it was asked, or on a new one that it opens to us (PS3.4 section J.3.3).
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener import part10
from heimdallr_ray.listener.action import PUSH_MODEL, TRANSFER_SYNTAXES
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S, MAX_PDU_BYTES, PENDING_FACTOR, GateRules
from heimdallr_ray.listener.guarded import GatedServer
from heimdallr_ray.listener.transport import quote_nobody

logger = logging.getLogger(__name__)

MAX_REPORT_BYTES = 8 << 20
MAX_ASSOCIATIONS = 4
MAX_HANDSHAKES = 32
"""At once in this process, each in a thread of its own."""
IDLE_S = 60.0
_STOP_S = 5.0
_Request = socket.socket | tuple[bytes, socket.socket]
_Address = tuple[str, int] | str
"""As socketserver has them; over TCP the first of each."""


class _Doorkeeper:
    """Who breaks a rule is a line of the log."""

    def __init__(self, rules: GateRules) -> None:
        self.rules = rules

    def cut(self, reason: str, address: str, known: OpenAssociation | None) -> None:
        """As Doorkeeper."""
        del known
        logger.warning("reports.cut", extra={"reason": reason, "address": address})

    def refuse_connection(self, reason: str, address: str) -> None:
        """As Doorkeeper."""
        logger.warning("reports.refused", extra={"reason": reason, "address": address})


class _Server(GatedServer):
    """TLS handshakes have threads of their own, so that a peer that says nothing keeps no other one waiting.

    `process_request` and `verify_request` run in the thread that accepts, `process_request_thread` in the connection's.
    """

    _handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """As the parent, before any handshake."""
        return cast(socket.socket, self.socket).accept()

    def process_request(self, request: _Request, client_address: _Address) -> None:
        """As the parent; closed where too many handshakes are under way."""
        if self.ssl_context is not None and not self._handshakes.acquire(blocking=False):
            self.registry.refuse_connection("too_many_connections", str(client_address[0]))
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread was to be had.
            if self.ssl_context is not None:
                self._handshakes.release()
            raise

    def process_request_thread(self, request: _Request, client_address: _Address) -> None:
        """As the parent, after the handshake."""
        context = self.ssl_context
        if context is None:
            super().process_request_thread(request, client_address)
            return
        try:
            secured = _handshaken(context, cast(socket.socket, request))
        except OSError:
            self.registry.cut("tls", str(client_address[0]), None)
            return
        finally:
            self._handshakes.release()
        super().process_request_thread(secured, client_address)


def _handshaken(context: ssl.SSLContext, connection: socket.socket) -> ssl.SSLSocket:
    """The connection after its handshake, which has ASSOCIATE_TIMEOUT_S in all.

    Raises:
        OSError: it failed; the connection is closed.
    """
    secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    try:
        # Of a whole handshake, unlike of other reads, since Python 3.5: who sends a byte now and then gains nothing.
        secured.settimeout(ASSOCIATE_TIMEOUT_S)
        secured.do_handshake()
    except OSError:
        secured.close()
        raise
    return secured


@contextmanager
def reports_at(
    host: str,
    port: int,
    ae_title: str,
    on_report: Callable[[evt.Event], tuple[int, None]],
    tls: ssl.SSLContext | None = None,
) -> Generator[int]:
    """The port is open while the block runs; yields its number.

    Args:
        host: address of ours that is listened on.
        port: 0: any that is free.
        ae_title: ours; an association for another title is rejected.
        on_report: called with each N-EVENT-REPORT, by threads of their own; returns its status.
        tls: how connections are secured; None: not at all.

    Raises:
        BadSetting: the port cannot be listened on.
    """
    quote_nobody()
    rules = GateRules(ae_title, frozenset(), (), MAX_ASSOCIATIONS, MAX_REPORT_BYTES)
    entity = ApplicationEntity(ae_title)
    entity.add_supported_context(PUSH_MODEL, list(TRANSFER_SYNTAXES), scu_role=False, scp_role=True)
    entity.implementation_class_uid = part10.IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = part10.IMPLEMENTATION_VERSION
    entity.require_called_aet = True
    entity.maximum_pdu_size = MAX_PDU_BYTES
    entity.maximum_associations = PENDING_FACTOR * MAX_ASSOCIATIONS
    entity.acse_timeout = ASSOCIATE_TIMEOUT_S
    entity.dimse_timeout = entity.network_timeout = IDLE_S
    try:
        made = cast(Any, entity).make_server(
            (host, port),
            ssl_context=tls,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, on_report)],
            server_class=_Server,
            registry=_Doorkeeper(rules),
        )
    except OSError as error:
        raise BadSetting(f"cannot listen on {host}:{port} for reports: {error.strerror or error}") from error
    server = cast(GatedServer, made)
    # shutdown() takes it out of there again.
    cast(Any, entity)._servers.append(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="reports", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        for association in list(server.active_associations):
            association.abort()
        server.server_close()
        thread.join(_STOP_S)


def address_seen_by(host: str, port: int) -> str:
    """The address of ours that `host` sees, where nothing translates it on the way; empty where there is no way."""
    try:
        return address_towards(host, port)
    except BadSetting:
        return ""


def address_towards(host: str, port: int) -> str:
    """The address of ours from which `host` is reached, so that no other network can reach a port of ours.

    Raises:
        BadSetting: the name is unknown, or there is no way there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # A datagram socket sends nothing when it is connected; it only chooses its address.
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise BadSetting(f"{host} cannot be reached: {error.strerror or error}") from error
