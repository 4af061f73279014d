"""Associations that we open keep the reason for which a connection fails; pynetdicom only logs it."""

from __future__ import annotations

import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from heimdallr_ray.listener.transport import PromptSocket

CONNECT_TIMEOUT_S = 10.0
"""Until the connection stands, its TLS handshake and the peer's word on our certificate included."""
VERDICT_S = 0.5
"""For a peer's word on our certificate. Those that accept it send session tickets at once, some nothing."""


class Told:
    """What became of the connection."""

    def __init__(self) -> None:
        self.connected = False
        self.in_handshake = False
        self.error: OSError | None = None
        self.connection: socket.socket | None = None

    def close(self) -> None:
        """The connection's descriptor is free; pynetdicom leaves it open where the peer goes first."""
        if self.connection is not None:
            self.connection.close()


@dataclass(frozen=True)
class Failure:
    """Why there was no answer to the request for an association."""

    kind: str
    """unreachable, no_answer, certificate (the peer rejects ours, or wants one), tls (anything else about TLS)."""
    words: str
    permanent: bool
    """True: asking again changes nothing."""


def failure_of(told: Told) -> Failure:
    """The reason, by what became of the connection."""
    error = told.error
    if told.in_handshake and isinstance(error, ssl.SSLEOFError | ConnectionResetError):
        # A peer that does not let our address in, one that is full and one that speaks no TLS: all of them hang up.
        return Failure("no_answer", "closes the connection in the TLS handshake", permanent=False)
    if isinstance(error, ssl.SSLError):
        words = getattr(error, "verify_message", "") or error.reason or type(error).__name__
        said = str(words).lower().replace("_", " ")
        _, alert, named = said.partition(" alert ")
        if alert and ("certificate" in named or named == "unknown ca"):
            return Failure("certificate", f"does not take our certificate: {named}", permanent=True)
        return Failure("tls", f"TLS could not be agreed on: {said}", permanent=True)
    if error is not None:
        return Failure("unreachable", f"cannot be reached: {error.strerror or type(error).__name__}", permanent=False)
    if told.connected:
        return Failure("no_answer", "closes the connection without an answer to the request", permanent=False)
    return Failure("unreachable", "cannot be reached", permanent=False)


class _Socket(PromptSocket):
    told: Told

    def connect(self, primitive: T_CONNECT) -> None:
        """As the parent; a TLS handshake is over when it returns."""
        try:
            self._connect(primitive)
        except OSError as error:
            self.told.error = error
            self._shutdown_socket()
            self.socket = None
            primitive.result = "Evt17"
        else:
            self.told.connected = True
            self._is_connected = True
            primitive.result = "Evt2"
        finally:
            self.provider_queue.put(primitive)
            self._ready.set()

    def _connect(self, primitive: T_CONNECT) -> None:
        connection = self.told.connection = cast(socket.socket, self.socket)
        last = time.monotonic() + CONNECT_TIMEOUT_S - VERDICT_S
        connection.settimeout(CONNECT_TIMEOUT_S - VERDICT_S)
        connection.connect(primitive.address_info.as_tuple)
        if self.tls_args:
            # Of the whole handshake.
            connection.settimeout(max(0.1, last - time.monotonic()))
            context, server_name = self.tls_args
            self.told.in_handshake = True
            secured = context.wrap_socket(connection, server_side=False, server_hostname=server_name)
            self.socket = self.told.connection = connection = secured
            _hear_verdict(secured)
        connection.settimeout(None)
        self.assoc.requestor.address_info = AddressInformation.from_tuple(connection.getsockname())


def _hear_verdict(connection: ssl.SSLSocket) -> None:
    """Returns unless the peer has rejected our certificate. By TLS 1.3 it does so after our handshake is over.

    Waited for before the request is sent: a peer that hangs up with a request unread resets the connection, and its
    alert may be lost. RFC 8446 section 4.4.2.4.

    Raises:
        OSError: the peer's alert, or it has hung up.
    """
    if connection.version() != "TLSv1.3":
        return
    readable = select.poll()
    readable.register(connection.fileno(), select.POLLIN)
    if not readable.poll(VERDICT_S * 1000):
        return
    connection.setblocking(False)
    try:
        early = connection.recv(1)
    except ssl.SSLWantReadError:
        # Session tickets, which the library has taken.
        return
    if early:
        raise ConnectionAbortedError("the peer speaks before it is asked")
    raise ConnectionResetError("the peer hung up")


class Entity(ApplicationEntity):
    """Associates over a socket whose fate is in `told`."""

    def __init__(self, ae_title: str) -> None:
        super().__init__(ae_title)
        self.told = Told()

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        created = _Socket(assoc, address=address)
        created.told = self.told
        created.tls_args = tls_args
        return created
