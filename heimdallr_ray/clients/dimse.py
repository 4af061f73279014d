"""Associations of our clients: opened with the reason told where the peer does not want one, over TLS where asked.

Source: PS3.8 section 9.3.4 (A-ASSOCIATE-RJ), PS3.15 annex B (secure connections).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.transport import PromptSocket

MAX_PDU_BYTES = 131_072
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0

Context = tuple[str, str]
"""SOP class and transfer syntax."""

# PS3.8 table 9-21: source and reason/diagnostic.
_REASONS = {
    (1, 1): ("rejected", "no reason given"),
    (1, 2): ("rejected", "application context name not supported"),
    (1, 3): ("calling_ae", "calling AE title not recognised"),
    (1, 7): ("called_ae", "called AE title not recognised"),
    (2, 1): ("rejected", "no reason given"),
    (2, 2): ("rejected", "protocol version not supported"),
    (3, 1): ("congestion", "temporary congestion"),
    (3, 2): ("local_limit", "local limit exceeded"),
}


@dataclass(frozen=True)
class Tls:
    """How a connection is secured. Without `ca` the system's authorities are trusted."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    server_name: str | None = None
    """The name that the peer's certificate has to bear; None: the host as it was given."""

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or 1.3, the peer's certificate and name are checked.

        Raises:
            BadSetting: a file cannot be read or is not what it should be; a key without a certificate.
        """
        if self.key is not None and self.certificate is None:
            raise BadSetting("a TLS key needs its certificate")
        try:
            made = ssl.create_default_context(cafile=self.ca)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                # A passphrase would be asked for at the terminal, which nobody may be watching.
                made.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
        except (OSError, ssl.SSLError) as error:
            raise BadSetting(f"TLS: a certificate, key or CA file cannot be used ({error})") from error
        return made


def _no_passphrase() -> str:
    raise BadSetting("TLS: the key has a passphrase; give one without")


@dataclass(frozen=True)
class Peer:
    """Whom we talk to, and as whom."""

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: Tls | None = None


@dataclass(frozen=True)
class Refusal:
    """Why there is no association."""

    kind: str
    """called_ae, calling_ae, local_limit, congestion, rejected, no_answer, unreachable, tls."""
    words: str
    permanent: bool
    """True: asking again changes nothing."""


class _Told:
    """What became of the connection."""

    def __init__(self) -> None:
        self.connected = False
        self.error: OSError | None = None
        self.connection: socket.socket | None = None

    def close(self) -> None:
        """The connection's descriptor is free; pynetdicom leaves it open where the peer goes first."""
        if self.connection is not None:
            self.connection.close()


class _Socket(PromptSocket):
    """Keeps the reason for which a connection fails; the parent only logs it."""

    told: _Told

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
        connection.settimeout(CONNECT_TIMEOUT_S)
        connection.connect(primitive.address_info.as_tuple)
        if self.tls_args:
            context, server_name = self.tls_args
            connection = context.wrap_socket(connection, server_side=False, server_hostname=server_name)
            self.socket = self.told.connection = connection
        connection.settimeout(None)
        self.assoc.requestor.address_info = AddressInformation.from_tuple(connection.getsockname())


class Entity(ApplicationEntity):
    """Associates over a _Socket."""

    def __init__(self, ae_title: str) -> None:
        super().__init__(ae_title)
        self.told = _Told()

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        created = _Socket(assoc, address=address)
        created.told = self.told
        created.tls_args = tls_args
        return created


def associate(peer: Peer, contexts: Iterable[Context], tls: ssl.SSLContext | None = None) -> Association | Refusal:
    """An association with all `contexts`, or the reason why there is none now.

    Args:
        peer: whom to talk to.
        contexts: SOP class and transfer syntax of each; at most 128.
        tls: made of `peer.tls`, once for many associations.

    Raises:
        BadSetting: an AE title or the address is malformed.
    """
    try:
        entity = Entity(peer.calling_ae)
        entity.connection_timeout = CONNECT_TIMEOUT_S
        entity.acse_timeout = CONNECT_TIMEOUT_S
        entity.dimse_timeout = ANSWER_TIMEOUT_S
        entity.network_timeout = ANSWER_TIMEOUT_S
        wanted = [build_context(UID(sop_class), [UID(syntax)]) for sop_class, syntax in sorted(set(contexts))]
        name = (peer.tls.server_name if peer.tls else None) or peer.host
        made = cast(Any, entity).associate(
            peer.host,
            peer.port,
            contexts=wanted,
            ae_title=peer.called_ae,
            max_pdu=MAX_PDU_BYTES,
            tls_args=None if tls is None else (tls, name),
        )
    except (ValueError, TypeError) as error:
        raise BadSetting(f"AE title or address: {error}") from error
    association = cast(Association, made)
    if association.is_established:
        return association
    refusal = _refusal(association, entity.told)
    entity.told.close()
    return refusal


def _refusal(association: Association, told: _Told) -> Refusal:
    if association.is_rejected:
        rejection = cast(Any, association.acceptor.primitive)
        permanent = int(rejection.result) == 1
        found = (int(rejection.result_source), int(rejection.diagnostic))
        kind, words = _REASONS.get(found, ("rejected", f"reason {found[1]} of source {found[0]}"))
        return Refusal(kind, f"rejects the association: {words}", permanent)
    error = told.error
    if isinstance(error, ssl.SSLError):
        words = getattr(error, "verify_message", "") or error.reason or type(error).__name__
        return Refusal("tls", f"TLS could not be agreed on: {str(words).lower().replace('_', ' ')}", True)
    if error is not None:
        return Refusal("unreachable", f"cannot be reached: {error.strerror or type(error).__name__}", False)
    if told.connected:
        return Refusal("no_answer", "closes the connection without an answer to the request", False)
    return Refusal("unreachable", "cannot be reached", False)


def end(association: Association) -> None:
    """The association is over: released where it still stands."""
    with suppress(OSError):
        if association.is_established:
            association.release()
        else:
            association.abort()
