"""Receiving processes that are killed or hang: nothing acknowledged is lost, and others take their place."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import cast

import pytest
from pydicom import dcmread

from heimdallr_ray.clients.send import SendReport, send_folder
from heimdallr_ray.listener.service import ListenerService
from heimdallr_ray.listener.wire import pool, server
from heimdallr_ray.listener.wire.pool import ReceivingProcesses
from heimdallr_ray.listener.wire.server import WireScp
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for, write_study

IMAGES = 80


def processes(service: ListenerService) -> ReceivingProcesses:
    return cast(ReceivingProcesses, cast(WireScp, service.scp)._serving)


def digests(paths: list[Path]) -> dict[str, str]:
    return {
        str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes()))
        for path in paths
    }


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
