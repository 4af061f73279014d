"""Receiving processes that are killed or hang: nothing acknowledged is lost, and others take their place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import psutil
import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlmodel import select

from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.catalog.tables import AssociationRow
from heimdallr_ray.clients.send import SendReport, send_folder
from heimdallr_ray.errors import NotReady
from heimdallr_ray.listener import service as service_module
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.listener.spool import Spool
from heimdallr_ray.listener.wire import child, pool, server
from heimdallr_ray.listener.wire.messages import Channel
from heimdallr_ray.listener.wire.pool import ReceivingProcesses
from heimdallr_ray.listener.wire.server import WireScp
from tests.support.intake import (
    Intake,
    all_committed,
    ct_slice,
    dataset_bytes,
    file_bytes,
    sha256,
    wait_for,
    write_study,
)
from tests.support.wirepeer import Gone, WirePeer, echoes

IMAGES = 80


def processes(service: ListenerService) -> ReceivingProcesses:
    return cast(ReceivingProcesses, cast(WireScp, service.scp)._serving)


def digests(paths: list[Path]) -> dict[str, str]:
    return {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes()))
        for path in paths
    }


def test_a_stop_ends_also_the_process_that_is_just_starting(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", listener_processes=1)
    with intake.listening() as service:
        (first,) = processes(service).pids
        os.kill(first, signal.SIGKILL)
        started = wait_for(lambda: [one for one in receivers() if one.pid != first], 30, "another process")
    assert started
    assert not any(one.is_running() for one in started)
    assert not receivers()


@pytest.mark.parametrize("ends", [1, 2])
def test_a_listener_whose_receiving_processes_end_before_they_serve_does_not_start(
    tmp_path: Path, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that the operating system kills says nothing; the port must not open with nobody, or too few, behind it."""
    intake = Intake(tmp_path / "data", listener_processes=2)
    make, made = ReceivingProcesses._process, list[int]()

    def killed(serving: ReceivingProcesses) -> tuple[subprocess.Popen[bytes], Channel]:
        process, channel = make(serving)
        made.append(process.pid)
        if len(made) <= ends:
            process.kill()
        return process, channel

    monkeypatch.setattr(ReceivingProcesses, "_process", killed)
    with pytest.raises(NotReady), intake.listening():
        pass
    wait_for(lambda: not receivers(), 30, "the other process to end too")
    assert len(made) == 2


