"""A real PACS asks for commitment: Orthanc stores with its job engine, asks, and gets the report on its own port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.commitment import CT, flip_a_bit, rows
from tests.support.freeport import free_port
from tests.support.intake import Intake, wait_for, write_study
from tests.support.orthanc import Orthanc, orthanc

STUDY = "1.2.826.0.1.3680043.9.9.17"
pytestmark = pytest.mark.peers("Orthanc")


def report_of(server: Orthanc, transaction: str) -> dict[str, Any]:
    """Orthanc's own record of the report, once it is not pending."""

    def answered() -> dict[str, Any] | None:
        found = server.get(f"/storage-commitment/{transaction}")
        return None if found["Status"] == "Pending" else found

    return wait_for(answered, 60, "a report for Orthanc")


def test_orthanc_stores_a_study_and_learns_what_is_safe(tmp_path: Path) -> None:
    """100 references: 96 are committed, 3 were never sent, 1 is damaged on the disk."""
    port = free_port()
    modality = {"AET": "HEIMDALLR", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
    with orthanc(tmp_path / "orthanc", {"heimdallr": modality}) as server:
        peer = f"{server.aet}=127.0.0.1:{server.dicom_port}"
        intake = Intake(tmp_path / "data", commitment_peers=[peer], dicom_port=port)
        ids = [
            server.post("/instances", path.read_bytes())["ID"]
            for path in write_study(tmp_path / "files", 97, STUDY, size=16)
        ]
        with intake.listening():
            stored = server.post(
                "/modalities/heimdallr/store", {"Resources": ids, "StorageCommitment": True, "Synchronous": False}
            )
            job = wait_for(
                lambda: (lambda found: found if found["State"] in ("Success", "Failure") else None)(
                    server.get(f"/jobs/{stored['ID']}")
                ),
                60,
                "Orthanc's job",
            )
            assert job["State"] == "Success", job
            first = report_of(server, job["Content"]["StorageCommitmentTransactionUID"])
            damaged = f"{STUDY}.7.50"
            flip_a_bit(intake, damaged)
            references = [[CT, f"{STUDY}.7.{index}"] for index in range(1, 101)]
            asked = server.post("/modalities/heimdallr/storage-commitment", {"DicomInstances": references})
            second = report_of(server, asked["ID"])
            wait_for(lambda: {row.state for row in rows(intake.database)} == {"told"}, 20, "both rows say so")
    assert (first["Status"], len(first["Success"]), first["Failures"]) == ("Success", 97, [])
    assert (second["Status"], second["RemoteAET"], len(second["Success"])) == ("Failure", "HEIMDALLR", 96)
    failures = {item["SOPInstanceUID"]: item["FailureReason"] for item in second["Failures"]}
    assert failures == {damaged: 0x0110, **{f"{STUDY}.7.{index}": 0x0112 for index in (98, 99, 100)}}
    assert [(row.n_items, row.n_failed) for row in rows(intake.database)] == [(97, 0), (100, 4)]


@pytest.mark.slow
def test_orthanc_is_told_after_it_was_killed_and_has_come_back(tmp_path: Path) -> None:
    """It forgets its transactions when it is killed, but answers the report; the request does not wait for ever."""
    port = free_port()
    modality = {"AET": "HEIMDALLR", "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
    with orthanc(tmp_path / "orthanc", {"heimdallr": modality}) as server:
        peer = f"{server.aet}=127.0.0.1:{server.dicom_port}"
        intake = Intake(tmp_path / "data", commitment_peers=[peer], dicom_port=port)
        with intake.listening():
            references = [[CT, f"{STUDY}.7.1"]]
            server.post("/modalities/heimdallr/storage-commitment", {"DicomInstances": references})
            server.kill()
            wait_for(lambda: rows(intake.database)[0].attempt >= 1, 40, "a failure")
            assert rows(intake.database)[0].error_code == "unreachable"
            server.start()
            wait_for(lambda: rows(intake.database)[0].state == "told", 60, "an answer")
    row = rows(intake.database)[0]
    assert (row.n_failed, row.error_code) == (1, None) and row.attempt >= 1
