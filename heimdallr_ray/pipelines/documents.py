"""The JSON documents of a finished study: id.json, results.json, resultados.json. Pure; equal input, equal bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from heimdallr_ray.metrics.result import Measurement, Status
from heimdallr_ray.triage.urgency import Assessment
from heimdallr_ray.volume import ModelRef

ID_SCHEMA = "heimdallr/id/1"
RESULTS_SCHEMA = "heimdallr/results/1"
RESULTADOS_SCHEMA = "heimdallr/resultados/1"
NOTICE = "DEMO WEIGHTS - SYNTHETIC - not for diagnosis"
DISCLAIMER = "Decision support, not a diagnosis. An absent AI finding excludes nothing."

RESULTADOS_KEYS: dict[str, str] = {
    "liver_vol_cm3": "liver_volume",
    "liver_hu_mean": "liver_attenuation",
    "spleen_vol_cm3": "spleen_volume",
    "spleen_hu_mean": "spleen_attenuation",
    "kidney_right_vol_cm3": "kidney_right_volume",
    "kidney_right_hu_mean": "kidney_right_attenuation",
    "kidney_left_vol_cm3": "kidney_left_volume",
    "kidney_left_hu_mean": "kidney_left_attenuation",
    "SMA_cm2": "l3_muscle_area",
    "muscle_HU_mean": "l3_muscle_attenuation",
    "hemorrhage_vol_cm3": "intracranial_hemorrhage_volume",
}
"""The original's flat keys and our measurement behind each; 1 mL is 1 cm3."""


