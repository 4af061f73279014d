from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.tables import ArtifactRow, ResultRow, StudyRow
from heimdallr_ray.catalog.worklist import study_detail
from tests.integration.api.conftest import client_of
from tests.support.intake import write_study
from tests.support.openapi import TARGET, document
from tests.support.seeded import (
    ABDOMEN_UID,
    FAILED_UID,
    HEAD_UID,
    NOT_APPLICABLE_UID,
    QUEUED_UID,
    RECEIVING_UID,
    RUNNING_UID,
    add_study,
)

STUDY = f"/api/v1/studies/{ABDOMEN_UID}"


def test_the_worklist_is_in_reading_order(client: TestClient):
    page = client.get("/api/v1/studies").json()
    # Critical first, then the STAT order, then first come first read.
    assert [row["study_uid"] for row in page["studies"]] == [
        HEAD_UID, RUNNING_UID, NOT_APPLICABLE_UID, FAILED_UID, ABDOMEN_UID, QUEUED_UID, RECEIVING_UID,
    ]  # fmt: skip
    first = page["studies"][0]
    assert (first["urgency"], first["urgency_word"], first["state"]) == ("P0", "CRITICAL", "done")
    assert "hemorrhage" in first["urgency_reason"]
    assert first["modalities"] == ["CT"]
    assert page["total"] == 7


def test_pages_do_not_overlap_and_leave_nothing_out(client: TestClient):
    pages = [client.get("/api/v1/studies", params={"limit": 3, "offset": offset}).json() for offset in (0, 3, 6)]
    assert [len(page["studies"]) for page in pages] == [3, 3, 1]
    assert len({row["study_uid"] for page in pages for row in page["studies"]}) == 7
    assert all(page["total"] == 7 for page in pages)


def test_filters_by_state_and_text(client: TestClient):
    def uids(**params: str) -> list[str]:
        return [row["study_uid"] for row in client.get("/api/v1/studies", params=params).json()["studies"]]

    assert uids(state="failed") == [FAILED_UID]
    assert uids(q="dario") == [QUEUED_UID]
    assert uids(q="DEMO-003") == [RUNNING_UID]
    assert uids(q="%") == []
    assert uids(q="nobody' OR 1=1 --") == []


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 501}, {"offset": -1}, {"state": "lost"}, {"q": "x" * 65}, {"limit": "many"}]
)
def test_nonsense_parameters_are_answered_in_the_one_shape(client: TestClient, params: dict[str, str]):
    answer = client.get("/api/v1/studies", params=params)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"


def test_one_study_with_everything_its_page_shows(client: TestClient):
    detail = client.get(STUDY).json()
    assert detail["study"]["state"] == "done"
    assert [(s["series_description"], s["chosen"], s["reject_code"]) for s in detail["series"]] == [
        ("Scout", False, "localizer"),
        ("Axial 2.0 Br40", True, None),
    ]
    assert [stage["step"] for stage in detail["stages"]] == [
        "select",
        "prepare",
        "segment",
        "measure",
        "triage",
        "render",
    ]
    assert detail["stages"][2]["seconds"] == 18.4
    assert [event["new"] for event in detail["history"]] == ["queued", "done"]
    assert detail["result"]["n_measurements"] > detail["result"]["n_with_value"] > 5
    assert detail["result"]["synthetic"] is True
    assert {"liver_key_image.png", "liver_overlay.png", "results.json"} <= {a["name"] for a in detail["artifacts"]}


STATES_AFTER_A_LATE_IMAGE = ["receiving", "settling", "queued", "running", "failed", "not_applicable", "cancelled"]


