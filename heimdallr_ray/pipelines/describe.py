"""Catalog rows and values of the chain, as the plain facts that the documents are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from heimdallr_ray.catalog.choosing import SeriesChosen
from heimdallr_ray.catalog.results import SeriesChoice
from heimdallr_ray.catalog.tables import SeriesRow, StudyRow
from heimdallr_ray.dicom.regions import unmeasured_regions
from heimdallr_ray.dicom.series import Override, Selection
from heimdallr_ray.dicom.series import SeriesDecision as DicomDecision
from heimdallr_ray.errors import HeimdallrError, NotAVolume
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines.documents import SeriesDecision, SkippedTask, StudyFacts
from heimdallr_ray.reasons import SENTENCES
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
    rules = None if selection.rules is None else asdict(selection.rules)
    return [_choice(series_uid, parts, geometry, rules) for series_uid, parts in by_uid.items()]


def override_of(choice: SeriesChosen | None) -> Override | None:
    """A person's choice as the selection takes it.

    Raises:
        BadIdentifier: its series is named by no UID.
    """
    if choice is None or choice.series_uid is None:
        return None
    return Override(Uid.parse(choice.series_uid), choice.part, choice.chosen_by, choice.chosen_at, choice.reason)


def deskew_wanted(choice: SeriesChosen | None, site: bool) -> bool:
    """Whether a tilt is to be taken out: a person's word, else the site's setting."""
    return site if choice is None or choice.deskew is None else choice.deskew


def selection_facts(selection: Selection, choice: SeriesChosen | None = None) -> dict[str, Any]:
    """Which rules decided, what a person chose, and who stood for the contrast phase model, as JSON."""
    asked = choice if choice is not None and choice.deskew is not None else None
    return {
        "rules": None if selection.rules is None else asdict(selection.rules),
        "chosen_by": next((one.chosen_by for one in selection.decisions if one.accepted), None),
        "override": None if selection.override is None else asdict(selection.override),
        "deskew": None
        if asked is None
        else {"deskew": asked.deskew, **dict(zip(("chosen_by", "chosen_at", "reason"), asked.of_tilt, strict=True))},
        "finalists": [
            {
                "series_uid": str(one.series.uid),
                "part": one.series.part,
                "header_phase": str(one.header_phase.phase),
                "reasons": list(one.header_phase.reasons),
            }
            for one in selection.finalists
        ],
        "converter_for": selection.fallback_code or None,
        "not_measured": [asdict(one) for one in unmeasured_regions(selection)],
    }


def explained(decision: DicomDecision) -> dict[str, Any]:
    """One decision with every line, as JSON."""
    phase = decision.header_phase
    return {
        "part": decision.part,
        "code": decision.code,
        "reason": decision.reason,
        "instances": decision.instances,
        "accepted": decision.accepted,
        "chosen_by": decision.chosen_by or None,
        "can_be_chosen": decision.can_be_chosen,
        "header_phase": None if phase is None else {"phase": str(phase.phase), "reasons": list(phase.reasons)},
        "score": dict(decision.score),
        "lines": [asdict(line) for line in decision.lines],
    }


def _choice(
    series_uid: str,
    parts: Sequence[DicomDecision],
    geometry: Mapping[str, Any] | None,
    rules: Mapping[str, Any] | None,
) -> SeriesChoice:
    """A series that was split into parts is one row: chosen where any part is, the reasons of all parts kept."""
    accepted = next((part for part in parts if part.accepted), None)
    leading = accepted or max(parts, key=lambda part: part.instances)
    same = [part for part in parts if (part.code, part.reason) == (leading.code, leading.reason)]
    counted = Counter((part.code, part.reason) for part in parts if part not in same)
    others = [f"{_parts(count)}: {code}: {reason}" for (code, reason), count in counted.items()]
    own = leading.reason if len(same) == 1 else f"{leading.reason} ({_parts(len(same))})"
    return SeriesChoice(
        series_uid=series_uid,
        chosen=accepted is not None,
        reject_code=None if accepted else leading.code,
        reason="; ".join([own, *others]),
        geometry=geometry if accepted else None,
        selection={"rules": rules, "parts": [explained(part) for part in parts]},
    )


def _parts(count: int) -> str:
    return "1 part" if count == 1 else f"{count} parts"


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
                details=explained(decision),
            )
        )
    return tuple(made)


def skipped_tasks(run: SegmentationRun) -> tuple[SkippedTask, ...]:
    """Tasks that the plan left out, each with its code and words."""
    return tuple(SkippedTask(one.task, str(one.code), one.detail) for one in run.plan.left_out)


def memory_steps(run: SegmentationRun) -> tuple[dict[str, str], ...]:
    """What was tried because memory ran out, in order, with the task it was for."""
    return tuple({"task": task, **asdict(one)} for task, steps in run.memory_steps.items() for one in steps)


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


def failure_words(error: HeimdallrError) -> str:
    """Why a study failed, for its page: a refusal of its slices begins with the rule's code and sentence."""
    if not isinstance(error, NotAVolume):
        return error.detail
    sentence = SENTENCES.get(error.reason, "")
    detail = "" if error.detail == error.reason else error.detail
    if not sentence:
        return f"{error.reason}: {detail}" if detail else error.reason
    return f"{error.reason}: {sentence} ({detail})" if detail else f"{error.reason}: {sentence}"
