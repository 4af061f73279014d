"""`heimdallr send --commit`: only what the peer has promised to keep counts as safe."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.sop_class import (
    CTImageStorage,  # pyright: ignore[reportAttributeAccessIssue]
    StorageCommitmentPushModel,  # pyright: ignore[reportAttributeAccessIssue]
    StorageCommitmentPushModelInstance,
)
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.clients import reports as reports_module
from heimdallr_ray.clients.commit import Commitment, Reports, commit_sent
from heimdallr_ray.clients.dimse import Peer, Tls
from heimdallr_ray.clients.reports import MAX_HANDSHAKES
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.errors import BadSetting
from heimdallr_ray.listener.gate import ASSOCIATE_TIMEOUT_S
from tests.support.certificates import authority
from tests.support.commitment import flip_a_bit, report_information, tell
from tests.support.freeport import free_port, free_ports
from tests.support.intake import Intake, all_committed, wait_for, write_study
from tests.support.orthanc import orthanc

STUDY = "1.2.826.0.1.3680043.9.9.18"
OURS = "HEIMDALLR_SCU"
SILENT = 12


def sent(folder: Path, port: int, *, wait_s: float, at: int | None = None, called: str = "HEIMDALLR") -> Commitment:
    """The images of `folder` are sent, and commitment is asked for."""
    peer, reports = Peer("127.0.0.1", port, called, OURS), Reports()
    report = send_folder(folder, peer.host, peer.port, peer.called_ae)
    assert report.failed == 0
    if at is None:
        return commit_sent(peer, report.files, reports=reports, elsewhere=False, wait_s=wait_s)
    with reports.at_port(peer, at):
        return commit_sent(peer, report.files, reports=reports, elsewhere=True, wait_s=wait_s)


def test_our_own_listener_promises_on_another_association(tmp_path: Path) -> None:
    port = free_port()
    intake = Intake(tmp_path / "data", commitment_peers=[f"{OURS}=127.0.0.1:{port}"])
    write_study(tmp_path / "study", 5, STUDY)
    with intake.listening() as service:
        assert sent(tmp_path / "study", service.scp.port, wait_s=60, at=port) == Commitment(5, ())
        peer, reports = Peer("127.0.0.1", service.scp.port, "HEIMDALLR", OURS), Reports()
        report = send_folder(tmp_path / "study", peer.host, peer.port, peer.called_ae)
        # What is sent again mends what is damaged, until it is committed.
        assert all_committed(service)
        flip_a_bit(intake, f"{STUDY}.7.3")
        with reports.at_port(peer, port):
            found = commit_sent(peer, report.files, reports=reports, elsewhere=True, wait_s=60)
    assert (found.committed, found.whole) == (4, False)
    (failure,) = found.failures
    assert failure.sop_uid == f"{STUDY}.7.3" and Path(failure.path).name == "0003.dcm"
    assert "has it and cannot read it" in failure.reason and "0x0110" in failure.reason


def test_a_listener_that_does_not_know_where_to_report_says_so(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    write_study(tmp_path / "study", 2, STUDY)
    with intake.listening() as service:
        found = sent(tmp_path / "study", service.scp.port, wait_s=60)
    assert found.committed == 0
    assert {one.reason for one in found.failures} == {
        "the peer does not allow it: it may not know where to report to (a heimdallr: setting commitment_peers) "
        "(status 0x0124)"
    }


class Archive:
    """A peer that stores, and answers a request for commitment in its own way."""

    def __init__(self, on_asked: Callable[[Archive, evt.Event], int], *, offers: bool = True) -> None:
        self.asked: list[Dataset] = []
        self._on_asked = on_asked
        self._offers = offers
        self.threads: list[threading.Thread] = []

    def later(self, what: Callable[[], object]) -> None:
        """`what` is done once the request has been answered."""

        def do() -> None:
            time.sleep(0.3)
            what()

        self.threads.append(threading.Thread(target=do))
        self.threads[-1].start()

    @contextmanager
    def listening(self) -> Generator[int]:
        entity = ApplicationEntity("ARCHIVE")
        entity.add_supported_context(CTImageStorage)
        if self._offers:
            entity.add_supported_context(StorageCommitmentPushModel)

        def asked(event: evt.Event) -> tuple[int, None]:
            self.asked.append(event.action_information)
            return self._on_asked(self, event), None

        handlers: list[Any] = [(evt.EVT_C_STORE, lambda _: 0), (evt.EVT_N_ACTION, asked)]
        server = cast(Any, entity).start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        try:
            yield int(server.server_address[1])
        finally:
            for thread in self.threads:
                thread.join(30)
            server.shutdown()
            server.server_close()


def test_a_peer_that_reports_on_the_same_association(tmp_path: Path) -> None:
    """All but one, which has another reason, and one that the report does not name."""

    def report(archive: Archive, event: evt.Event) -> int:
        asked = archive.asked[-1]
        items = list(asked.ReferencedSOPSequence)
        information = report_information(str(asked.TransactionUID), items[:3], [(items[3], 0x0112)])
        association = cast(Any, event.assoc)
        archive.later(
            lambda: association.send_n_event_report(
                information, 2, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
        )
        return 0

    write_study(tmp_path / "study", 5, STUDY)
    with Archive(report).listening() as port:
        found = sent(tmp_path / "study", port, wait_s=30)
    assert found.committed == 3
    assert [(one.sop_uid[-1], one.reason) for one in found.failures] == [
        ("4", "the peer does not have it (reason 0x0112)"),
        ("5", "the peer's report does not name it"),
    ]


def test_who_tells_nothing_promises_nothing_and_the_wait_is_bounded(tmp_path: Path) -> None:
    def part(archive: Archive, event: evt.Event) -> int:
        archive.later(event.assoc.abort)
        return 0

    write_study(tmp_path / "study", 1, STUDY)
    answers: dict[str, Archive] = {
        "no report within 1 s; it may want --commit-port": Archive(lambda *_: 0),
        "the peer ended the association without a report; it may want --commit-port": Archive(part),
        "the peer cannot take the request now (status 0x0110)": Archive(lambda *_: 0x0110),
        "not asked for: the peer does not offer storage commitment": Archive(lambda *_: 0, offers=False),
    }
    for words, archive in answers.items():
        with archive.listening() as port:
            began = time.monotonic()
            found = sent(tmp_path / "study", port, wait_s=1)
        assert (found.committed, [one.reason for one in found.failures]) == (0, [words])
        assert time.monotonic() - began < 20
    assert sent_nothing(tmp_path).failures[0].reason.startswith("not asked for: the peer cannot be reached")


def sent_nothing(folder: Path) -> Commitment:
    """Commitment of a peer that has gone since it got the images."""
    with Archive(lambda *_: 0).listening() as port:
        report = send_folder(folder / "study", "127.0.0.1", port, "ARCHIVE")
    peer = Peer("127.0.0.1", port, "ARCHIVE", OURS)
    return commit_sent(peer, report.files, reports=Reports(), elsewhere=False, wait_s=1)


def test_what_strangers_report_is_not_believed_and_their_lies_are_cut(tmp_path: Path) -> None:
    at, statuses = free_port(), list[int | None]()

    def strangers(archive: Archive, _event: evt.Event) -> int:
        asked = archive.asked[-1]
        items = list(asked.ReferencedSOPSequence)

        def lie() -> None:
            statuses.append(tell(at, OURS, report_information("1.2.3.4", items, [])))
            assert tell(at, "ANOTHER", report_information(str(asked.TransactionUID), items, [])) is None
            with socket.create_connection(("127.0.0.1", at)) as peer:
                peer.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
                peer.settimeout(10)
                while peer.recv(64):
                    pass
            other = Dataset()
            other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = "1.2.3", "1.2.3.4.5"
            statuses.append(tell(at, OURS, report_information(str(asked.TransactionUID), [other], [])))

        archive.later(lie)
        return 0

    write_study(tmp_path / "study", 1, STUDY)
    archive = Archive(strangers)
    with archive.listening() as port:
        found = sent(tmp_path / "study", port, wait_s=30, at=at)
    assert statuses == [0x0110, 0x0000]
    assert [one.reason for one in found.failures] == ["the peer's report does not name it"]


def test_a_port_that_is_taken_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = int(taken.getsockname()[1])
        with pytest.raises(BadSetting, match=f"cannot listen on 127.0.0.1:{at} for reports"):
            Reports().at_port(Peer("127.0.0.1", 9, "ANY", OURS), at).__enter__()


def test_reports_by_tls_come_from_peers_with_a_certificate_only(tmp_path: Path) -> None:
    ours = authority(tmp_path / "ca")
    server, client = ours.issue("server"), ours.issue("client")
    at = free_port()
    intake = Intake(
        tmp_path / "data",
        commitment_peers=[f"{OURS}=tls:127.0.0.1:{at}"],
        dicom_tls="on",
        dicom_tls_certificate=server.certificate,
        dicom_tls_key=server.key,
        dicom_tls_ca=ours.certificate,
    )
    write_study(tmp_path / "study", 2, STUDY)
    reports, tls = Reports(), Tls(client.certificate, client.key, ours.certificate)
    with intake.listening() as service:
        peer = Peer("127.0.0.1", service.scp.port, "HEIMDALLR", OURS, tls)
        sent_by_tls = send_folder(tmp_path / "study", peer.host, peer.port, peer.called_ae, tls=tls)
        with reports.at_port(peer, at), ExitStack() as silent:
            # Those who say nothing, more than there may be associations, keep nobody waiting for their handshake.
            for _ in range(SILENT):
                silent.enter_context(socket.create_connection(("127.0.0.1", at)))
            began = time.monotonic()
            found = commit_sent(peer, sent_by_tls.files, reports=reports, elsewhere=True, wait_s=60)
            took_s = time.monotonic() - began
    assert found == Commitment(2, ())
    assert took_s < SILENT * ASSOCIATE_TIMEOUT_S / 3, took_s


def test_handshakes_at_once_are_bounded_in_number_and_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reports_module, "ASSOCIATE_TIMEOUT_S", 2.0)
    ours = authority(tmp_path / "ca")
    client = ours.issue("client")
    peer = Peer("127.0.0.1", 9, "ANY", OURS, Tls(client.certificate, client.key, ours.certificate))
    with Reports().at_port(peer, 0) as port, ExitStack() as silent, caplog.at_level("WARNING"):
        for _ in range(MAX_HANDSHAKES):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        one_more = silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1.5))
        assert ended(one_more), "it is closed before any time has passed"
        wait_for(lambda: reasons(caplog).count("tls") == MAX_HANDSHAKES, 30, "the silent to be cut off")
        # A byte now and then gains nothing; the header of a handshake record of 16 kB announces more (RFC 8446 5.1).
        slow = silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.2))
        slow.sendall(b"\x16\x03\x01\x40\x00")
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 20:
                slow.sendall(b"\x01")
                time.sleep(0.2)
        # Whoever reads garbage would have ended it at once, and a limit of each read never.
        assert 1.5 < time.monotonic() - began < 10
    assert reasons(caplog).count("too_many_connections") == 1


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(one.__dict__["reason"]) for one in caplog.records if one.message in ("reports.cut", "reports.refused")]


def _command(folder: Path, port: int, *more: str) -> tuple[int, str]:
    words = ["send", str(folder), "--port", str(port), "--called", "HEIMDALLR", *more]
    done = CliRunner().invoke(cli.app, words, env={"HEIMDALLR_DATA_DIR": str(folder / "x"), "HEIMDALLR_PROFILE": ""})
    return done.exit_code, done.output


def test_the_command_s_status_says_whether_every_image_is_safe(tmp_path: Path) -> None:
    at = free_port()
    intake = Intake(tmp_path / "data", commitment_peers=[f"{OURS}=127.0.0.1:{at}"])
    write_study(tmp_path / "study", 3, STUDY)
    write_study(tmp_path / "other", 2, f"{STUDY}.2")
    with intake.listening() as service:
        port = service.scp.port
        status, said = _command(tmp_path / "study", port, "--commit-port", str(at))
        assert status == 0 and "safe     3 images: the peer has promised to keep them" in said
        # A heimdallr never reports on the association on which it was asked: that is said before anything is sent.
        count = len(intake.stored())
        status, said = _command(tmp_path / "other", port, "--commit")
        assert status == 1 and "nothing was sent. Give --commit-port PORT" in said
        assert 'commitment_peers = ["HEIMDALLR_SCU=OUR_ADDRESS:PORT"]' in said
        assert len(intake.stored()) == count == 3


def test_the_port_that_the_settings_have_for_reports_is_named(tmp_path: Path) -> None:
    at, other = free_ports(2)
    peers = [f"{OURS}=127.0.0.1:{at}"]
    intake = Intake(tmp_path / "data", commitment_peers=peers)
    write_study(tmp_path / "study", 2, STUDY)

    def said(port: int, *more: str) -> tuple[int, str]:
        env = {
            "HEIMDALLR_DATA_DIR": str(tmp_path / "x"),
            "HEIMDALLR_PROFILE": "",
            "HEIMDALLR_DICOM_PORT": str(port),
            "HEIMDALLR_SERVER_PORT": str(free_port()),
            "HEIMDALLR_COMMITMENT_PEERS": peers[0],
        }
        done = CliRunner().invoke(cli.app, ["send", str(tmp_path / "study"), *more], env=env)
        return done.exit_code, done.output

    with intake.listening() as service:
        port = service.scp.port
        status, told = said(port, "--commit")
        assert status == 1
        assert f"Your settings have {OURS}=127.0.0.1:{at}: give --commit-port {at}" in told
        assert "commitment_peers" not in told and not intake.stored()
        # Settings that are not those of the peer say nothing of where it reports to.
        assert "OUR_ADDRESS:PORT" in said(free_port(), "--commit", "--port", str(port))[1]
        status, told = said(port, "--commit-port", str(other), "--commit-wait", "1")
        assert status == 1 and "NOT safe 2 images" in told
        assert (
            f"your settings have {OURS}=127.0.0.1:{at}: the listener here reports to port {at}, and nobody to "
            f"--commit-port {other}"
        ) in told
        status, told = said(port, "--commit-port", str(at))
        assert status == 0 and "safe     2 images" in told and "your settings" not in told


def test_a_peer_that_reports_nothing_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 3, STUDY)
    with Archive(lambda archive, event: 0).listening() as port:
        words = ("--called", "ARCHIVE", "--commit", "--commit-wait")
        status, said = _command(tmp_path / "study", port, *words, "1")
        assert status == 1
        assert "NOT safe 3 images: do not delete them" in said and "  3 images: no report within 1 s" in said
        assert said.count("no report within 1 s") == 1 and "0002.dcm\n" in said
        status, said = _command(tmp_path / "study", port, *words, "2", "--json")
        assert status == 1
        commitment = json.loads(said)["commitment"]
        assert commitment["committed"] == 0 and len(commitment["failures"]) == 3
        assert "--commit-port" in commitment["failures"][0]["reason"]


@pytest.mark.peers("Orthanc")
def test_orthanc_promises_what_it_has(tmp_path: Path) -> None:
    at = free_port()
    us = {"AET": OURS, "Host": "127.0.0.1", "Port": at, "AllowStorageCommitment": True}
    write_study(tmp_path / "study", 3, STUDY, size=16)
    with orthanc(tmp_path / "orthanc", {"us": us}) as server:
        found = sent(tmp_path / "study", server.dicom_port, wait_s=60, at=at, called=server.aet)
        assert found == Commitment(3, ())
        peer = Peer("127.0.0.1", server.dicom_port, server.aet, OURS)
        report = send_folder(tmp_path / "study", peer.host, peer.port, peer.called_ae)
        server.client.delete("/instances/" + server.get("/instances")[0])
        reports = Reports()
        with reports.at_port(peer, at):
            found = commit_sent(peer, report.files, reports=reports, elsewhere=True, wait_s=60)
    assert found.committed == 2
    assert [one.reason for one in found.failures] == ["the peer does not have it (reason 0x0112)"]