@dataclass(frozen=True)
class StudyFacts:
    """What is known of a study from its headers and its intake; None where unknown."""

    study_id: str
    study_uid: str
    uid_generated: bool = False
    epoch: int = 1
    patient_id: str | None = None
    patient_name: str | None = None
    patient_birth_date: str | None = None
    patient_sex: str | None = None
    accession_number: str | None = None
    study_date: str | None = None
    study_time: str | None = None
    study_description: str | None = None
    ordered_priority: str | None = None
    modality: str | None = None
    modalities: tuple[str, ...] = ()
    n_instances: int = 0
    n_series: int = 0
    manifest_sha256: str | None = None
    door: str | None = None
    calling_ae: str | None = None
    received_first: str | None = None
    received_last: str | None = None
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class SeriesDecision:
    """Why a series was, or was not, chosen."""

    series_uid: str
    chosen: bool
    reason: str
    reject_code: str | None = None
    series_number: int | None = None
    description: str | None = None
    modality: str | None = None
    n_instances: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON: scores, geometry."""


@dataclass(frozen=True)
class SkippedTask:
    """A segmentation task that was not run, the planner's code for it, and what the planner saw, in words."""

    task: str
    reason: str
    detail: str = ""


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """The document as canonical JSON: sorted keys, UTF-8, no NaN, two spaces, one line feed at the end.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode("utf-8") + b"\n"


def _marked(document: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    document["synthetic"] = synthetic
    if synthetic:
        document["notice"] = NOTICE
    return document


def _measurement(measurement: Measurement) -> dict[str, Any]:
    return {
        "id": measurement.id,
        "value": measurement.value,
        "unit": measurement.unit,
        "status": measurement.status.value,
        "reasons": list(measurement.reasons),
        "n_voxels": measurement.n_voxels,
        "evidence": dict(measurement.evidence),
        "provenance": asdict(measurement.provenance),
    }


def body_regions_of(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """The covered regions that the measurement `body_regions` names, from head to foot."""
    for measurement in measurements:
        if measurement.id == "body_regions" and measurement.status is Status.OK:
            return tuple(part for part in str(measurement.evidence.get("regions", "")).split(",") if part)
    return ()


def id_document(
    study: StudyFacts, series: Sequence[SeriesDecision] = (), *, software_version: str, synthetic: bool
) -> dict[str, Any]:
    """id.json: who and what the study is, and which series was used."""
    facts = {key: value for key, value in asdict(study).items() if not key.startswith("patient_")}
    document: dict[str, Any] = {
        "schema": ID_SCHEMA,
        "software_version": software_version,
        "study": {**facts, "modalities": list(study.modalities)},
        "patient": {
            "id": study.patient_id,
            "name": study.patient_name,
            "birth_date": study.patient_birth_date,
            "sex": study.patient_sex,
        },
        "series": [asdict(one) for one in series],
        "chosen_series_uid": next((one.series_uid for one in series if one.chosen), None),
    }
    return _marked(document, synthetic=synthetic)


def results_document(
    *,
    study: StudyFacts,
    measurements: Sequence[Measurement],
    assessment: Assessment,
    series: Sequence[SeriesDecision],
    models: Sequence[ModelRef],
    skipped_tasks: Sequence[SkippedTask] = (),
    memory_steps: Sequence[Mapping[str, str]] = (),
    stage_seconds: Mapping[str, float],
    software_version: str,
    synthetic: bool,
    volume_facts: Mapping[str, Any] | None = None,
    selection_facts: Mapping[str, Any] | None = None,
    labels_made_ahead: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """results.json: every number with its reason and provenance, the findings, and how they came about.

    Args:
        study: identifies the study; no name or birth date is copied from it.
        measurements: all of them, measured or not.
        assessment: what triage made of them.
        series: the selection, one entry per series.
        models: that ran.
        skipped_tasks: and those that did not.
        memory_steps: JSON: what was tried because memory ran out; empty where everything fitted.
        stage_seconds: seconds per stage of the pipeline.
        software_version: of this package.
        synthetic: True where any part is; also set where a model or a measurement says so.
        volume_facts: JSON: shape, spacing and flags of the image that was measured.
        selection_facts: JSON: the rules that chose the series, and whether a person did.
        labels_made_ahead: JSON: when and by which job, where the labels were made while the study settled.
    """
    synthetic = synthetic or any(m.synthetic for m in models) or any(m.provenance.synthetic for m in measurements)
    urgency = assessment.urgency
    document: dict[str, Any] = {
        "schema": RESULTS_SCHEMA,
        "disclaimer": DISCLAIMER,
        "software_version": software_version,
        "study": {
            "study_id": study.study_id,
            "study_uid": study.study_uid,
            "epoch": study.epoch,
            "modality": study.modality,
            "manifest_sha256": study.manifest_sha256,
        },
        "volume": dict(volume_facts) if volume_facts is not None else None,
        "body_regions": list(body_regions_of(measurements)),
        "measurements": [_measurement(one) for one in measurements],
        "urgency": {
            "class": urgency.value if urgency else None,
            "word": urgency.word if urgency else None,
            "reason": assessment.reason,
        },
        "findings": [{**asdict(one), "urgency": one.urgency.value} for one in assessment.findings],
        "selection": [asdict(one) for one in series],
        "selection_facts": dict(selection_facts) if selection_facts is not None else None,
        "labels_made_ahead": dict(labels_made_ahead) if labels_made_ahead is not None else None,
        "models": [asdict(one) for one in models],
        "skipped_tasks": [asdict(one) for one in skipped_tasks],
        "memory_steps": [dict(one) for one in memory_steps],
        "stage_seconds": dict(stage_seconds),
    }
    return _marked(document, synthetic=synthetic)


def resultados_document(
    measurements: Sequence[Measurement], regions: Sequence[str], modality: str | None, *, synthetic: bool
) -> dict[str, Any]:
    """resultados.json: the original's flat keys. Null where there is no number, never 0.

    An implausible value is shown in results.json with its status; without one it would pass for a good number, so it is
    null here.
    """
    values = {one.id: one.value for one in measurements if one.status is Status.OK}
    document: dict[str, Any] = {
        "schema": RESULTADOS_SCHEMA,
        "modality": modality,
        "body_regions": list(regions),
        **{key: values.get(measurement_id) for key, measurement_id in RESULTADOS_KEYS.items()},
    }
    return _marked(document, synthetic=synthetic or any(one.provenance.synthetic for one in measurements))
