"""Whoever is refused or cut off finds the reason in the log: one line with a name, a reason and an address."""

from __future__ import annotations

import logging
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.certificates import authority
from tests.support.intake import Intake, wait_for
from tests.support.wirepeer import CT, EXPLICIT, WirePeer, associate_rq

REQUEST = associate_rq({1: (CT, (EXPLICIT,))})


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[str, object]]:
    """Reason and address of each line of this event."""
    found = [vars(record) for record in caplog.records if record.getMessage() == event]
    return [(str(fields.get("reason", "")), fields.get("address")) for fields in found]


def say(port: int, content: bytes) -> None:
    """The content, until the listener hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        peer.sendall(content)
        with suppress(ConnectionResetError):
            while peer.recv(4096):
                pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (struct.pack(">BBI", 0x01, 0, 2 << 20), "pdu_too_long"),
        (struct.pack(">BBI", 0x09, 0, 4) + bytes(4), "unexpected_pdu"),
        (struct.pack(">BBI", 0x01, 0, 68) + bytes(68), "malformed_request"),
        (REQUEST + struct.pack(">BBI", 0x04, 0, 0xFFFFFFFF), "pdu_too_long"),
        (REQUEST + struct.pack(">BBI", 0x04, 0, 6) + struct.pack(">IBB", 99, 1, 3), "malformed_message"),
    ],
)
def test_a_connection_that_is_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    with Intake(tmp_path / "data").listening() as service:
        say(service.scp.port, content)
        wait_for(lambda: told(caplog, "connection.cut") == [(reason, "127.0.0.1")], 30, f"the line that says {reason}")


def test_an_object_that_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Intake(tmp_path / "data").listening() as service:
        with WirePeer(service.scp.port) as peer:
            assert peer.store([bytes(4096)]) != 0
        wait_for(lambda: len(told(caplog, "store.refused")) == 1, 30, "the line of the refused object")
    ((reason, address),) = told(caplog, "store.refused")
    assert "identifying" in reason and address == "127.0.0.1"


def test_a_peer_that_cannot_speak_tls_is_told_by_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The connection that is refused; what was wrong with its handshake is in the receiving process's line."""
    ours = authority(tmp_path, "hospital")
    server = ours.issue("listener")
    intake = Intake(
        tmp_path / "data",
        dicom_tls="on",
        dicom_tls_certificate=server.certificate,
        dicom_tls_key=server.key,
        dicom_tls_ca=ours.certificate,
        listener_processes=0,
    )
    caplog.set_level(logging.INFO)
    with intake.listening() as service:
        say(service.scp.port, REQUEST)
        wait_for(lambda: told(caplog, "connection.refused") == [("tls", "127.0.0.1")], 30, "the line of the refusal")
    ((reason, address),) = told(caplog, "connection.tls_failed")
    assert reason and address == "127.0.0.1"
