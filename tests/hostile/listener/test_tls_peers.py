"""Who may speak to a listener with TLS and rules: nobody without a good certificate, a known AE title and address."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S
from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.security.audit_check import verify
from heimdallr_ray.security.audit_entries import recent
from heimdallr_ray.security.audit_key import read_key
from tests.support.certificates import Authority, Certificate, authority
from tests.support.intake import Intake, all_committed, ct_slice, dataset_bytes, file_bytes, sha256, wait_for
from tests.support.wirepeer import CT, EXPLICIT, Gone, NotAccepted, WirePeer, associate_rq

STUDY = "1.2.826.0.1.3680043.9.9.8"
TRICKLE_S = 0.5
MARGIN_S = 4.0
"""For a machine that does other things besides."""
V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@dataclass(frozen=True)
class Site:
    """A hospital's authority and what it has signed, and one that is not the hospital's."""

    ours: Authority
    server: Certificate
    modality: Certificate
    expired: Certificate
    stranger: Certificate
    self_signed: Certificate


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = authority(folder, "hospital"), authority(folder, "elsewhere")
    alone = authority(folder, "alone")
    return Site(
        ours=ours,
        server=ours.issue("listener"),
        modality=ours.issue("modality"),
        expired=ours.issue("expired", days=-1),
        stranger=theirs.issue("stranger"),
        self_signed=Certificate(alone.certificate, folder / "alone.key"),
    )


@pytest.fixture
def intake(tmp_path: Path, site: Site) -> Intake:
    return Intake(
        tmp_path / "data",
        dicom_tls="on",
        dicom_tls_certificate=site.server.certificate,
        dicom_tls_key=site.server.key,
        dicom_tls_ca=site.ours.certificate,
        allowed_calling_aes=("CT1",),
        allowed_addresses=("127.0.0.1/32", "127.0.0.2/32"),
    )


@pytest.fixture
def service(intake: Intake) -> Generator[ListenerService]:
    with intake.listening() as listening:
        yield listening


def client(
    site: Site,
    shown: Certificate | None,
    lowest: ssl.TLSVersion = V1_2,
    highest: ssl.TLSVersion = V1_3,
) -> ssl.SSLContext:
    """A peer that trusts the hospital's authority, shows a certificate and speaks these versions."""
    context = ssl.create_default_context(cafile=site.ours.certificate)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with warnings.catch_warnings():
        # Naming TLS 1.1 warns, and this is the only way to be refused for it.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = lowest, highest
    if lowest < V1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


def refused(port: int, tls: ssl.SSLContext | None, calling: str = "CT1") -> bool:
    """True where no association came about."""
    try:
        peer = WirePeer(port, calling=calling, tls=tls)
    except (Gone, OSError):
        return True
    peer.close()
    return False


def audited(intake: Intake) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Action, name and address of the actor, and detail of each entry about a peer, oldest first; the chain holds."""
    key = read_key(intake.settings.resolved_audit_key_file)
    with intake.database.read() as session:
        assert verify(session, [key]).intact
        return [
            (row.action, row.actor_name, row.actor_address, json.loads(row.detail))
            for row in reversed(recent(session, 1000))
            if row.action.startswith("association.")
        ]


def tls_1_1_server(site: Site) -> tuple[socket.socket, list[str | None]]:
    """A server that would take TLS 1.1, and the version that its peer came with."""
    context = client(site, None, V1_1, V1_1)
    willing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    willing.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        willing.minimum_version = V1_1
    willing.load_cert_chain(site.server.certificate, site.server.key)
    server = socket.create_server(("127.0.0.1", 0))
    spoken: list[str | None] = []

    def serve() -> None:
        connection, _ = server.accept()
        with willing.wrap_socket(connection, server_side=True) as secured:
            spoken.append(secured.version())

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        socket.create_connection(server.getsockname()) as raw,
        context.wrap_socket(raw, server_hostname="localhost"),
    ):
        thread.join(30)
    return server, spoken


def test_five_kinds_of_strangers_are_refused_and_tls_1_2_and_1_3_are_spoken(
    intake: Intake, service: ListenerService, site: Site
) -> None:
    """Check 33 of the reliability list: five refusals; mutual TLS 1.2 and 1.3 store an image each."""
    port = service.scp.port
    server, spoken = tls_1_1_server(site)
    server.close()
    assert spoken == ["TLSv1.1"], "our client cannot speak TLS 1.1, so its refusal would show nothing"
    strangers = {
        "plaintext": None,
        "TLS 1.1": client(site, site.modality, V1_1, V1_1),
        "self-signed": client(site, site.self_signed),
        "expired": client(site, site.expired),
        "wrong authority": client(site, site.stranger),
        "no certificate": client(site, None),
        "wrong authority, TLS 1.2": client(site, site.stranger, V1_2, V1_2),
    }
    assert {name: refused(port, tls) for name, tls in strangers.items()} == dict.fromkeys(strangers, True)
    wait_for(lambda: service.registry.tally.snapshot().get("refused.tls") == len(strangers), 30, "all to be counted")
    assert "associations" not in service.registry.tally.snapshot()
    bodies = [dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.1"))) for n in (1, 2)]
    for version, body in zip((V1_2, V1_3), bodies, strict=True):
        with WirePeer(port, calling="CT1", tls=client(site, site.modality, version, version)) as peer:
            assert isinstance(peer.socket, ssl.SSLSocket)
            assert peer.socket.version() == version.name.replace("_", ".")
            assert peer.echo() == 0
            assert peer.store(body, f"{STUDY}.1.1") == 0
    assert all_committed(service)
    assert sorted(intake.stored().values()) == sorted(map(sha256, bodies))


def test_a_silent_handshake_holds_up_nobody(service: ListenerService, site: Site) -> None:
    """Check 33 of the reliability list: the handshake runs in the connection's own thread."""
    port = service.scp.port
    with closing(socket.create_connection(("127.0.0.1", port))) as silent:
        with WirePeer(port, calling="CT1", tls=client(site, site.modality)) as peer:
            assert peer.echo() == 0
        silent.settimeout(60)
        assert silent.recv(1) == b""
    wait_for(lambda: service.registry.tally.snapshot().get("refused.tls") == 1, 30, "it to be counted")


