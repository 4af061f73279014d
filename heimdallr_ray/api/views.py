"""Rows of the catalog as what the API answers: pure, one function per model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast
from urllib.parse import quote

from heimdallr_ray.api import models
from heimdallr_ray.catalog.choosing import SeriesChosen, chosen_in
from heimdallr_ray.catalog.completeness import TRANSFER_INCOMPLETE, CloseCode
from heimdallr_ray.catalog.conflicts import ContestedImage
from heimdallr_ray.catalog.recording import OPEN
from heimdallr_ray.catalog.results import stands_until
from heimdallr_ray.catalog.states import How, StudyState, Urgency
from heimdallr_ray.catalog.tables import ArtifactRow, EventRow, JobRow, JobStepRow, ResultRow, SeriesRow, StudyRow
from heimdallr_ray.catalog.worklist import StudyDetail
from heimdallr_ray.listener.room import Room, Watermarks


def artifact_url(study_uid: str, name: str) -> str:
    """Where an artifact is served, relative to the server."""
    return f"/api/v1/studies/{quote(study_uid, safe='')}/artifacts/{quote(name, safe='')}"


MAX_OLDER = 20
"""Superseded results that a page lists."""
_BROKEN_OFF = frozenset({CloseCode.IDLE_AFTER_ABORT.value, CloseCode.HARD_MAXIMUM.value})
_ENDED = frozenset(
    state.value
    for state in (
        *(StudyState.DONE, StudyState.FAILED, StudyState.NOT_APPLICABLE),
        *(StudyState.CANCELLED, StudyState.SUPERSEDED),
    )
)


def is_stale(study: StudyRow, result_epoch: int | None) -> bool:
    """True where the study has a result and it is not that of its images as they are now."""
    return result_epoch is not None and (result_epoch < study.epoch or study.state != StudyState.DONE.value)


def _urgency(row: StudyRow, newest: tuple[int, str | None] | None) -> tuple[str | None, str | None, bool]:
    """Class, reason, and whether both are of an older result than the study's last run.

    The catalog never lowers a class. A P3 of an older result is not shown as one: it raises nothing, and what a newer
    run did not find out is no ROUTINE; the reason is then the newer run's.
    """
    stale = newest is not None and is_stale(row, newest[0])
    older = newest is not None and row.urgency is not None and (stale or newest[1] != row.urgency)
    if older and row.urgency == Urgency.P3.value:
        if row.state == StudyState.DONE.value and not stale:
            return None, f"{row.urgency_reason or 'No AI urgency.'} (An older result was P3 ROUTINE.)", True
        ended = row.state in _ENDED
        now = "the newer run gave no AI urgency" if ended else "the newer run has not ended"
        return None, f"No AI urgency: an older result was P3 ROUTINE, and {now}. That is not ROUTINE.", True
    return row.urgency, row.urgency_reason, older


def disk_view(room: Room, marks: Watermarks) -> models.DiskView:
    """The disk, and what it means for the doors."""
    return models.DiskView(
        level=room.level(marks).value,
        used_percent=round(room.used_percent, 2),
        free_bytes=room.free_bytes,
        warn_percent=marks.warn_percent,
        refuse_percent=marks.refuse_percent,
        min_free_bytes=marks.min_free_bytes,
    )


def summary(row: StudyRow, newest: tuple[int, str | None] | None, uid_conflicts: int) -> models.StudySummary:
    """One row of the worklist.

    Args:
        row: of the study.
        newest: epoch and urgency of its newest result.
        uid_conflicts: SOP Instance UIDs of its images that are contested.
    """
    urgency, reason, older = _urgency(row, newest)
    told = {"urgency", "urgency_reason", "urgency_older", "urgency_word", "modalities", "stale", "completion"}
    columns = row.model_dump(include=set(models.StudySummary.model_fields) - told - {"uid_conflicts"})
    return models.StudySummary(
        **columns,
        urgency=urgency,
        urgency_reason=reason,
        urgency_older=older,
        urgency_word=Urgency(urgency).word if urgency else None,
        modalities=[part for part in (row.modalities or "").split(",") if part],
        stale=is_stale(row, None if newest is None else newest[0]),
        completion=completion(row),
        uid_conflicts=uid_conflicts,
    )


def completion(row: StudyRow) -> models.CompletionView | None:
    """Why the study was closed, or when and why it will be, or what holds it open; None where that is not known."""
    is_open = StudyState(row.state) in OPEN
    if row.close_code is None and not is_open:
        return None
    code = row.close_code or StudyState.RECEIVING.value
    return models.CompletionView(
        code=code,
        reason=row.close_reason or "images are coming",
        closes_at=row.closes_at if is_open else None,
        transfer=None if is_open else row.last_transfer,
        # An open study was not closed as anything: its code says what would close it.
        incomplete=None if is_open else incomplete(code, row.last_transfer),
    )


def incomplete(close_code: str, transfer: str | None) -> str | None:
    """The reason code for images that may be missing in a closed study; None where nothing says so."""
    if close_code in _BROKEN_OFF:
        return close_code
    # All that was announced or required is there, however its transfer ended; a person may not have known.
    unended = transfer is not None and transfer != How.RELEASED.value
    return TRANSFER_INCOMPLETE if close_code == CloseCode.OPERATOR.value and unended else None


def series(row: SeriesRow) -> models.SeriesView:
    """One series."""
    return models.SeriesView(**row.model_dump(include=set(models.SeriesView.model_fields)))


def choice(row: JobRow) -> models.ChoiceView | None:
    """The person's choice that the job follows, or None."""
    return choice_view(chosen_in(row.payload))


