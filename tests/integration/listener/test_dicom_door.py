"""The DICOM door with dcmtk's own clients: what they send is what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from tests.support.intake import Intake, dataset_bytes, dcmtk, sha256, storescu, wait_for, write_study

pytestmark = pytest.mark.peers("storescu", "dcmsend", "echoscu")


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data")


def test_echo(intake: Intake) -> None:
    with intake.listening() as service:
        done = dcmtk("echoscu", "-aec", "HEIMDALLR", "127.0.0.1", str(service.scp.port))
        assert done.returncode == 0, done.stderr


def test_a_sent_study_is_stored_byte_for_byte_and_closed_once(intake: Intake, tmp_path: Path) -> None:
    paths = write_study(tmp_path / "study", 12)
    with intake.listening() as service:
        said = storescu(service.scp.port, paths)
        assert said.count("Received Store Response (Success)") == 12, said
        jobs = wait_for(intake.jobs, 20, "the study to be queued")
        sent = {str(dcmread(path).SOPInstanceUID): sha256(dataset_bytes(path.read_bytes())) for path in paths}
        assert intake.stored() == sent
        assert len(jobs) == 1
        assert [study.state for study in intake.studies()] == ["queued"]
        assert intake.studies()[0].n_instances == 12
        assert {row.calling_ae for row in intake.instances()} == {"STORESCU"}
        assert intake.spooled() == []
