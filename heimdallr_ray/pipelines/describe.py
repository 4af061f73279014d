"""Catalog rows and values of the chain, as the plain facts that the documents are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heimdallr_ray.catalog.results import SeriesChoice
from heimdallr_ray.catalog.tables import SeriesRow, StudyRow
from heimdallr_ray.dicom.series import Selection
from heimdallr_ray.dicom.series import SeriesDecision as DicomDecision
from heimdallr_ray.pipelines.documents import SeriesDecision, SkippedTask, StudyFacts
from heimdallr_ray.segmentation.engine import SegmentationRun
from heimdallr_ray.volume import Volume


def volume_facts(volume: Volume) -> dict[str, Any]:
    """Grid and origin of the image that was measured, as JSON."""
    return {
        "shape": list(volume.shape),
        "spacing_mm": [round(value, 6) for value in volume.spacing_mm],
        "affine_ras": [[float(value) for value in row] for row in volume.affine_ras],
        "flags": list(volume.flags),
        "modality": volume.source.modality,
        "series_uid": volume.source.series_uid,
        "frame_of_reference_uid": volume.source.frame_of_reference_uid,
        "manifest_sha256": volume.source.manifest_sha256,
        "attributes": dict(volume.source.attributes),
    }


def series_choices(selection: Selection, volume: Volume | None) -> list[SeriesChoice]:
    """What the catalog keeps of the selection; with the geometry once the chosen series is a volume."""
    geometry: Mapping[str, Any] | None = None
    if volume is not None:
        geometry = {
            "shape": list(volume.shape),
            "spacing_mm": [round(value, 6) for value in volume.spacing_mm],
            "flags": list(volume.flags),
        }
    by_uid: dict[str, list[DicomDecision]] = {}
    for decision in selection.decisions:
        by_uid.setdefault(str(decision.series_uid), []).append(decision)
    return [_choice(series_uid, parts, geometry) for series_uid, parts in by_uid.items()]


def _choice(series_uid: str, parts: Sequence[DicomDecision], geometry: Mapping[str, Any] | None) -> SeriesChoice:
    """A series that was split into parts is one row: chosen where any part is, the reasons of all parts kept."""
    accepted = next((part for part in parts if part.accepted), None)
    leading = accepted or max(parts, key=lambda part: part.instances)
    others = [f"part of {part.instances}: {part.code}: {part.reason}" for part in parts if part is not leading]
    return SeriesChoice(
        series_uid=series_uid,
        chosen=accepted is not None,
        reject_code=None if accepted else leading.code,
        reason="; ".join([leading.reason, *others]),
        geometry=geometry if accepted else None,
    )


def series_decisions(selection: Selection, rows: Sequence[SeriesRow]) -> tuple[SeriesDecision, ...]:
    """The selection, with what the catalog knows of each series."""
    by_uid = {row.series_uid: row for row in rows}
    made: list[SeriesDecision] = []
    for decision in selection.decisions:
        row = by_uid.get(str(decision.series_uid))
        made.append(
            SeriesDecision(
                series_uid=str(decision.series_uid),
                chosen=decision.accepted,
                reason=decision.reason,
                reject_code=None if decision.accepted else decision.code,
                series_number=row.series_number if row else None,
                description=row.series_description if row else None,
                modality=row.modality if row else None,
                n_instances=decision.instances,
                details={"part": decision.part, "code": decision.code, "score": dict(decision.score)},
            )
        )
    return tuple(made)


def skipped_tasks(run: SegmentationRun) -> tuple[SkippedTask, ...]:
    """Tasks that the plan left out, each with its code and words."""
    return tuple(SkippedTask(one.task, str(one.code), one.detail) for one in run.plan.left_out)


def study_facts(study: StudyRow, rows: Sequence[SeriesRow], volume: Volume, epoch: int, manifest: str) -> StudyFacts:
    """The study as it stood when the epoch was closed."""
    return StudyFacts(
        study_id=study.id,
        study_uid=study.study_uid,
        uid_generated=study.uid_generated,
        epoch=epoch,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        patient_birth_date=study.patient_birth_date,
        patient_sex=study.patient_sex,
        accession_number=study.accession_number,
        study_date=study.study_date,
        study_time=study.study_time,
        study_description=study.study_description,
        ordered_priority=study.ordered_priority,
        modality=volume.source.modality,
        modalities=tuple((study.modalities or "").split(",")) if study.modalities else (),
        n_instances=study.n_instances,
        n_series=len(rows),
        manifest_sha256=manifest,
        door=study.door,
        calling_ae=study.calling_ae,
        received_first=study.first_received_at.isoformat(),
        received_last=study.last_received_at.isoformat(),
    )