def choice_view(chosen: SeriesChosen | None) -> models.ChoiceView | None:
    """A person's choice, or None."""
    return None if chosen is None else models.ChoiceView.model_validate(asdict(chosen))


def stage(row: JobStepRow) -> models.StageView:
    """One finished step."""
    return models.StageView(step=row.step, seconds=row.seconds, attempt=row.attempt, finished_at=row.finished_at)


def history(row: EventRow) -> models.HistoryView:
    """One event."""
    return models.HistoryView(
        id=row.id or 0, at=row.at, kind=row.kind, actor=row.actor, old=row.old, new=row.new, reason=row.reason
    )


def artifact(row: ArtifactRow, study_uid: str) -> models.ArtifactView:
    """One file."""
    return models.ArtifactView(
        name=row.name,
        kind=row.kind,
        media_type=row.media_type,
        size=row.size,
        sha256=row.sha256,
        synthetic=row.synthetic,
        url=artifact_url(study_uid, row.name),
        meta=row.meta,
    )


def result(row: ResultRow, study: StudyRow, n_images: int) -> models.ResultSummary:
    """The result in short; `n_images` were there when it was made."""
    measurements = [cast("dict[str, Any]", m) for m in row.document.get("measurements", []) if isinstance(m, dict)]
    return models.ResultSummary(
        epoch=row.epoch,
        version=row.version,
        created_at=row.created_at,
        urgency=row.urgency,
        synthetic=row.synthetic,
        n_measurements=len(measurements),
        n_with_value=sum(m.get("value") is not None for m in measurements),
        n_images=n_images,
        stale=is_stale(study, stands_until(row)),
        kept_epoch=row.kept_epoch,
    )


def older_result(row: ResultRow, n_images: int) -> models.OlderResultView:
    """A superseded result; `n_images` were there when it was made."""
    return models.OlderResultView(
        version=row.version, epoch=row.epoch, created_at=row.created_at, urgency=row.urgency, n_images=n_images
    )


def job(row: JobRow) -> models.JobView:
    """The job."""
    return models.JobView(
        state=row.state,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        error_code=row.error_code,
        error=row.error,
    )


def viewer(artifacts: Iterable[ArtifactRow]) -> models.ViewerView | None:
    """The display volume and the label maps for it; None where there is no display volume.

    A label map may be drawn only where both files say that they were made from the same pixels. The pipeline writes
    them on one grid or not at all; a file that does not say where it comes from is not trusted.
    """
    rows = list(artifacts)
    volume = next((row for row in rows if row.kind == "display_volume"), None)
    if volume is None:
        return None
    source = volume.meta.get("source_manifest_sha256")
    overlays: list[models.OverlayView] = []
    for row in rows:
        if row.kind != "display_label_map":
            continue
        labels = cast("dict[str, str]", row.meta.get("labels") or {})
        overlays.append(
            models.OverlayView(
                name=row.name,
                task=str(row.meta.get("task") or ""),
                same_grid=bool(source) and row.meta.get("source_manifest_sha256") == source,
                structures={str(value): str(name) for value, name in labels.items()},
            )
        )
    return models.ViewerView(volume=volume.name, overlays=overlays)


def detail(
    found: StudyDetail,
    steps: Iterable[JobStepRow],
    events: Iterable[EventRow],
    n_images: Mapping[int, int],
    contested: Iterable[ContestedImage],
    now: datetime,
) -> models.StudyDetail:
    """One study's page.

    Args:
        found: the study and what belongs to it.
        steps: of its newest job.
        events: its history.
        n_images: how many images the study had at the end of each epoch of a result.
        contested: images that share a SOP Instance UID, at least one of each UID from this study.
        now: UTC.
    """
    shared = [models.ContestedImageView(**asdict(one)) for one in contested]
    newest = (stands_until(found.result), found.result.urgency) if found.result else None
    return models.StudyDetail(
        study=summary(found.study, newest, found.uid_conflicts),
        uid_conflicts=shared,
        series=[series(row) for row in found.series],
        choice=choice(found.jobs[0]) if found.jobs else None,
        job=job(found.jobs[0]) if found.jobs else None,
        stages=[stage(row) for row in steps],
        history=[history(row) for row in events],
        artifacts=[artifact(row, found.study.study_uid) for row in found.artifacts],
        result=None if found.result is None else result(found.result, found.study, n_images.get(found.result.epoch, 0)),
        older_results=[older_result(row, n_images.get(row.epoch, 0)) for row in found.superseded[:MAX_OLDER]],
        viewer=viewer(found.artifacts),
        server_now=now,
    )
