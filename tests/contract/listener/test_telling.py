"""What a running listener tells: the audit chain of who was let in, and figures that are what was done."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.catalog.associations import LastSeen, last_seen
from heimdallr_ray.listener.overview import open_studies
from heimdallr_ray.listener.snapshots import FOLDER, Snapshot, read_snapshots
from heimdallr_ray.operations import status
from heimdallr_ray.security.audit_anchor import read_anchor
from heimdallr_ray.security.audit_check import verify
from heimdallr_ray.security.audit_entries import recent
from heimdallr_ray.security.audit_key import read_key
from tests.contract.listener.conftest import LONG, MakeIntake
from tests.support.intake import Intake, all_committed, dcmtk, storescu, wait_for, write_study

pytestmark = pytest.mark.peers("storescu", "echoscu")


def told(intake: Intake) -> Snapshot | None:
    found = read_snapshots(intake.settings.run_dir / FOLDER, intake.clock.now())
    return found[0] if found else None


def entries(intake: Intake) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Action, actor and detail, oldest first; the chain is whole."""
    with intake.database.read() as session:
        assert verify(session, [read_key(intake.settings.data_dir / "audit.key")]).intact
        return [
            (row.action, row.actor_name, row.actor_address, json.loads(row.detail))
            for row in reversed(recent(session, 100))
        ]


@LONG
def test_who_is_let_in_and_who_is_not_is_audited_and_counted(make_intake: MakeIntake, tmp_path: Path) -> None:
    intake = make_intake(tmp_path / "data", idle_seconds=60.0)
    with intake.listening() as service:
        port = str(service.scp.port)
        storescu(service.scp.port, write_study(tmp_path / "study", 3))
        for _ in range(4):
            assert dcmtk("echoscu", "-aec", "SOMEBODY", "-aet", "STRANGER", "127.0.0.1", port).returncode != 0
        assert all_committed(service)
        snapshot = wait_for(
            lambda: one if (one := told(intake)) and one.figures.associations_closed else None, 10, "figures"
        )
        accepted, refused = entries(intake)[1:]
        assert accepted[:3] == ("association.accepted", "STORESCU", "127.0.0.1")
        assert accepted[3]["called_ae"] == "HEIMDALLR"
        assert {row.association_id for row in intake.instances()} == {accepted[3]["association"]}
        # Four refusals of one kind within a minute are one entry, and four in the figures.
        assert refused == (
            "association.refused",
            "STRANGER",
            "127.0.0.1",
            {"called_ae": "SOMEBODY", "reason": "called_ae"},
        )
        service.telling.chores()
        anchor = read_anchor(intake.settings.data_dir)
        assert anchor is not None and anchor.entries == 3
    figures = snapshot.figures
    assert figures.stored["dicom"] == 3
    assert sum(figures.store_seconds["dicom"].counts) == sum(figures.sync_seconds.counts) == 3
    assert figures.stored_bytes["dicom"] > 3 * 64 * 64 * 2
    assert snapshot.state.port == int(port) and snapshot.state.healthy
    assert told(intake) is None


def test_a_study_that_is_closed_was_received(intake: Intake, tmp_path: Path) -> None:
    with intake.listening() as service:
        storescu(service.scp.port, write_study(tmp_path / "study", 3))
        wait_for(intake.jobs, 60, "the study to be queued")
    (received,) = [one for one in entries(intake) if one[0] == "study.received"]
    (study,) = intake.studies()
    assert received[1:3] == ("STORESCU", "127.0.0.1")
    assert (received[3]["epoch"], received[3]["instances"], received[3]["why"]) == (1, 3, study.close_code)


def test_a_sender_hears_of_what_it_sent_twice(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 3)
    with intake.listening() as service:
        for sent in (paths, paths[1:]):
            storescu(service.scp.port, sent)
        assert all_committed(service)

        def known() -> LastSeen | None:
            with intake.database.read() as session:
                (sender,) = last_seen(session, 10)
            return None if sender.open else sender

        sender = wait_for(known, 10, "both associations to end")
    assert (sender.calling_ae, sender.door, sender.associations) == ("STORESCU", "dicom", 2)
    assert (sender.stored, sender.duplicates, sender.refused) == (5, 2, 0)


def test_late_images_are_their_own_senders(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 4)
    with intake.listening() as service:
        storescu(service.scp.port, paths[:3])
        wait_for(intake.jobs, 60, "the study to be queued")
        storescu(service.scp.port, paths[3:], "-aet", "CT_2")
        assert all_committed(service)
        with intake.database.read() as session:
            assert [one.calling_ae for one in open_studies(session, 10)] == ["CT_2"]
        wait_for(
            lambda: sum(one[0] == "study.received" for one in entries(intake)) == 2, 60, "the second epoch to close"
        )
    first, second = (one for one in entries(intake) if one[0] == "study.received")
    accepted = {one[1]: one[3]["association"] for one in entries(intake) if one[0] == "association.accepted"}
    assert (first[1], first[3]["intake"]) == ("STORESCU", accepted["STORESCU"])
    assert (second[1], second[3]["intake"], second[3]["epoch"]) == ("CT_2", accepted["CT_2"], 2)


def test_a_connection_that_is_cut_is_audited_with_its_reason(intake: Intake) -> None:
    with intake.listening() as service:
        with socket.create_connection(("127.0.0.1", service.scp.port), timeout=30) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n")
            stranger.settimeout(30)
            while stranger.recv(4096):
                pass
        refused = wait_for(
            lambda: [one for one in entries(intake) if one[0] == "association.refused"], 30, "the refusal to be told"
        )
    ((_, actor, address, detail),) = refused
    # The reference looks at the length first.
    assert (actor, address) == ("", "127.0.0.1") and detail["reason"] in ("unexpected_pdu", "pdu_too_long")


@LONG
def test_our_own_look_at_the_listener_is_no_peer(make_intake: MakeIntake, tmp_path: Path) -> None:
    # Nobody of this machine is let in by its address or name, and nobody at all by the disk.
    intake = make_intake(
        tmp_path / "data",
        allowed_addresses=("192.0.2.0/24",),
        allowed_calling_aes=("CT_1",),
        min_free_mib=1 << 40,
    )
    with intake.listening() as service:
        wait_for(lambda: told(intake), 10, "the listener to tell of itself")
        assert status._listener(intake.settings, intake.clock.now()) == f"well: port {service.scp.port}, 0 open"
        snapshot = told(intake)
        assert snapshot is not None and not snapshot.figures.refused and not snapshot.figures.associations_opened
        assert service.registry.tally.snapshot() == {}
    assert not [one for one in entries(intake) if one[0].startswith("association.")]
    assert status._listener(intake.settings, intake.clock.now()) == "does not work: no answer"


@LONG
def test_an_open_association_is_told_with_its_sender(intake: Intake) -> None:
    from pynetdicom.ae import ApplicationEntity

    entity = ApplicationEntity("CT_1")
    entity.add_requested_context("1.2.840.10008.1.1")
    with intake.listening() as service:
        association = entity.associate("127.0.0.1", service.scp.port, ae_title="HEIMDALLR")
        assert association.is_established
        snapshot = wait_for(lambda: one if (one := told(intake)) and one.state.open else None, 10, "it to be told")
        assert [(one.calling_ae, one.address) for one in snapshot.state.open] == [("CT_1", "127.0.0.1")]
        association.release()
        wait_for(lambda: (one := told(intake)) and not one.state.open, 10, "its end to be told")
