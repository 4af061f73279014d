"""Storage commitment against pynetdicom as the peer: asked over one association, told over another."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider

from heimdallr_ray.catalog.commitments import Reference, outbox
from heimdallr_ray.catalog.tables import CommitmentRow
from heimdallr_ray.config import Peer
from heimdallr_ray.listener import commitment_report
from heimdallr_ray.listener.commitment import MAX_REFERENCES
from heimdallr_ray.listener.connecting import Told
from heimdallr_ray.listener.wire.tls import server_context
from tests.support.certificates import authority
from tests.support.commitment import (
    CT,
    PEER_AE,
    ReportPeer,
    ask,
    report_peer,
    request_dataset,
    rows,
)
from tests.support.freeport import free_port
from tests.support.intake import Intake, storescu, wait_for, write_study

STUDY = "1.2.826.0.1.3680043.9.9.16"
TRANSACTION = "1.2.826.0.1.3680043.9.9.16.900"


@pytest.fixture
def peer() -> Generator[ReportPeer]:
    with report_peer() as found:
        yield found


def intake_of(folder: Path, peer: ReportPeer, **changes: object) -> Intake:
    return Intake(folder / "data", commitment_peers=[f"{peer.ae_title}=127.0.0.1:{peer.port}"], **changes)


def references(count: int, sop_class: str = CT) -> list[tuple[str, str]]:
    return [(sop_class, f"{STUDY}.7.{index}") for index in range(1, count + 1)]


@pytest.mark.peers("storescu")
def test_what_was_stored_is_committed_on_an_association_of_our_own(tmp_path: Path, peer: ReportPeer) -> None:
    intake = intake_of(tmp_path, peer)
    with intake.listening() as service:
        storescu(service.scp.port, write_study(tmp_path / "files", 5, STUDY))
        assert ask(service.scp.port, request_dataset(TRANSACTION, references(5))) == 0x0000
        told = wait_for(lambda: peer.told, 20, "a report")[0]
        wait_for(lambda: rows(intake.database)[0].state == "told", 10, "the row says so")
        assert service.status().healthy
    assert (told.event_type, told.transaction_uid, told.calling) == (1, TRANSACTION, "HEIMDALLR")
    assert sorted(told.committed) == sorted(uid for _, uid in references(5)) and told.failed == {}
    row = rows(intake.database)[0]
    assert (row.n_items, row.n_failed, row.times_asked, row.calling_ae) == (5, 0, 1, PEER_AE)
    assert row.address == "127.0.0.1" and row.association_id


def test_requests_that_cannot_be_answered_are_refused_with_their_status(
    tmp_path: Path, peer: ReportPeer, caplog: pytest.LogCaptureFixture
) -> None:
    intake = intake_of(tmp_path, peer)
    good = request_dataset(TRANSACTION, references(1))
    with intake.listening() as service, caplog.at_level("WARNING"):
        port = service.scp.port
        assert ask(port, good, calling="STRANGER") == 0x0124
        assert ask(port, good, action_type=2) == 0x0123
        assert ask(port, good, instance_uid="1.2.840.10008.1.20.1.9") == 0x0112
        assert ask(port, request_dataset(TRANSACTION, [])) == 0x0115
        assert ask(port, request_dataset(TRANSACTION, references(MAX_REFERENCES + 1))) == 0x0213
    assert rows(intake.database) == []
    refused = [record for record in caplog.records if record.message == "commitment.refused"]
    assert "commitment_peers" in refused[0].__dict__["reason"]
    assert [record.__dict__["status"] for record in refused] == ["0x0124", "0x0123", "0x0112", "0x0115", "0x0213"]


@pytest.mark.peers("storescu")
def test_a_transaction_that_is_repeated_is_one_request(tmp_path: Path, peer: ReportPeer) -> None:
    intake = intake_of(tmp_path, peer)
    good = request_dataset(TRANSACTION, references(3))
    with intake.listening() as service:
        port = service.scp.port
        storescu(port, write_study(tmp_path / "files", 3, STUDY))
        assert [ask(port, good) for _ in range(3)] == [0x0000] * 3
        wait_for(lambda: rows(intake.database)[0].state == "told", 20, "a report")
        before = len(peer.told)
        assert ask(port, request_dataset(TRANSACTION, references(2))) == 0x0115
        assert ask(port, good) == 0x0000
        wait_for(lambda: len(peer.told) > before, 20, "who asks again is told again")
        wait_for(lambda: rows(intake.database)[0].state == "told", 20, "and that is the end")
    assert len(rows(intake.database)) == 1 and rows(intake.database)[0].times_asked == 4
    assert {(told.transaction_uid, len(told.committed)) for told in peer.told} == {(TRANSACTION, 3)}
    assert before <= 3 and len(peer.told) <= 4


@pytest.mark.peers("storescu")
def test_a_peer_that_was_down_is_told_when_it_is_back(tmp_path: Path) -> None:
    peer = ReportPeer()
    peer.start()
    peer.stop()
    intake = intake_of(tmp_path, peer)
    try:
        with intake.listening() as service:
            storescu(service.scp.port, write_study(tmp_path / "files", 1, STUDY))
            assert ask(service.scp.port, request_dataset(TRANSACTION, references(1))) == 0x0000
            wait_for(lambda: rows(intake.database)[0].attempt == 1, 30, "a failure")
            assert rows(intake.database)[0].error_code == "unreachable"
            with intake.database.read() as session:
                assert (outbox(session).depth, outbox(session).failing) == (1, 1)
            peer.start(peer.port)
            told = wait_for(lambda: peer.told, 30, "a report")[0]
            wait_for(lambda: rows(intake.database)[0].state == "told", 10, "the row says so")
    finally:
        peer.stop()
    assert told.event_type == 1 and len(peer.told) == 1


@pytest.mark.peers("storescu")
def test_a_peer_that_answers_no_role_selection_is_told_all_the_same(tmp_path: Path) -> None:
    with report_peer(role=False) as peer:
        intake = intake_of(tmp_path, peer)
        with intake.listening() as service:
            storescu(service.scp.port, write_study(tmp_path / "files", 1, STUDY))
            assert ask(service.scp.port, request_dataset(TRANSACTION, references(1))) == 0x0000
            assert wait_for(lambda: peer.told, 20, "a report")[0].event_type == 1


def test_pynetdicom_s_own_thread_does_not_take_the_answer_to_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sign that it rests may be old; here it always is, and the peer answers before we ask for its answer."""
    take = DIMSEServiceProvider.get_msg

    def late(self: Any, block: bool = False) -> Any:
        if self.assoc.is_requestor:
            time.sleep(0.6 if block else 0.2)
        return take(self, block)

    associate = commitment_report.ReportSender._associate

    def under_way(self: commitment_report.ReportSender, peer: Peer) -> tuple[Association, Told]:
        made = associate(self, peer)
        time.sleep(0.1)
        return made

    monkeypatch.setattr(commitment_report.ReportSender, "_associate", under_way)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", late)
    monkeypatch.setattr(Association, "_is_paused", property(lambda _: True, lambda *_: None), raising=False)
    monkeypatch.setattr(commitment_report, "ANSWER_TIMEOUT_S", 3.0)
    send = commitment_report.ReportSender("HEIMDALLR")
    with report_peer() as peer:
        report = commitment_report.Report(TRANSACTION, (Reference(CT, f"{STUDY}.7.1"),), ())
        outcomes = [send(Peer(peer.ae_title, "127.0.0.1", peer.port, tls=False), report) for _ in range(2)]
    assert [outcome.delivery for outcome in outcomes] == [commitment_report.Delivery.TOLD] * 2, outcomes


