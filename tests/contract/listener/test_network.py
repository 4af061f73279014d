"""Peers that lie about lengths, keep silent, or send garbage: cut off early, while honest ones are served."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import CTImageStorage, Verification  # pyright: ignore[reportAttributeAccessIssue]

from heimdallr_ray.clients.dimse import Entity as PromptEntity  # pynetdicom's own leaves cut sockets open
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.listener import gate, guarded
from heimdallr_ray.listener.wire import reader
from tests.contract.listener.conftest import LONG, MakeIntake
from tests.support.intake import Intake, ct_slice, file_bytes, wait_for, write_study
from tests.support.memory import growth
from tests.support.monsters import MONSTERS, honest


def echo(port: int) -> bool:
    entity = PromptEntity("HONEST")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="HEIMDALLR")
    try:
        return association.is_established and association.send_c_echo().Status == 0
    finally:
        association.release()


def raw(association: Any) -> socket.socket:
    """The peer's own socket, to say what no honest DICOM library would."""
    return association.dul.socket.socket


def receiving_processes(intake: Intake) -> int:
    return intake.settings.listener_processes if intake.settings.dicom_backend == "wire" else 0


def push_until_closed(peer: socket.socket, limit: int) -> int:
    """Bytes that could be sent before the other side closed, at most `limit`."""
    peer.settimeout(5)
    sent = 0
    block = b"\0" * 65_536
    try:
        while sent < limit:
            sent += peer.send(block)
    except OSError:
        return sent
    return sent


def test_a_giant_pdu_before_the_association_is_cut_within_a_mebibyte(tmp_path: Path, make_intake: MakeIntake) -> None:
    intake = make_intake(tmp_path / "data")
    with intake.listening() as service:
        assert echo(service.scp.port)
        with growth() as grown, socket.create_connection(("127.0.0.1", service.scp.port)) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            peer.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
            # What the kernels of both ends buffer counts too, so the bound is generous; 256 MiB were offered.
            assert push_until_closed(peer, 256 << 20) < 16 << 20
            cut = "cut.pdu_too_long"
            wait_for(lambda: service.registry.tally.snapshot().get(cut) == 1, 30, "the cut to be counted")
        # The peer's own buffers are in this process and count as well.
        assert grown.processes > receiving_processes(intake)
        assert grown.kib < 16 * 1024
        assert echo(service.scp.port)


def test_a_giant_pdu_inside_an_association_is_cut(tmp_path: Path, make_intake: MakeIntake) -> None:
    intake = make_intake(tmp_path / "data")
    entity = PromptEntity("LIAR")
    entity.add_requested_context(Verification)
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert association.is_established
        raw(association).sendall(struct.pack(">BBL", 4, 0, gate.MAX_PDU_BYTES + 1))
        wait_for(lambda: service.registry.tally.snapshot().get("cut.pdu_too_long"), 30, "the cut")
        wait_for(lambda: not service.registry.open_associations(), 30, "the association to be forgotten")
        association.abort()
        assert echo(service.scp.port)


@pytest.mark.parametrize("what", MONSTERS)
def test_a_request_of_too_many_items_is_cut_before_it_costs_anything(
    tmp_path: Path, make_intake: MakeIntake, what: str
) -> None:
    intake = make_intake(tmp_path / "data")
    with intake.listening() as service:
        with socket.create_connection(("127.0.0.1", service.scp.port), timeout=10) as peer:
            peer.sendall(MONSTERS[what])
            # A-ABORT, then the end.
            assert peer.recv(16)[:1] == b"\x07"
            assert peer.recv(16) == b""
        cut = "cut.request_too_large"
        wait_for(lambda: service.registry.tally.snapshot().get(cut) == 1, 30, "the cut to be counted")
        assert echo(service.scp.port)


