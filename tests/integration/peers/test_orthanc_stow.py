"""A real PACS as the sender: Orthanc's DICOMweb plugin stores its studies here by STOW-RS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.intake import Intake, ct_slice, file_bytes
from tests.support.orthanc import DICOMWEB, orthanc
from tests.support.server import serving_intake

TOKEN = "a token for the PACS alone"
STUDY = "1.2.826.0.1.3680043.9.9.1"

pytestmark = [
    pytest.mark.peers("Orthanc"),
    pytest.mark.skipif(not DICOMWEB.exists(), reason="not installed: orthanc-dicomweb"),
]


def test_a_pacs_sends_a_study_and_hears_that_it_is_stored(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", upload_token=TOKEN)
    images = [file_bytes(ct_slice(index, STUDY, f"{STUDY}.7", size=128)) for index in range(1, 41)]
    with serving_intake(intake) as base:
        servers = {
            "heimdallr": {"Url": f"{base}/dicomweb/", "HttpHeaders": {"Authorization": f"Bearer {TOKEN}"}},
            "nobody": {"Url": f"{base}/dicomweb/"},
        }
        more = {"Plugins": [str(DICOMWEB)], "DicomWeb": {"Enable": True, "Servers": servers}}
        with orthanc(tmp_path / "pacs", {}, more=more) as pacs:
            for image in images:
                pacs.post("/instances", image)
            (study,) = pacs.get("/studies")
            # Synchronous: the job has ended when it answers, and has failed where we refused.
            job = {"Resources": [study], "Synchronous": True}
            refused = pacs.client.post("/dicom-web/servers/nobody/stow", json=job)
            assert refused.status_code >= 400
            assert intake.instances() == []
            for _ in range(2):
                sent = pacs.client.post("/dicom-web/servers/heimdallr/stow", json=job)
                assert sent.status_code == 200, (tmp_path / "pacs" / "log.txt").read_text(errors="replace")
    assert len(intake.instances()) == len(images)
    assert {row.door for row in intake.instances()} == {"stow"}
    assert [row.n_instances for row in intake.studies()] == [len(images)]
    assert intake.spooled() == []