@pytest.mark.parametrize("state", STATES_AFTER_A_LATE_IMAGE)
def test_numbers_of_an_older_epoch_are_never_shown_as_current(empty: ApiServices, tmp_path: Path, state: str):
    client = client_of(create_app(empty))
    paths = write_study(tmp_path / "dicom", 3)
    uid = "1.2.826.0.1.3680043.9.9.1"
    base = f"/api/v1/studies/{uid}"

    def upload(*chosen: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in chosen:
                archive.write(path, path.name)
        assert client.post("/api/v1/upload", files={"file": ("a.zip", buffer.getvalue())}).status_code == 200

    upload(*paths[:2])
    with empty.database.write() as session:
        study = session.exec(select(StudyRow)).one()
        document = {"measurements": [{"id": "liver_volume", "value": 1500.0}]}
        result = ResultRow(study_id=study.id, job_id=1, fence=1, created_at=empty.clock.now(), document=document)
        session.add(result)
        session.flush()
        ref = empty.blobs.put(b"{}")
        session.add(
            ArtifactRow(
                result_id=result.id, study_id=study.id, name="results.json", kind="results",
                media_type="application/json", sha256=ref.sha256, size=ref.size,
            )
        )  # fmt: skip
        study.state = "done"
        session.add(study)

    def answers() -> list[str | None]:
        found = [client.get(f"{base}/{path}") for path in ("results", "artifacts/results.json")]
        found.append(client.get(f"{base}/artifacts/results.json", headers={"If-None-Match": found[1].headers["etag"]}))
        assert [answer.status_code for answer in found] == [200, 200, 304]
        assert found[0].json() == document
        return [answer.headers.get("x-heimdallr-stale") for answer in found]

    def seen() -> tuple[bool, bool, bool, int]:
        detail, (row,) = client.get(base).json(), client.get("/api/v1/studies").json()["studies"]
        return detail["result"]["stale"], detail["study"]["stale"], row["stale"], detail["result"]["n_images"]

    assert (answers(), seen()) == ([None] * 3, (False, False, False, 2))
    upload(paths[2])
    with empty.database.write() as session:
        study = session.exec(select(StudyRow)).one()
        assert (study.state, study.epoch) == ("receiving", 2)
        study.state = state
        session.add(study)
    assert (answers(), seen()) == (["true"] * 3, (True, True, True, 2))
    with empty.database.write() as session:
        study = session.exec(select(StudyRow)).one()
        study.state, study.epoch = "queued", 1  # The same images once more.
        session.add(study)
    assert seen()[:3] == (True, True, True)


@pytest.mark.parametrize("state", ["not_applicable", "failed", "running", "done"])
@pytest.mark.parametrize(("urgency", "shown"), [("P0", "P0"), ("P2", "P2"), ("P3", None)])
def test_an_urgency_of_an_older_result_says_so_and_an_older_p3_is_no_routine(
    empty: ApiServices, state: str, urgency: str, shown: str | None
):
    client = client_of(create_app(empty))
    with empty.database.write() as session:
        study = add_study(session, "1.2.9", empty.clock.now(), state="done", urgency=urgency, urgency_reason="why")
        first = ResultRow(
            study_id=study.id, job_id=1, fence=1, created_at=empty.clock.now(), document={}, urgency=urgency
        )
        session.add(first)

    def seen() -> dict[str, Any]:
        detail = client.get("/api/v1/studies/1.2.9").json()["study"]
        (row,) = client.get("/api/v1/studies").json()["studies"]
        assert detail == row
        return row

    now = seen()
    assert (now["urgency"], now["urgency_older"], now["urgency_reason"]) == (urgency, False, "why")
    with empty.database.write() as session:
        study = session.exec(select(StudyRow)).one()
        study.state = state
        session.add(study)
        if state == "done":
            # The newer run ended well and ruled nothing; the catalog keeps the class that was raised.
            newer = ResultRow(
                study_id=study.id, job_id=2, fence=1, version=2, created_at=empty.clock.now(), document={}, urgency=None
            )
            session.add(newer)
            session.flush()
            old = session.exec(select(ResultRow).where(ResultRow.version == 1)).one()
            old.superseded_by = newer.id
            session.add(old)
    now = seen()
    assert (now["urgency"], now["urgency_older"]) == (shown, True)
    if shown is None and state == "done":
        assert now["urgency_word"] is None and now["urgency_reason"] == "why (An older result was P3 ROUTINE.)"
    elif shown is None:
        assert now["urgency_word"] is None and "No AI urgency: an older result was P3" in now["urgency_reason"]
    else:
        assert now["urgency_reason"] == "why"


def test_a_study_without_a_result_is_not_stale(client: TestClient):
    rows = client.get("/api/v1/studies").json()["studies"]
    assert len(rows) == 7
    assert not any(row["stale"] for row in rows)


def test_label_maps_may_be_drawn_only_over_their_own_pixels(seeded: ApiServices, client: TestClient):
    viewer = client.get(STUDY).json()["viewer"]
    assert viewer["volume"] == "display.nii.gz"
    assert {(o["task"], o["same_grid"]) for o in viewer["overlays"]} == {("total", True), ("tissue_types", True)}
    from heimdallr_ray.api.views import viewer as viewer_of

    with seeded.database.read() as session:
        found = study_detail(session, ABDOMEN_UID)
    assert found is not None

    def drawable(change: dict[str, object]) -> set[bool]:
        rows = [ArtifactRow(**row.model_dump()) for row in found.artifacts]
        for row in rows:
            if row.kind == "display_label_map":
                row.meta = {**row.meta, **change}
        made = viewer_of(rows)
        assert made is not None
        return {overlay.same_grid for overlay in made.overlays}

    assert drawable({"source_manifest_sha256": "f" * 64}) == {False}
    assert drawable({"source_manifest_sha256": ""}) == {False}
    assert drawable({"source_manifest_sha256": None}) == {False}


def test_results_are_the_document_of_the_result(client: TestClient):
    results = client.get(f"{STUDY}/results").json()
    assert results == client.get(f"{STUDY}/artifacts/results.json").json()
    liver = next(m for m in results["measurements"] if m["id"] == "liver_volume")
    assert liver["unit"] == "mL"
    assert liver["value"] > 500
    assert liver["provenance"]["synthetic"] is True


def test_a_study_that_ended_without_a_result_says_why(client: TestClient):
    answer = client.get(f"/api/v1/studies/{NOT_APPLICABLE_UID}/results")
    assert answer.status_code == 409
    assert answer.json()["error"] == {
        "code": "no_result",
        "detail": "the study is not_applicable and has no result: modality_not_supported",
        "state": "not_applicable",
        "reason_code": "modality_not_supported",
        "reason": "no installed model reads MG",
    }
    failed = client.get(f"/api/v1/studies/{FAILED_UID}/results").json()["error"]
    assert (failed["code"], failed["state"], failed["reason_code"]) == ("no_result", "failed", "not_a_volume")


@pytest.mark.parametrize("uid", [RUNNING_UID, RECEIVING_UID])
def test_results_before_there_are_any(client: TestClient, uid: str):
    answer = client.get(f"/api/v1/studies/{uid}/results")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "not_ready"
    assert client.get(f"/api/v1/studies/{uid}").json()["viewer"] is None


@pytest.mark.parametrize("suffix", ["", "/results", "/artifacts/results.json"])
def test_an_unknown_study(client: TestClient, suffix: str):
    answer = client.get(f"/api/v1/studies/1.2.3.4{suffix}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("uid", ["x", "..", "1.2.", "1..2", "%27", "1.2.3%00", "9" * 65])
def test_what_is_no_uid(client: TestClient, uid: str):
    answer = client.get(f"/api/v1/studies/{uid}")
    assert answer.status_code in (400, 404, 422)
    assert set(answer.json()["error"]) == {"code", "detail"}


def artifacts(client: TestClient) -> Iterator[dict[str, str]]:
    yield from client.get(STUDY).json()["artifacts"]


def test_artifacts_arrive_byte_for_byte_under_their_digest(client: TestClient):
    for artifact in artifacts(client):
        answer = client.get(artifact["url"])
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == artifact["sha256"]
        assert answer.headers["etag"] == f'"{artifact["sha256"]}"'
        assert answer.headers["content-type"] == artifact["media_type"]
        assert int(answer.headers["content-length"]) == artifact["size"]


def test_nifti_is_sent_as_it_lies(client: TestClient):
    answer = client.get(f"{STUDY}/artifacts/display.nii.gz", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-type"] == "application/gzip"
    assert "content-encoding" not in answer.headers
    assert gzip.decompress(answer.content)[344:347] == b"n+1"


def test_an_unchanged_artifact_is_not_sent_again(client: TestClient):
    url = f"{STUDY}/artifacts/liver_overlay.png"
    etag = client.get(url).headers["etag"]
    again = client.get(url, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_lost_blob_is_said_and_logged_not_answered_with_nothing(empty: ApiServices):
    from tests.support.seeded import add_result, add_study

    with empty.database.write() as session:
        study = add_study(session, ABDOMEN_UID, empty.clock.now())
        add_result(session, empty, study)
    client = client_of(create_app(empty))
    digest = next(a["sha256"] for a in artifacts(client) if a["name"] == "display.nii.gz")
    empty.blobs.path(digest).unlink()
    answer = client.get(f"{STUDY}/artifacts/display.nii.gz")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "blob_missing"


def test_status_and_readiness(client: TestClient, seeded: ApiServices):
    status = client.get("/api/v1/status").json()
    assert status["idle_seconds"] == seeded.settings.idle_seconds
    assert status["studies"] == {"done": 2, "failed": 1, "not_applicable": 1, "queued": 1, "receiving": 1, "running": 1}
    assert (status["profile"], status["synthetic"], status["build"]) == ("demo", True, "test")
    ready = client.get("/api/v1/ready").json()
    assert {check["name"]: check["ok"] for check in ready["checks"]}["database"] is True


def test_not_ready_while_a_deployment_is_not(seeded: ApiServices):
    from dataclasses import replace

    for words, status in (({"Segmenter": "starting"}, 503), ({"Segmenter": "ready", "MedGemma": "idle"}, 200)):
        answer = client_of(create_app(replace(seeded, components=lambda words=words: words))).get("/api/v1/ready")
        assert (answer.status_code, answer.json()["components"]) == (status, words)


def test_not_ready_without_room_on_the_disk(seeded: ApiServices):
    from dataclasses import replace

    from heimdallr_ray.config import load

    settings = load({}, None, data_dir=seeded.settings.data_dir, profile="demo", min_free_mib=1 << 40)
    answer = client_of(create_app(replace(seeded, settings=settings))).get("/api/v1/ready")
    assert answer.status_code == 503
    disk = next(check for check in answer.json()["checks"] if check["name"] == "disk")
    assert disk["ok"] is False
    assert "MiB" in disk["detail"]


def test_the_committed_openapi_document_is_this_version_s():
    assert json.loads(TARGET.read_text(encoding="utf-8")) == json.loads(document())


def test_not_ready_without_the_models_that_a_ct_study_needs_and_the_command_is_said(empty: ApiServices):
    from dataclasses import replace

    from heimdallr_ray.config import load

    settings = load({}, None, data_dir=empty.settings.data_dir, profile="site", min_free_mib=0)
    for word, ok, said in (
        ("starting", False, "run: heimdallr models fetch total_fast"),
        ("failed", False, "run: heimdallr models fetch total_fast"),
        ("ready", True, "loaded"),
        ("idle", True, "not on this node"),
    ):
        parts = replace(empty, settings=settings, components=lambda word=word: {"Segmenter": word})
        answer = client_of(create_app(parts)).get("/api/v1/ready")
        models = next(check for check in answer.json()["checks"] if check["name"] == "models")
        assert (models["ok"], answer.status_code) == (ok, 200 if ok else 503)
        assert models["detail"].endswith(said)
        assert str(settings.data_dir) not in answer.text
    here = client_of(create_app(empty)).get("/api/v1/ready").json()
    assert {"name": "models", "ok": True, "detail": "installed"} in here["checks"]


def test_ready_follows_from_the_measurements_that_the_site_names(empty: ApiServices):
    from dataclasses import replace

    from heimdallr_ray.config import load

    wanted = ("intracranial_hemorrhage_volume",)
    settings = load({}, None, data_dir=empty.settings.data_dir, profile="site", min_free_mib=0, measurements=wanted)
    parts = replace(empty, settings=settings, components=lambda: {"Segmenter": "starting"})
    answer = client_of(create_app(parts)).get("/api/v1/ready")
    models = next(check for check in answer.json()["checks"] if check["name"] == "models")
    assert answer.status_code == 503 and models["detail"].endswith(
        "run: heimdallr models fetch cerebral_bleed total_fast"
    )


def test_ready_names_a_model_that_a_replica_has_set_aside(empty: ApiServices):
    from dataclasses import replace

    from heimdallr_ray.segmentation.totalseg.environment import process_home

    home = process_home(empty.settings.run_dir / "totalsegmentator")
    said = "Dataset343_mediastinum_1786subj is set aside: it cannot be built"
    (home / "engine.json").write_text(json.dumps({"device": "cpu", "mode": "exact", "turbo": [], "notes": [said]}))
    parts = replace(empty, components=lambda: {"Segmenter": "ready"})
    answer = client_of(create_app(parts)).get("/api/v1/ready").json()
    assert {"name": "models", "ok": True, "detail": f"loaded; {said}"} in answer["checks"]
