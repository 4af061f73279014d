"""Who may send over DICOM, whether others can listen, and what Success promises: for `doctor` and `status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from heimdallr_ray.config import Settings, is_loopback
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.wire.tls import server_context

MOST = 8
"""Entries of a list that are named; more are counted."""
POWER_CUT = "a power cut can lose images that were acknowledged"


@dataclass(frozen=True)
class DoorRule:
    """One thing to know of the DICOM door."""

    name: str
    words: str
    ok: bool = True
    mend: str = ""
    """What to do, or to know, where there is something."""


def rules(settings: Settings) -> Iterator[DoorRule]:
    """What holds at the DICOM door by these settings, in reading order."""
    yield _tls(settings)
    yield DoorRule("called AE", settings.ae_title.strip())
    yield DoorRule("calling AEs", _named(settings.allowed_calling_aes) or "any (allowed_calling_aes is empty)")
    yield DoorRule("addresses", _addresses(settings))
    yield _commitment(settings)
    yield _durability(settings)


def summary(settings: Settings) -> dict[str, str]:
    """The same for a program: words by `tls`, `called_ae`, `calling_aes`, `addresses`, `commitment`, `durability`."""
    return {rule.name.removeprefix("DICOM ").replace(" ", "_").lower(): rule.words for rule in rules(settings)}


def _tls(settings: Settings) -> DoorRule:
    if settings.dicom_tls == "off":
        if is_loopback(settings.dicom_host):
            return DoorRule("DICOM TLS", f"off; {settings.dicom_host} is reached from this machine only")
        return DoorRule(
            "DICOM TLS",
            "off: images and patients' names travel as plain text, and a sender is known by address and AE title only",
            mend="HEIMDALLR_DICOM_TLS=on (TLS in docs/operations/listener.md), or a network where nobody else listens",
        )
    certificate, key, authorities = settings.dicom_tls_certificate, settings.dicom_tls_key, settings.dicom_tls_ca
    try:
        # The settings are not valid where one of them is None.
        if certificate is not None and key is not None and authorities is not None:
            server_context(certificate, key, authorities)
    except BadSetting as error:
        return DoorRule(
            "DICOM TLS",
            f"on, but {error.detail}",
            ok=False,
            mend="files in PEM that this user can read: TLS in docs/operations/listener.md",
        )
    return DoorRule("DICOM TLS", f"on: every peer has to show a certificate signed by {authorities}")


def _addresses(settings: Settings) -> str:
    let_in = _named(settings.allowed_addresses) or "any (allowed_addresses is empty)"
    if not is_loopback(settings.dicom_host):
        return let_in
    return f"{let_in}; the listener is bound to {settings.dicom_host}, so that none but this machine's get that far"


def _commitment(settings: Settings) -> DoorRule:
    peers = [
        f"{peer.ae_title} at {f'[{peer.host}]' if ':' in peer.host else peer.host}:{peer.port}"
        f"{' with TLS' if peer.tls else ''}"
        for peer in settings.peers.values()
    ]
    nobody = "nobody: every request for storage commitment is refused (commitment_peers is empty)"
    return DoorRule("commitment", f"reports go to {_named(peers)}" if peers else nobody)


def _durability(settings: Settings) -> DoorRule:
    if settings.durability == "instance":
        return DoorRule("durability", "instance: Success is answered when the image is on the disk")
    return DoorRule(
        "durability",
        f"study: Success is answered before the image is on the disk; {POWER_CUT}",
        mend="HEIMDALLR_DURABILITY=instance, unless senders keep their images until the study is done or commitment "
        "was reported",
    )


def _named(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - MOST} more" if len(entries) > MOST else ""
    return ", ".join(entries[:MOST]) + more