def test_a_peer_that_offers_all_it_has_is_let_in(tmp_path: Path, make_intake: MakeIntake) -> None:
    intake = make_intake(tmp_path / "data")
    entity = PromptEntity("ALL")
    for context in AllStoragePresentationContexts[:128]:
        entity.add_requested_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    write_study(tmp_path / "study", 2)
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert association.is_established
        assert len(association.accepted_contexts) == len(entity.requested_contexts) > 100
        association.release()
        # The largest that fits into the protocol: 128 contexts with 63 transfer syntaxes each.
        with socket.create_connection(("127.0.0.1", service.scp.port), timeout=30) as peer:
            peer.sendall(honest())
            assert peer.recv(16)[:1] == b"\x02"
        assert not any(name.startswith("cut.") for name in service.registry.tally.snapshot())


def test_an_object_beyond_the_limit_is_cut_and_leaves_nothing(tmp_path: Path, make_intake: MakeIntake) -> None:
    intake = make_intake(tmp_path / "data", max_instance_mib=1)
    large = tmp_path / "large"
    large.mkdir()
    (large / "1.dcm").write_bytes(file_bytes(ct_slice(1, "1.2.3", "1.2.3.4", size=1024)))
    entity = PromptEntity("LARGE")
    entity.add_requested_context(CTImageStorage, "1.2.840.10008.1.2.1")
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert "Status" not in association.send_c_store(str(large / "1.dcm"))
        # The peer hears of it before it is counted.
        wait_for(
            lambda: service.registry.tally.snapshot().get("cut.object_too_large") == 1, 30, "the cut to be counted"
        )
        assert intake.instances() == []
        assert intake.spooled() == []
        write_study(tmp_path / "small", 2)
        assert send_folder(tmp_path / "small", "127.0.0.1", service.scp.port, "HEIMDALLR").sent == 2


@LONG
def test_idle_sockets_do_not_keep_honest_senders_out(
    tmp_path: Path, make_intake: MakeIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = make_intake(tmp_path / "data", max_associations=8)
    with intake.listening() as service:
        idle = [socket.create_connection(("127.0.0.1", service.scp.port)) for _ in range(12)]
        try:
            time.sleep(0.3)
            assert echo(service.scp.port)
            # One that has sent half a header is no better than a silent one.
            idle[0].sendall(b"\x01\x00\x00")
            started = time.monotonic()
            idle[0].settimeout(6 * gate.ASSOCIATE_TIMEOUT_S)
            # The abort, if there is one, comes before the end of the stream.
            while idle[0].recv(64):
                pass
            assert time.monotonic() - started < 5 * gate.ASSOCIATE_TIMEOUT_S
        finally:
            for peer in idle:
                peer.close()


def test_a_slow_sender_is_cut(tmp_path: Path, make_near_intake: MakeIntake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "PDU_TIMEOUT_S", 1.0)
    monkeypatch.setattr(reader, "MESSAGE_GRACE_S", 1.0)
    intake = make_near_intake(tmp_path / "data")
    entity = PromptEntity("SLOW")
    entity.add_requested_context(Verification)
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        raw(association).sendall(struct.pack(">BBL", 4, 0, 1000) + b"\0" * 10)
        wait_for(lambda: service.registry.tally.snapshot().get("cut.slow_sender"), 30, "the cut")
        association.abort()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
        struct.pack(">BBL", 1, 0, 4) + b"\xff\xff\xff\xff",
        struct.pack(">BBL", 4, 0, 6) + b"\0" * 6,
        b"",
    ],
    ids=["http", "tls", "short associate", "data first", "nothing"],
)
def test_garbage_is_survived(tmp_path: Path, make_intake: MakeIntake, garbage: bytes) -> None:
    intake = make_intake(tmp_path / "data")
    with intake.listening() as service:
        with socket.create_connection(("127.0.0.1", service.scp.port)) as peer:
            peer.sendall(garbage)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(30)
            while peer.recv(1024):
                pass
        assert echo(service.scp.port)
