"""The page finds a sentence for every code that it is sent."""

from __future__ import annotations

from fastapi.testclient import TestClient

from tests.support.seeded import ABDOMEN_UID, FAILED_UID, HEAD_UID, NOT_APPLICABLE_UID


def test_what_seeded_studies_say_is_explained(client: TestClient):
    sentences = client.get("/api/v1/reasons").json()["reasons"]
    codes: set[str] = set()
    for uid in (ABDOMEN_UID, HEAD_UID, FAILED_UID, NOT_APPLICABLE_UID):
        detail = client.get(f"/api/v1/studies/{uid}").json()
        codes |= {detail["study"]["reason_code"], *(one["reject_code"] for one in detail["series"])} - {None}
        document = client.get(f"/api/v1/studies/{uid}/results").json()
        for one in document.get("measurements", []):
            codes |= {one["status"], *one["reasons"]}
        codes |= {one["reason"] for one in document.get("skipped_tasks", [])}
    assert {"not_a_volume", "modality_not_supported", "localizer", "anatomy_absent"} <= codes
    assert codes <= set(sentences)