def test_a_stop_does_not_wait_for_a_process_that_the_system_does_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bound holds, what is asked of the others is answered meanwhile, and the late one is ended."""
    intake = Intake(tmp_path / "data", listener_processes=2)
    make, asked, going_on = ReceivingProcesses._process, threading.Event(), threading.Event()

    def hung(serving: ReceivingProcesses) -> tuple[subprocess.Popen[bytes], Channel]:
        asked.set()
        assert going_on.wait(60)
        return make(serving)

    with intake.listening() as service:
        monkeypatch.setattr(ReceivingProcesses, "_process", hung)
        os.kill(processes(service).pids[0], signal.SIGKILL)
        assert asked.wait(30)
        assert echoes(service.scp.port)
        assert all_committed(service)
        assert service.trouble == "1 of 2 receiving processes run"
        began = time.monotonic()
    assert time.monotonic() - began < 60
    going_on.set()
    wait_for(lambda: not receivers(), 30, "the late one to end")


def spool_image(spool: Spool, study: str) -> None:
    """As a receiving process does before it answers Success."""
    content = dataset_bytes(file_bytes(ct_slice(1, study, f"{study}.7")))
    arrival = Arrival(
        intake_id="a1",
        door=Door.DICOM,
        received_at=datetime.now(UTC),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=f"{study}.7.1",
        calling_ae="CT1",
        address="127.0.0.1",
    )
    with spool.writer(arrival) as writer:
        writer.write(content)
        writer.commit()


def test_what_a_killed_listeners_process_still_answers_is_known_when_its_successor_begins(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", listener_processes=1)
    left = Spool(intake.settings.spool_dir, receiving=True)

    def answer_and_end() -> None:
        time.sleep(1.0)
        spool_image(left, "1.2.826.0.1.3680043.9.9.1")
        left.close()

    ending = threading.Thread(target=answer_and_end)
    ending.start()
    with intake.listening():
        assert not ending.is_alive()
        assert len(intake.instances()) == 1
    ending.join(30)


def test_a_process_of_a_killed_listener_that_does_not_end_is_told_and_does_not_keep_its_successor_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "PREDECESSOR_S", 0.2)
    intake = Intake(tmp_path / "data", listener_processes=1)
    left = Spool(intake.settings.spool_dir, receiving=True)
    with intake.listening() as service:
        assert echoes(service.scp.port)
    left.close()
    said = [record for record in caplog.records if record.message == "receiving_process.outlives_listener"]
    assert [vars(record)["pids"] for record in said] == [[os.getpid()]]


def receivers() -> list[psutil.Process]:
    """Receiving processes of this test that run."""
    found: list[psutil.Process] = []
    for one in psutil.Process().children():
        # It may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE and child.__name__ in one.cmdline():
                found.append(one)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_study_survives_its_receiving_process(
    tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a process takes to start on a machine with other work to do.
    monkeypatch.setattr(pool, "HUNG_S", 8.0)
    paths = write_study(tmp_path / "study", IMAGES)
    intake = Intake(tmp_path / "data", listener_processes=1, idle_seconds=5.0, settle_after_abort_seconds=60.0)
    reports: list[SendReport] = []
    halfway = threading.Event()

    def progress(done: int, _total: int) -> None:
        if done >= IMAGES // 2:
            halfway.set()

    with intake.listening() as service:
        port = service.scp.port
        (first,) = processes(service).pids

        def send() -> None:
            reports.append(
                send_folder(tmp_path / "study", "127.0.0.1", port, "HEIMDALLR", on_progress=progress, attempts=100)
            )

        sender = threading.Thread(target=send)
        sender.start()
        assert halfway.wait(60)
        os.kill(first, how)
        sender.join(200)
        assert not sender.is_alive()
        assert reports[0].sent == IMAGES
        (second,) = wait_for(lambda: processes(service).pids, 60, "another process")
        assert second != first
        wait_for(intake.jobs, 60, "the study to be queued")
        assert intake.stored() == digests(paths)
        assert [(study.epoch, study.n_instances) for study in intake.studies()] == [(1, IMAGES)]
        assert service.healthy
        assert service.registry.open_associations() == ()


def test_limits_hold_across_processes(tmp_path: Path) -> None:
    from pynetdicom.sop_class import Verification  # pyright: ignore[reportAttributeAccessIssue]

    from heimdallr_ray.clients.dimse import Entity

    intake = Intake(tmp_path / "data", listener_processes=2, max_associations=2)
    entity = Entity("PEER")
    entity.add_requested_context(Verification)
    with intake.listening() as service:
        held = [entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR") for _ in range(2)]
        assert all(item.is_established for item in held)
        # Each of the two processes has one of them.
        assert sorted(child.addresses.total() for child in processes(service)._children) == [1, 1]
        third = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert third.is_rejected
        held[0].release()
        wait_for(lambda: len(service.registry.open_associations()) == 1, 30, "the released association to be forgotten")
        fourth = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert fourth.is_established
        for item in (fourth, held[1]):
            item.release()


def test_a_process_that_hangs_is_told_and_so_is_a_port_that_accepts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SILENT_S", 0.5)
    monkeypatch.setattr(server, "TURN_S", 0.5)
    intake = Intake(tmp_path / "data", listener_processes=1)
    with intake.listening() as service:
        assert service.trouble == "" and service.healthy
        (pid,) = processes(service).pids
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: service.trouble.startswith("a receiving process has not answered for"), 20, "it to be told")
        # It is ended in time; what the others have in hand need not be.
        assert service.healthy
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: service.trouble == "", 20, "its answer")
        going_on = threading.Event()
        served = processes(service).serve
        monkeypatch.setattr(processes(service), "serve", lambda *given: going_on.wait(60) and served(*given))
        with socket.create_connection(("127.0.0.1", service.scp.port), timeout=10):
            wait_for(lambda: service.trouble.startswith("no connection could be accepted for"), 20, "it to be told")
            assert not service.healthy
            going_on.set()
            wait_for(lambda: service.trouble == "" and service.healthy, 20, "the port to accept again")


def test_an_association_that_is_accepted_too_late_is_ended_again_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk hangs while it is asked for room: requests wait, are given up, and leave no association open."""
    monkeypatch.setattr(pool, "ANSWER_S", 2.0)
    asks, answers = threading.Event(), threading.Event()
    answers.set()
    has_room = Registry._has_room

    def slow(registry: Registry) -> bool:
        asks.set()
        assert answers.wait(60)
        return has_room(registry)

    monkeypatch.setattr(Registry, "_has_room", slow)
    uid = "1.2.826.0.1.3680043.9.9.1.7"
    image = dataset_bytes(file_bytes(ct_slice(1, uid.removesuffix(".7"), uid)))
    intake = Intake(tmp_path / "data", listener_processes=1, max_associations=2, idle_seconds=60.0)
    ends: list[str] = []

    def come() -> None:
        try:
            WirePeer(service.scp.port).close()
            ends.append("accepted")
        except Gone:
            ends.append("gone")

    with intake.listening() as service, WirePeer(service.scp.port) as peer:
        answers.clear()
        asks.clear()
        comers = [threading.Thread(target=come) for _ in range(3)]
        for comer in comers:
            comer.start()
        assert asks.wait(30)
        assert peer.store(image, f"{uid}.1") == 0
        assert all_committed(service, 20.0), "a request that waits for the disk holds up what was acknowledged"
        assert len(intake.instances()) == 1
        for comer in comers:
            comer.join(30)
        assert ends == ["gone"] * 3
        # Their time began before the listener heard of them.
        time.sleep(pool.ANSWER_S)
        answers.set()
        wait_for(lambda: service.registry.tally.snapshot()["associations"] == 2, 30, "the answer that comes too late")
        wait_for(lambda: len(service.registry.open_associations()) == 1, 30, "it to be ended again")
        # Both places but the one of the peer that is still there are free.
        assert echoes(service.scp.port)
        assert all_committed(service)
        with intake.database.read() as session:
            rows = session.exec(select(AssociationRow).where(AssociationRow.how == How.ABORTED.value)).all()
        # The others had waited longer than anybody waited for them: they were never open.
        assert [(row.reason, row.stored) for row in rows] == [(child.LATE, 0)]
        tally = service.registry.tally.snapshot()
        assert (tally["associations"], tally["cut.listener_busy"]) == (3, 3)


def test_an_address_without_connections_is_forgotten(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", listener_processes=1)
    with intake.listening() as service:
        (receiving,) = processes(service)._children
        for last in range(2, 12):
            assert echoes(service.scp.port, source=f"127.0.0.{last}")
        with WirePeer(service.scp.port, source="127.0.0.20") as peer:
            assert peer.echo() == 0
            wait_for(lambda: list(receiving.addresses.items()) == [("127.0.0.20", 1)], 20, "the others to be forgotten")
        wait_for(lambda: not list(receiving.addresses), 20, "the last one to be forgotten")