@pytest.mark.parametrize("tls", [False, True])
def test_a_peer_that_is_not_there_is_told_as_that(tls: bool) -> None:
    report = commitment_report.Report(TRANSACTION, (Reference(CT, f"{STUDY}.7.1"),), ())
    sender = commitment_report.ReportSender("HEIMDALLR", ssl.create_default_context)
    at = free_port()
    outcome = sender(Peer("NOBODY", "127.0.0.1", at, tls=tls), report)
    assert outcome.delivery is commitment_report.Delivery.UNREACHABLE
    assert outcome.detail == f"127.0.0.1:{at} cannot be reached: Connection refused"


def test_a_peer_that_hangs_does_not_keep_the_listener_from_stopping(tmp_path: Path) -> None:
    let_go = threading.Event()

    def hang(_: object) -> int:
        let_go.wait(60)
        return 0

    with report_peer(answer=hang) as peer, ExitStack() as at_the_end:
        at_the_end.callback(let_go.set)
        intake = intake_of(tmp_path, peer)
        with intake.listening() as service:
            service.commitments._check._missing_grace_s = 0
            assert ask(service.scp.port, request_dataset(TRANSACTION, references(1))) == 0x0000
            wait_for(lambda: peer.associations, 30, "the peer is called")
            started = time.monotonic()
        assert time.monotonic() - started < 40
        assert rows(intake.database)[0].state == "waiting"


def tried(intake: Intake) -> CommitmentRow | None:
    """The request, once its report has got through or failed."""
    return next((row for row in rows(intake.database) if row.attempt or row.ended_at), None)


@pytest.mark.peers("storescu", "openssl")
def test_a_peer_that_wants_tls_is_called_by_tls_and_must_be_who_it_is(tmp_path: Path) -> None:
    ours, strangers = authority(tmp_path / "ours"), authority(tmp_path / "strangers", "stranger")
    own = ours.issue("heimdallr")
    for signed_by, expected in ((ours, "told"), (strangers, "waiting")):
        theirs = signed_by.issue("sender")
        with report_peer(tls=server_context(theirs.certificate, theirs.key, ours.certificate)) as peer:
            intake = Intake(
                tmp_path / expected,
                commitment_peers=[f"{peer.ae_title}=tls:127.0.0.1:{peer.port}"],
                dicom_tls_certificate=own.certificate,
                dicom_tls_key=own.key,
                dicom_tls_ca=ours.certificate,
            )
            with intake.listening() as service:
                storescu(service.scp.port, write_study(tmp_path / "files", 1, STUDY))
                assert ask(service.scp.port, request_dataset(TRANSACTION, references(1))) == 0x0000
                row = wait_for(partial(tried, intake), 30, "an end")
        assert (row.state, row.error_code, len(peer.told)) == (
            (expected, None, 1) if expected == "told" else (expected, "unreachable", 0)
        )
