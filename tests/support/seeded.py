"""An installation with studies in every state: real database and blobs, made by the real metric and picture code.

python -m tests.support.seeded FOLDER PORT     serves it on loopback until it is stopped
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from sqlmodel import Session

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.tables import ArtifactRow, JobRow, JobStepRow, ResultRow, SeriesRow, StudyRow
from heimdallr_ray.clock import Clock, SystemClock
from heimdallr_ray.config import Settings, load
from heimdallr_ray.dashboard import static_dir
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.metrics.catalogue import measure_all
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.pipelines import documents
from heimdallr_ray.render.nifti import display_label_map_nifti, display_volume_nifti
from heimdallr_ray.render.pictures import key_images
from heimdallr_ray.segmentation.demo.phantom import Phantom, make
from heimdallr_ray.storage.blobs import LocalBlobStore
from heimdallr_ray.triage.urgency import assess
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, VolumeSource

ROOT_UID = "1.2.826.0.1.3680043.10.1338"
ABDOMEN_UID, HEAD_UID = f"{ROOT_UID}.1", f"{ROOT_UID}.2"
RUNNING_UID, QUEUED_UID, FAILED_UID = f"{ROOT_UID}.3", f"{ROOT_UID}.4", f"{ROOT_UID}.5"
NOT_APPLICABLE_UID, RECEIVING_UID = f"{ROOT_UID}.6", f"{ROOT_UID}.7"
STEPS = {"select": 0.21, "prepare": 1.34, "segment": 18.4, "measure": 0.92, "triage": 0.01, "render": 1.77}
NOT_RUN_WORDS = "brain 12 mL, needs 100 mL"
NOT_RUN = {"cerebral_bleed": NOT_RUN_WORDS}
TOTAL = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    10: "lung_upper_lobe_left",
    11: "lung_lower_lobe_left",
    12: "lung_upper_lobe_right",
    13: "lung_middle_lobe_right",
    14: "lung_lower_lobe_right",
    18: "small_bowel",
    20: "colon",
    29: "vertebrae_L3",
    51: "heart",
    52: "aorta",
    90: "brain",
}


def services(folder: Path, clock: Clock | None = None, **settings: Any) -> ApiServices:
    """A migrated database, a blob store and a spool under `folder`, and no study."""
    folder.mkdir(parents=True, exist_ok=True)
    configured: Settings = load({}, None, **{"data_dir": folder, "profile": "demo", "min_free_mib": 0, **settings})
    used = clock or SystemClock()
    database = Database(configured.resolved_database_url)
    database.migrate()
    blobs = LocalBlobStore(configured.blob_dir)
    return ApiServices(
        settings=configured,
        database=database,
        blobs=blobs,
        receiver=Receiver(configured, database, blobs, used),
        clock=used,
        static_dir=static_dir(),
        build="test",
    )


@cache
def _phantom(head: bool) -> Phantom:
    if head:
        return make(7, (1.6, 1.6, 5.0), (608.0, 798.0), bleed_ml=(30.0,), fov_mm=(224.0, 256.0))
    return make(7, (2.5, 2.5, 5.0), (20.0, 540.0))


def _images(head: bool, study_uid: str) -> tuple[Volume, dict[str, LabelMap]]:
    phantom = _phantom(head)
    source = VolumeSource("CT", study_uid, f"{study_uid}.1", f"{study_uid}.9", "a" * 64, synthetic=True)
    volume = Volume(phantom.hu, phantom.affine_ras, source)

    def labels(task: str, array: Any, names: Mapping[int, str]) -> LabelMap:
        model = ModelRef(task, f"demo/{task}", "b" * 64, synthetic=True)
        # A model that knows fewer structures than were painted; a value without a name is refused.
        known = np.where(np.isin(array, list(names)), array, 0).astype(array.dtype)
        return LabelMap(known, phantom.affine_ras, names, model, source.manifest_sha256)

    tissue = {1: "subcutaneous_fat", 2: "torso_fat", 3: "skeletal_muscle"}
    maps = {
        "total": labels("total", phantom.total, TOTAL),
        "tissue_types": labels("tissue_types", phantom.tissue, tissue),
    }
    if head:
        bleed = labels("cerebral_bleed", phantom.bleed.astype("uint8"), {1: "intracerebral_hemorrhage"})
        maps = {"total": maps["total"], "cerebral_bleed": bleed}
    return volume, maps


def add_study(session: Session, study_uid: str, now: datetime, **columns: Any) -> StudyRow:
    """One study and its first event; `columns` replace what an ordinary one has."""
    values: dict[str, Any] = {
        "state": StudyState.QUEUED.value,
        "first_received_at": now,
        "last_received_at": now,
        "patient_id": "DEMO-000",
        "patient_name": "Demo^Patient",
        "patient_birth_date": "19600214",
        "patient_sex": "F",
        "study_date": f"{now:%Y%m%d}",
        "study_time": "101500",
        "study_description": "CT Abdomen",
        "modalities": "CT",
        "n_instances": 104,
        "n_bytes": 104 * 526_000,
    } | columns
    study = StudyRow(study_uid=study_uid, **values)
    session.add(study)
    session.flush()
    record_event(session, "study.state", now=now, actor="test", study_id=study.id, new=study.state)
    return study


def add_result(session: Session, made: ApiServices, study: StudyRow, *, head: bool = False) -> ResultRow:
    """The study is measured: series, job with its steps, result and files."""
    now = made.clock.now()
    volume, maps = _images(head, study.study_uid)
    left_out = {"cerebral_bleed": "anatomy_absent"}
    measurements = measure_all(MetricContext(volume, maps, left_out, not_run_because=NOT_RUN))
    assessment = assess(measurements)
    series = [
        SeriesRow(
            study_id=study.id,
            series_uid=f"{study.study_uid}.1",
            modality="CT",
            series_number=2,
            series_description="Axial 2.0 Br40",
            n_instances=104,
            chosen=True,
            reason="thinnest axial series with a soft kernel",
            geometry={"shape": list(volume.shape), "spacing_mm": list(volume.spacing_mm), "flags": ["tilt:12.0"]},
        ),
        SeriesRow(
            study_id=study.id,
            series_uid=f"{study.study_uid}.2",
            modality="CT",
            series_number=1,
            series_description="Scout",
            n_instances=2,
            chosen=False,
            reject_code="localizer",
            reason="ImageType says LOCALIZER",
        ),
    ]
    job = JobRow(kind="study", key=study.id, study_id=study.id, state="done", run_at=now, created_at=now, attempt=1)
    session.add_all([*series, job])
    session.flush()
    assert job.id is not None
    session.add_all(
        JobStepRow(job_id=job.id, step=step, input_hash="0" * 64, fence=1, seconds=seconds, finished_at=now)
        for step, seconds in STEPS.items()
    )
    document = documents.results_document(
        study=documents.StudyFacts(study.id, study.study_uid, modality="CT"),
        measurements=measurements,
        assessment=assessment,
        series=(),
        models=[one.model for one in maps.values()],
        skipped_tasks=() if head else (documents.SkippedTask("cerebral_bleed", "anatomy_absent", NOT_RUN_WORDS),),
        stage_seconds=STEPS,
        software_version="0.1.0",
        synthetic=True,
        volume_facts=None,
    )
    urgency = assessment.urgency.value if assessment.urgency else None
    result = ResultRow(
        study_id=study.id, job_id=job.id, fence=1, created_at=now, urgency=urgency, synthetic=True, document=document
    )
    session.add(result)
    session.flush()
    shared = {"source_manifest_sha256": volume.source.manifest_sha256, "synthetic": True}
    files = [
        (p.name, p.kind, "image/png", p.png, dict(p.meta))
        for p in key_images(volume, maps, measurements, synthetic=True)
    ]
    files.append(("display.nii.gz", "display_volume", "application/gzip", display_volume_nifti(volume), shared))
    files.append(("results.json", "results", "application/json", documents.to_bytes(document), {}))
    for task, label_map in maps.items():
        meta = {**shared, "task": task, "labels": {str(value): name for value, name in label_map.labels.items()}}
        name = f"display-labels-{task}.nii.gz"
        files.append((name, "display_label_map", "application/gzip", display_label_map_nifti(label_map), meta))
    for name, kind, media_type, content, meta in files:
        ref = made.blobs.put(content)
        session.add(
            ArtifactRow(
                result_id=result.id,
                study_id=study.id,
                name=name,
                kind=kind,
                media_type=media_type,
                sha256=ref.sha256,
                size=ref.size,
                synthetic=True,
                meta=meta,
            )
        )
    study.urgency, study.urgency_reason, study.synthetic = urgency, assessment.reason, True
    study.state, study.done_at = StudyState.DONE.value, now
    session.add(study)
    record_event(session, "study.state", now=now, actor="worker", study_id=study.id, old="running", new="done")
    return result


def seed(made: ApiServices) -> None:
    """One study in every state that a day brings."""
    now = made.clock.now()
    with made.database.write() as session:
        ago = lambda minutes: now - timedelta(minutes=minutes)  # noqa: E731
        abdomen = add_study(session, ABDOMEN_UID, ago(52), patient_name="Demo^Alba", patient_id="DEMO-001")
        add_result(session, made, abdomen)
        head = add_study(
            session,
            HEAD_UID,
            ago(12),
            patient_name="Demo^Bruno",
            patient_id="DEMO-002",
            patient_sex="M",
            study_description="CT Head native",
            n_instances=38,
        )
        add_result(session, made, head, head=True)
        add_study(
            session,
            RUNNING_UID,
            ago(6),
            patient_name="Demo^Carla",
            patient_id="DEMO-003",
            state="running",
            step="segment",
            ordered_priority="STAT",
        )
        add_study(session, QUEUED_UID, ago(5), patient_name="Demo^Dario", patient_id="DEMO-004", patient_sex="M")
        add_study(
            session,
            FAILED_UID,
            ago(70),
            patient_name="Demo^Elena",
            patient_id="DEMO-005",
            state="failed",
            reason_code="not_a_volume",
            reason="missing_slices: 3 of 104 slices are absent",
        )
        add_study(
            session,
            NOT_APPLICABLE_UID,
            ago(80),
            patient_name="Demo^Fausto",
            patient_id="DEMO-006",
            state="not_applicable",
            reason_code="modality_not_supported",
            reason="no installed model reads MG",
            modalities="MG",
            study_description="Mammography",
            n_instances=4,
        )
        add_study(
            session,
            RECEIVING_UID,
            ago(0),
            patient_name="Demo^Greta",
            patient_id="DEMO-007",
            state="receiving",
            n_instances=31,
        )


def seeded_app(folder: Path, **settings: Any) -> FastAPI:
    """The application over a seeded installation."""
    made = services(folder, **settings)
    seed(made)
    return create_app(made)


def main() -> None:
    import uvicorn

    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    settings = dict(item.split("=", 1) for item in sys.argv[3:])
    uvicorn.run(seeded_app(folder, **settings), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
