"""What the C-STORE client does with several associations, with TLS, and with a peer that does not want it."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heimdallr_ray.clients import wording
from heimdallr_ray.clients.dimse import Refusal, Tls
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.errors import BadSetting, NotReady
from tests.support.certificates import authority
from tests.support.intake import Intake, all_committed, dataset_bytes, sha256, write_study
from tests.support.orthanc import free_port


@contextmanager
def answering(*answers: bytes) -> Generator[int]:
    """A peer that reads a request, says the next of `answers` (the last one for good) and closes; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stopping = threading.Event()

    def serve() -> None:
        said = 0
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(1 << 16)
                    connection.sendall(answers[min(said, len(answers) - 1)])
                    # What is closed with bytes unread is reset, and the answer with it.
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    pass
            said += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stopping.set()
        thread.join(10)
        listener.close()


def rejection(result: int, source: int, diagnostic: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
    return struct.pack(">BBIBBBB", 3, 0, 4, 0, result, source, diagnostic)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (rejection(1, 1, 7), BadSetting, "rejects the association: called AE title not recognised"),
        (rejection(1, 1, 3), BadSetting, "rejects the association: calling AE title not recognised"),
        (rejection(1, 2, 2), BadSetting, "rejects the association: protocol version not supported"),
        (rejection(2, 3, 2), NotReady, "rejects the association: local limit exceeded; 2 images are left"),
        (rejection(2, 3, 1), NotReady, "rejects the association: temporary congestion; 2 images are left"),
        (b"", NotReady, "closes the connection without an answer"),
    ],
)
def test_the_peer_s_reason_is_told(tmp_path: Path, answer: bytes, error: type[Exception], words: str) -> None:
    write_study(tmp_path / "study", 2)
    with answering(answer) as port, pytest.raises(error, match=words):
        send_folder(tmp_path / "study", "127.0.0.1", port, "ANY", attempts=2)


def test_a_peer_that_is_not_there_is_told_apart(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 1)
    with pytest.raises(NotReady, match="cannot be reached: Connection refused; 1 image is left"):
        send_folder(tmp_path / "study", "127.0.0.1", free_port(), "ANY", attempts=1)


def test_our_own_listener_s_rule_is_named(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", allowed_calling_aes=("CT1", "CT2"))
    write_study(tmp_path / "study", 1)

    def explain(refusal: Refusal) -> str:
        return wording.local_rule(refusal, intake.settings)

    with intake.listening() as service:
        port = service.scp.port
        with pytest.raises(BadSetting, match=r"\(setting allowed_calling_aes lets in CT1, CT2\)"):
            send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", explain=explain)
        with pytest.raises(BadSetting, match=r"\(the listener here is called HEIMDALLR, setting ae_title\)"):
            send_folder(tmp_path / "study", "127.0.0.1", port, "WRONG", "CT1", explain=explain)
        assert send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", "CT1").sent == 1


def test_several_associations_share_the_files(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    paths = write_study(tmp_path / "study", 40)
    images: list[tuple[int, int]] = []
    sizes: list[tuple[int, int]] = []
    with intake.listening() as service:
        report = send_folder(
            tmp_path / "study",
            "127.0.0.1",
            service.scp.port,
            "HEIMDALLR",
            associations=4,
            on_progress=lambda *now: images.append(now),
            on_bytes=lambda *now: sizes.append(now),
        )
        assert all_committed(service)
    assert (report.sent, report.failed) == (40, 0)
    assert 1 < report.associations <= 4
    assert images == [(done, 40) for done in range(1, 41)]
    whole = sum(len(dataset_bytes(path.read_bytes())) for path in paths)
    assert sizes[-1] == (whole, whole) == (report.bytes_sent, whole)
    assert set(intake.stored().values()) == {sha256(dataset_bytes(path.read_bytes())) for path in paths}


def test_a_peer_that_lets_in_fewer_gets_all_files_by_those(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", max_associations=1)
    write_study(tmp_path / "study", 30)
    with intake.listening() as service:
        report = send_folder(tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR", associations=3, attempts=1)
    assert (report.sent, report.failed) == (30, 0)


@contextmanager
def storescp(folder: Path, *options: str) -> Generator[int]:
    """dcmtk's storage server; yields its port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    peer = subprocess.Popen(
        ["/usr/bin/storescp", "+B", *options, "-od", str(folder), str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert peer.poll() is None and time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        peer.terminate()
        peer.wait(10)


@pytest.mark.peers("storescp")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    ours, strangers = authority(tmp_path / "ca"), authority(tmp_path / "other", "stranger")
    server, client = ours.issue("server"), ours.issue("client")
    paths = write_study(tmp_path / "study", 4)
    received = tmp_path / "received"
    secure = ("+tls", str(server.key), str(server.certificate), "+cf", str(ours.certificate))

    def send(tls: Tls | None, port: int) -> int:
        return send_folder(tmp_path / "study", "127.0.0.1", port, "ANY", tls=tls, attempts=1, associations=2).sent

    with storescp(received, *secure) as port:
        assert send(Tls(client.certificate, client.key, ours.certificate), port) == 4
        with pytest.raises(BadSetting, match=r"TLS could not be agreed on: (.*self.signed|unable to get local issuer)"):
            send(Tls(client.certificate, client.key, strangers.certificate), port)
        with pytest.raises(BadSetting, match="TLS could not be agreed on: hostname mismatch"):
            send(Tls(client.certificate, client.key, ours.certificate, "pacs.example"), port)
        assert send(Tls(client.certificate, client.key, ours.certificate, "localhost"), port) == 4
        for unproven in (Tls(ca=ours.certificate), None):
            with pytest.raises((NotReady, BadSetting)):
                send(unproven, port)
    assert {sha256(dataset_bytes(path.read_bytes())) for path in received.iterdir()} == {
        sha256(dataset_bytes(path.read_bytes())) for path in paths
    }
    with storescp(tmp_path / "plain") as port, pytest.raises((BadSetting, NotReady)):
        send(Tls(ca=ours.certificate), port)


def test_files_that_are_no_certificates_are_told(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 1)
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(BadSetting, match="a TLS key needs its certificate"):
        Tls(key=tmp_path / "key.pem").context()
    for wrong in (Tls(ca=tmp_path / "key.pem"), Tls(tmp_path / "key.pem"), Tls(ca=tmp_path / "none.pem")):
        with pytest.raises(BadSetting, match="cannot be used"):
            wrong.context()
    with pytest.raises(BadSetting, match="associations must be 1 to 16"):
        send_folder(tmp_path / "study", "127.0.0.1", 1, "ANY", associations=17)
