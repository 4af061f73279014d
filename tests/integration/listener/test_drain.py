"""Before a stop: the door is shut, and what came in through it is still finished."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association

from heimdallr_ray.listener.draining import DrainMark
from tests.support.intake import Intake, ct_slice, wait_for

UID = "1.2.826.0.1.3680043.9.9.21"
CT = "1.2.840.10008.5.1.4.1.1.2"


def associated(port: int) -> Association:
    entity = ApplicationEntity("SENDER")
    entity.add_requested_context(CT, "1.2.840.10008.1.2.1")
    found = entity.associate("127.0.0.1", port, ae_title="HEIMDALLR")
    assert found.is_established
    return found


def store(association: Association, index: int) -> int:
    return int(association.send_c_store(ct_slice(index, UID, f"{UID}.1")).Status)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        # It waited for an accept that did not come any more.
        return False
    return False


@pytest.mark.parametrize("processes", [1, 2])
def test_a_draining_listener_takes_no_new_sender_and_still_closes_what_came_in(tmp_path: Path, processes: int) -> None:
    intake = Intake(tmp_path / "data", listener_processes=processes)
    with intake.listening() as service:
        port = service.scp.port
        senders = [associated(port) for _ in range(2)]
        for n, sender in enumerate(senders):
            assert store(sender, 1 + n) == 0
        drain = threading.Thread(target=service.drain, args=(30.0,))
        drain.start()
        wait_for(lambda: refused(port), 20, "the port to be closed")
        # The open associations may finish.
        for n, sender in enumerate(senders):
            assert store(sender, 3 + n) == 0
            sender.release()
        drain.join(20)
        assert not drain.is_alive()
        status = service.status()
        assert (status.draining, status.healthy, status.port, status.open_associations) == (True, True, 0, 0)
        wait_for(intake.jobs, 60, "the study to be closed and queued")
        assert [(study.state, study.n_instances) for study in intake.studies()] == [("queued", 4)]
        service.drain()
        assert service.status().healthy


def test_an_association_that_does_not_end_is_aborted_and_what_it_sent_is_kept(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data")
    with intake.listening() as service:
        sender = associated(service.scp.port)
        assert store(sender, 1) == 0
        service.drain(grace_s=0.3)
        wait_for(lambda: not sender.is_established, 20, "the association to end")
        wait_for(intake.jobs, 60, "the study to be closed and queued")
        assert [study.n_instances for study in intake.studies()] == [1]


def test_a_listener_that_starts_while_the_stack_drains_keeps_its_port_closed_and_ends_what_came_in(
    tmp_path: Path,
) -> None:
    intake = Intake(tmp_path / "data")
    with intake.listening() as service:
        sender = associated(service.scp.port)
        assert store(sender, 1) == 0
        sender.release()
        # It dies before it has heard of the drain; the mark is all that its successor finds.
        service.watcher.stop()
    DrainMark(intake.settings.run_dir).set()
    with intake.listening() as service:
        status = service.status()
        assert (status.draining, status.healthy, status.port) == (True, True, 0)
        wait_for(intake.jobs, 60, "the study to be closed and queued")
        service.drain()
        assert service.status().healthy
    DrainMark(intake.settings.run_dir).clear()
    with intake.listening() as service:
        status = service.status()
        assert (status.draining, status.healthy) == (False, True)
        assert status.port > 0


@pytest.mark.parametrize("drained", [False, True])
def test_only_a_port_that_was_closed_on_purpose_is_healthy(tmp_path: Path, drained: bool) -> None:
    intake = Intake(tmp_path / "data")
    with intake.listening() as service:
        if drained:
            service.drain()
        else:
            service.scp.stop()
        assert service.status().healthy is drained