def client_hello(tls: ssl.SSLContext) -> bytes:
    """The first words of a peer with TLS."""
    said = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        tls.wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost").do_handshake()
    return said.read()


def trickled(connection: socket.socket, content: bytes) -> tuple[float, int]:
    """Seconds until a peer that sends a byte each half second is cut off, and how many bytes it could send."""
    began, n_sent = time.monotonic(), 0
    connection.settimeout(TRICKLE_S)
    try:
        for n_sent in range(len(content)):
            connection.sendall(content[n_sent : n_sent + 1])
            try:
                if not connection.recv(4096):
                    break
            except TimeoutError:
                pass
    except OSError:
        pass
    return time.monotonic() - began, n_sent


@pytest.mark.parametrize("what", ["handshake", "request after the handshake"])
def test_who_trickles_is_cut_off_in_the_time_of_a_request(service: ListenerService, site: Site, what: str) -> None:
    """Check 33 of the reliability list: a byte now and then begins no new time, neither in the handshake nor after."""
    port, tls = service.scp.port, client(site, site.modality)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        if what == "handshake":
            content = client_hello(tls)
            took_s, n_sent = trickled(raw, content)
        else:
            content = associate_rq({1: (CT, (EXPLICIT,))}, calling="CT1")
            with tls.wrap_socket(raw, server_hostname="localhost") as secured:
                took_s, n_sent = trickled(secured, content)
    # It went on sending until it was cut, and what it sent was no reason to cut it earlier.
    assert ASSOCIATE_TIMEOUT_S - 1 < took_s < ASSOCIATE_TIMEOUT_S + MARGIN_S, took_s
    assert ASSOCIATE_TIMEOUT_S / TRICKLE_S / 3 < n_sent < len(content) // 4
    tally = "refused.tls" if what == "handshake" else "cut.slow_sender"
    wait_for(lambda: service.registry.tally.snapshot().get(tally) == 1, 30, "it to be counted")
    with WirePeer(port, calling="CT1", tls=tls) as peer:
        assert peer.echo() == 0


def test_an_unknown_ae_title_or_address_is_rejected_and_audited(
    intake: Intake, service: ListenerService, site: Site
) -> None:
    """Check 33 of the reliability list: who is not known is rejected, and the audit chain says so."""
    port, tls = service.scp.port, client(site, site.modality)
    with WirePeer(port, calling="CT1", tls=tls) as peer:
        assert peer.echo() == 0
    with pytest.raises(NotAccepted) as rejected:
        WirePeer(port, calling="CT2", tls=tls)
    # Rejected permanently by the service user: calling AE title not recognised (PS3.8 table 9-21).
    assert (rejected.value.result, rejected.value.source, rejected.value.reason) == (1, 1, 3)
    with pytest.raises(NotAccepted) as rejected:
        WirePeer(port, calling="CT1", called="SOMEBODY", source="127.0.0.2", tls=tls)
    assert (rejected.value.result, rejected.value.source, rejected.value.reason) == (1, 1, 7)
    with pytest.raises((Gone, OSError)):
        WirePeer(port, calling="CT1", source="127.0.0.3", tls=tls)
    wait_for(lambda: all_committed(service) and len(audited(intake)) == 4, 30, "four entries")
    accepted, *refusals = audited(intake)
    assert accepted[:3] == ("association.accepted", "CT1", "127.0.0.1")
    assert [(action, name, address, detail["reason"]) for action, name, address, detail in refusals] == [
        ("association.refused", "CT2", "127.0.0.1", "calling_ae"),
        ("association.refused", "CT1", "127.0.0.2", "called_ae"),
        ("association.refused", "", "127.0.0.3", "address"),
    ]
