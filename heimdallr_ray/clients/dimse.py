"""Associations of our clients: opened with the reason told where the peer does not want one, over TLS where asked.

Source: PS3.8 section 9.3.4 (A-ASSOCIATE-RJ), PS3.15 annex B (secure connections).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.connecting import CONNECT_TIMEOUT_S, Entity, Told, failure_of

MAX_PDU_BYTES = 131_072
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

    def for_reports(self) -> ssl.SSLContext | None:
        """The same for a port of ours, where a peer of `ca` has to show its certificate; None without one of ours.

        Raises:
            BadSetting: as `context`.
        """
        if self.certificate is None:
            return None
        try:
            made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.ca is not None:
                made.verify_mode = ssl.CERT_REQUIRED
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
    """called_ae, calling_ae, local_limit, congestion, rejected, contexts, or that of a `Failure`."""
    words: str
    permanent: bool
    """True: asking again changes nothing."""


def associate(
    peer: Peer,
    contexts: Iterable[Context],
    tls: ssl.SSLContext | None = None,
    handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
    idle_s: float = ANSWER_TIMEOUT_S,
) -> Association | Refusal:
    """An association with all `contexts`, or the reason why there is none now.

    Args:
        peer: whom to talk to.
        contexts: SOP class and transfer syntax of each; at most 128.
        tls: made of `peer.tls`, once for many associations.
        handlers: pynetdicom's events, and what is called for each.
        idle_s: so long the association stands without a word of the peer.

    Raises:
        BadSetting: an AE title or the address is malformed.
    """
    try:
        entity = Entity(peer.calling_ae)
        entity.connection_timeout = CONNECT_TIMEOUT_S
        entity.acse_timeout = CONNECT_TIMEOUT_S
        entity.dimse_timeout = ANSWER_TIMEOUT_S
        entity.network_timeout = idle_s
        wanted = [build_context(UID(sop_class), [UID(syntax)]) for sop_class, syntax in sorted(set(contexts))]
        name = (peer.tls.server_name if peer.tls else None) or peer.host
        made = cast(Any, entity).associate(
            peer.host,
            peer.port,
            contexts=wanted,
            ae_title=peer.called_ae,
            max_pdu=MAX_PDU_BYTES,
            evt_handlers=list(handlers),
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


def _refusal(association: Association, told: Told) -> Refusal:
    if association.is_rejected:
        rejection = cast(Any, association.acceptor.primitive)
        permanent = int(rejection.result) == 1
        found = (int(rejection.result_source), int(rejection.diagnostic))
        kind, words = _REASONS.get(found, ("rejected", f"reason {found[1]} of source {found[0]}"))
        return Refusal(kind, f"rejects the association: {words}", permanent)
    if association.rejected_contexts:
        return Refusal("contexts", "takes nothing of this kind: it accepts none of the presentation contexts", True)
    failure = failure_of(told)
    return Refusal(failure.kind, failure.words, failure.permanent)


def break_off(association: Association) -> None:
    """The peer is told that this was not all."""
    with suppress(OSError):
        association.abort()


def end(association: Association) -> None:
    """The association is over: released where it still stands."""
    with suppress(OSError):
        if association.is_established:
            association.release()
        else:
            association.abort()
