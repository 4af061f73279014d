"""What the C-STORE client does with several associations, with TLS, and with a peer that does not want it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLContext

import pytest
from pynetdicom.association import Association
from sqlmodel import col, select
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.catalog.tables import AssociationRow
from heimdallr_ray.clients import send, wording
from heimdallr_ray.clients.dimse import Peer, Refusal, Tls
from heimdallr_ray.clients.reports import address_seen_by
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.errors import BadSetting, NotReady
from tests.support.certificates import authority
from tests.support.freeport import free_port
from tests.support.intake import Intake, all_committed, dataset_bytes, sha256, wait_for, write_study


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


def command(folder: Path, port: int, *more: str) -> str:
    """What `heimdallr send` tells where its settings have this port, and no server that could be asked."""
    env = {"HEIMDALLR_DICOM_PORT": str(port), "HEIMDALLR_SERVER_PORT": str(free_port()), "HEIMDALLR_PROFILE": ""}
    done = CliRunner().invoke(cli.app, ["send", str(folder), *more], env={**env, "HEIMDALLR_DATA_DIR": str(folder)})
    assert done.exit_code == 1
    return done.output


def test_whether_the_listener_is_up_is_asked_only_where_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "PAUSE_LAST_S", send.PAUSE_FIRST_S)
    intake = Intake(tmp_path / "data", min_free_mib=1 << 40)
    write_study(tmp_path / "study", 2)
    with intake.listening() as service:
        said = command(tmp_path / "study", service.scp.port)
    assert "temporary congestion (the disk of the data folder is too full, `heimdallr doctor` tells)" in said
    assert "2 images are left" in said and "is the listener up" not in said
    said = command(tmp_path / "study", free_port())
    words = "cannot be reached: Connection refused (is the listener up? `heimdallr status` tells); 2 images are left"
    assert words in said


def test_our_own_listener_s_rule_is_named(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", allowed_calling_aes=("CT1", "CT2"))
    write_study(tmp_path / "study", 1)

    def explain(refusal: Refusal) -> str:
        return wording.rule_behind(refusal, intake.settings)

    with intake.listening() as service:
        port = service.scp.port
        with pytest.raises(BadSetting, match=r"\(setting allowed_calling_aes lets in CT1, CT2\)"):
            send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", explain=explain)
        with pytest.raises(BadSetting, match=r"\(the listener here is called HEIMDALLR, setting ae_title\)"):
            send_folder(tmp_path / "study", "127.0.0.1", port, "WRONG", "CT1", explain=explain)
        assert send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", "CT1").sent == 1


@pytest.mark.parametrize("tls", [None, Tls()])
def test_a_listener_that_does_not_let_our_address_in_names_the_setting(tmp_path: Path, tls: Tls | None) -> None:
    intake = Intake(tmp_path / "data", allowed_addresses=("10.1.2.0/24",))
    write_study(tmp_path / "study", 1)
    words = r"\(setting allowed_addresses does not hold 127\.0\.0\.1, from which we call"
    with intake.listening() as service, pytest.raises(NotReady, match=words):
        send_folder(
            tmp_path / "study",
            "127.0.0.1",
            service.scp.port,
            "HEIMDALLR",
            attempts=1,
            tls=tls,
            explain=lambda refusal: wording.rule_behind(
                refusal, intake.settings, secured=tls is not None, address=address_seen_by("127.0.0.1", 104)
            ),
        )


def all_open_before_the_first_image(monkeypatch: pytest.MonkeyPatch, associations: int) -> None:
    """On a busy machine one of them may have sent all that a test needs before the others begin."""
    opening, all_open = send.associate, threading.Barrier(associations, timeout=60)

    def associate(peer: Peer, contexts: Sequence[tuple[str, str]], tls: SSLContext | None) -> Association | Refusal:
        association = opening(peer, contexts, tls)
        all_open.wait()
        return association

    monkeypatch.setattr(send, "associate", associate)


@pytest.fixture
def interruptible() -> Generator[None]:
    """Ctrl-C raises here, also where the tests run in the background of a shell, which ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("associations", [1, 3])
def test_a_send_that_a_person_stops_is_no_whole_study(
    tmp_path: Path, associations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(tmp_path / "data")
    all_open_before_the_first_image(monkeypatch, associations)
    write_study(tmp_path / "study", 40)

    def stop(done: int, _files: int) -> None:
        if done == 5:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with intake.listening() as service:
        with pytest.raises(KeyboardInterrupt):
            send_folder(
                tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR", on_progress=stop,
                associations=associations,
            )  # fmt: skip
        rows = wait_for(lambda: _ended(intake, associations), 60, "the associations end")
        assert all_committed(service)
    assert {row.how for row in rows} <= {"aborted", "released"} and "aborted" in {row.how for row in rows}
    assert 5 <= len(intake.instances()) < 40


def _ended(intake: Intake, number: int) -> list[AssociationRow]:
    with intake.database.read() as session:
        rows = list(session.exec(select(AssociationRow).where(col(AssociationRow.closed_at).is_not(None))).all())
    return rows if len(rows) == number else []


def test_several_associations_share_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake(tmp_path / "data")
    all_open_before_the_first_image(monkeypatch, 4)
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
    assert report.associations == 4
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


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")
def test_a_certificate_that_the_listener_rejects_is_told_and_not_tried_again(tmp_path: Path) -> None:
    ours, strangers = authority(tmp_path / "ca"), authority(tmp_path / "other", "stranger")
    server, client, stranger = ours.issue("server"), ours.issue("client"), strangers.issue("client")
    write_study(tmp_path / "study", 2)
    intake = Intake(
        tmp_path / "data",
        dicom_tls="on",
        dicom_tls_certificate=server.certificate,
        dicom_tls_key=server.key,
        dicom_tls_ca=ours.certificate,
    )

    def send(tls: Tls, attempts: int = 5) -> int:
        certified = tls.certificate is not None
        return send_folder(
            tmp_path / "study", "127.0.0.1", service.scp.port, "HEIMDALLR", tls=tls, attempts=attempts,
            explain=lambda refusal: wording.rule_behind(refusal, intake.settings, secured=True, certified=certified),
        ).sent  # fmt: skip

    with intake.listening() as service:
        assert send(Tls(client.certificate, client.key, ours.certificate)) == 2
        for tls, words in (
            (Tls(stranger.certificate, stranger.key, ours.certificate), "unknown ca (setting dicom_tls_ca of the l"),
            (Tls(ca=ours.certificate), "certificate required (it wants one: --tls-certificate and --tls-key)"),
        ):
            # One that may pass by itself would be NotReady, after its attempts.
            with pytest.raises(BadSetting, match=re.escape(f"does not take our certificate: {words}")):
                send(tls)


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
