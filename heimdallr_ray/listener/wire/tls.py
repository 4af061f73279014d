"""DICOM TLS: 1.2 and 1.3 only, and a certificate from every peer (PS3.15 annex B, the BCP 195 profiles)."""

from __future__ import annotations

import ssl
from pathlib import Path

from heimdallr_ray.errors import BadSetting

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2: forward secrecy and authenticated encryption (RFC 9325). Those of TLS 1.3 all have both."""


def server_context(certificate: Path, key: Path, authorities: Path) -> ssl.SSLContext:
    """A context for the listener.

    Raises:
        BadSetting: one of the files cannot be read or does not hold what it should.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _filled(context, certificate, key, authorities)


def client_context(certificate: Path | None, key: Path | None, authorities: Path) -> ssl.SSLContext:
    """A context for a client, which shows `certificate` and checks the peer's name against its certificate.

    Raises:
        BadSetting: one of the files cannot be read or does not hold what it should.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _filled(context, certificate, key, authorities)


def _filled(context: ssl.SSLContext, certificate: Path | None, key: Path | None, authorities: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    name = "dicom_tls_ca"
    try:
        context.set_ciphers(CIPHERS)
        context.load_verify_locations(authorities)
        if certificate is not None:
            name = "dicom_tls_certificate or dicom_tls_key"
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise BadSetting(
            f"{name} cannot be used: {getattr(error, 'reason', None) or error.strerror or error}"
        ) from error
    return context
