"""What the API answers. Tables are not API models: a column added to a table is not published by itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class CompletionView(BaseModel):
    """Why the study's present images count as all of them, or when they will."""

    code: str = Field(
        description="idle_after_release, idle, idle_after_abort, expected_count, required_series, hard_maximum or "
        "operator; while somebody sends to it: sending, upload_open; receiving before that is known. While `closes_at` "
        "is set the study is open, and this is what will have closed it if nothing more comes."
    )
    reason: str = Field(description="The same in words, as true before the closing as after it.")
    closes_at: datetime | None = Field(
        description="While it is open: when it will be closed if nothing more comes. Null while an association is open "
        "that has sent to it, while images of an upload are coming, and once it is closed."
    )
    transfer: str | None = Field(
        description="How the last transfer had ended when the study was closed: released, aborted, lost, or open where "
        "it had not. Null while the study is open, and where that is not known."
    )
    incomplete: str | None = Field(
        description="Why images may be missing in a study that was closed, a reason code: idle_after_abort, "
        "hard_maximum, transfer_incomplete. Null while the study is open, and where nothing says so."
    )


class StudySummary(BaseModel):
    """One row of the worklist."""

    study_uid: str
    uid_generated: bool = Field(
        description="True where the images carry no StudyInstanceUID: `study_uid` was made here, no PACS knows it."
    )
    state: str = Field(
        description="receiving, settling, queued, running, done, failed, not_applicable, cancelled, superseded."
    )
    step: str | None = Field(description="The running step, while `state` is running.")
    reason_code: str | None = Field(description="Why it failed or does not apply.")
    reason: str | None
    urgency: str | None = Field(
        description="P0 to P3; null until the rules have run, and where only an older result said P3."
    )
    urgency_word: str | None = Field(description="CRITICAL, URGENT, SOON, ROUTINE.")
    urgency_reason: str | None
    urgency_older: bool = Field(
        description="True where the urgency is that of an older result: the last run has not ended well, or said less."
    )
    ordered_priority: str | None = Field(description="What the order said: STAT, HIGH, ROUTINE, ...")
    synthetic: bool = Field(description="True where demo data or demo weights were used: not about a patient.")
    door: str = Field(description="The way it came in: dicom, upload, stow.")
    patient_id: str | None
    patient_name: str | None
    patient_birth_date: str | None = Field(description="DICOM DA: YYYYMMDD.")
    patient_sex: str | None
    accession_number: str | None
    study_date: str | None = Field(description="DICOM DA: YYYYMMDD.")
    study_time: str | None = Field(description="DICOM TM: HHMMSS.")
    study_description: str | None
    modalities: list[str]
    n_instances: int
    n_bytes: int
    first_received_at: datetime
    last_received_at: datetime
    closed_at: datetime | None
    completion: CompletionView | None = Field(description="Null for studies that older versions closed.")
    done_at: datetime | None
    uid_conflicts: int = Field(
        description="SOP Instance UIDs under which images with different bytes came. All are kept; `uid_conflicts` of "
        "the study's own page tells them."
    )
    stale: bool = Field(description="True where the study has a result and it is not that of its images as they are.")


class StudyPage(BaseModel):
    """A page of the worklist, in reading order."""

    studies: list[StudySummary]
    total: int = Field(description="Studies that match, over all pages.")
    limit: int
    offset: int
    server_now: datetime = Field(description="For clocks and ages on the screen.")


class RuleLineView(BaseModel):
    """What one rule said of one series."""

    rule: str
    value: str = Field(description="What the rule looked at.")
    effect: str = Field(
        description="passed; refused; overruled (by a person); ranked; decides (it parted the series from the chosen "
        "one); tie, confirmed, disagrees, prefers (of the contrast phase model)."
    )
    score: float | None = Field(
        description="The number that ranks, the lowest first; null where the rule refuses only."
    )


class SeriesPartView(BaseModel):
    """One part of a series (sizes, orientations, phases are told apart), and every rule that judged it."""

    part: int
    code: str
    reason: str
    instances: int
    accepted: bool
    chosen_by: str | None = Field(description="rules, person; null where it was not chosen.")
    can_be_chosen: bool = Field(description="False where it is no volume, whoever wants it.")
    lines: list[RuleLineView]


class RulesView(BaseModel):
    """Which rules chose."""

    rules_id: str
    version: int
    sha256: str
    purpose: str


class SeriesSelectionView(BaseModel):
    """How a series was judged."""

    rules: RulesView | None
    parts: list[SeriesPartView]


class SeriesView(BaseModel):
    """One series, and why it was, or was not, measured."""

    series_uid: str
    modality: str | None
    series_number: int | None
    series_description: str | None
    body_part: str | None
    n_instances: int
    chosen: bool | None = Field(description="null until the selection has run.")
    reject_code: str | None
    reason: str | None
    geometry: dict[str, Any] | None = Field(description="Shape, spacing in mm and flags of the assembled volume.")
    selection: SeriesSelectionView | None = Field(description="Every rule; null for series judged by older versions.")


class StageView(BaseModel):
    """One finished step of the newest job."""

    step: str
    seconds: float
    attempt: int
    finished_at: datetime


class HistoryView(BaseModel):
    """One thing that happened to the study."""

    id: int
    at: datetime
    kind: str
    actor: str
    old: str | None
    new: str | None
    reason: str | None


class ArtifactView(BaseModel):
    """One file of the newest result."""

    name: str
    kind: str
    media_type: str
    size: int = Field(description="Bytes.")
    sha256: str
    synthetic: bool
    url: str = Field(description="Where to get it, relative to this server.")
    meta: dict[str, Any]


class ResultSummary(BaseModel):
    """The newest result in short. It may be older than the study: see `stale`."""

    epoch: int
    version: int
    created_at: datetime
    urgency: str | None
    synthetic: bool
    n_measurements: int
    n_with_value: int
    n_images: int = Field(description="Images that the study had when this result was made.")
    kept_epoch: int | None = Field(
        description="The latest epoch that it stands for: images came after it and changed nothing that was measured. "
        "Null: none came, or they changed something."
    )
    stale: bool = Field(
        description="True where newer images came in, or a newer run has not ended well. Sent as X-Heimdallr-Stale too."
    )


class OlderResultView(BaseModel):
    """A result that another one has taken the place of."""

    version: int
    epoch: int
    created_at: datetime
    urgency: str | None
    n_images: int = Field(description="Images that the study had when it was made.")


class JobView(BaseModel):
    """The newest job of the study."""

    state: str
    attempt: int
    max_attempts: int
    error_code: str | None
    error: str | None


class OverlayView(BaseModel):
    """A label map that the volume viewer may draw."""

    name: str = Field(description="Name of the artifact.")
    task: str = Field(description="The segmentation task that made it.")
    same_grid: bool = Field(description="Made from the pixels of the shown volume. Where false it must not be drawn.")
    structures: dict[str, str] = Field(description="Label value to structure name.")


class ViewerView(BaseModel):
    """What the volume viewer may show."""

    volume: str = Field(description="Name of the artifact with the image.")
    overlays: list[OverlayView]


class ChoiceView(BaseModel):
    """A person's choice, which the newest job follows."""

    series_uid: str | None = Field(description="Null: the rules choose.")
    part: int | None
    chosen_by: str = Field(description="Who chose the series; where none is named, who asked about the tilt.")
    chosen_at: datetime
    reason: str
    deskew: bool | None = Field(description="Whether a tilt is taken out; null: as the site's setting says.")
    deskew_by: str | None = Field(description="Who asked about the tilt; null: `chosen_by`.")
    deskew_at: datetime | None
    deskew_reason: str | None


class ContestedImageView(BaseModel):
    """One of the images that came under one SOP Instance UID with different bytes."""

    sop_uid: str
    study_uid: str = Field(description="May be another study than the one that was asked for.")
    series_uid: str
    sha256: str = Field(description="Of the Part 10 file as it is kept here.")
    received_at: datetime
    door: str
    calling_ae: str | None
    address: str | None


class StudyDetail(BaseModel):
    """Everything about one study but its measurements, which are in its results."""

    study: StudySummary
    series: list[SeriesView]
    choice: ChoiceView | None = Field(description="What a person chose; null: the rules and settings do.")
    job: JobView | None
    stages: list[StageView]
    history: list[HistoryView]
    artifacts: list[ArtifactView]
    result: ResultSummary | None
    uid_conflicts: list[ContestedImageView] = Field(
        description="Images of this study whose SOP Instance UID another image has, and those others, by UID; of the "
        "first 20 such UIDs."
    )
    older_results: list[OlderResultView] = Field(description="Superseded by `result`, the newest first.")
    viewer: ViewerView | None
    server_now: datetime


class UploadResult(BaseModel):
    """What became of an uploaded ZIP."""

    accepted: int = Field(description="DICOM objects now stored.")
    rejected: int = Field(description="Entries of the ZIP that are no DICOM objects; they were left out.")
    rejections: dict[str, int] = Field(description="The same by error code.")
    already_there: int = Field(
        description="Of the accepted ones, those that were stored here before, with equal bytes."
    )
    study_uids: list[str]


class InstanceNamed(BaseModel):
    """One DICOM object by what tells it from every other."""

    model_config = ConfigDict(extra="forbid")

    sop_uid: str = Field(max_length=64, description="SOP Instance UID.")
    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="Of the Part 10 file as it is kept here; `heimdallr upload` computes it. Others send every object.",
    )


class InstancesAsked(BaseModel):
    """Which of these are there already?"""

    model_config = ConfigDict(extra="forbid")

    instances: list[InstanceNamed] = Field(max_length=2000)


class InstancesKnown(BaseModel):
    """Of those that were asked about."""

    known: list[int] = Field(
        description="Positions in the question of those that are durable here, byte for byte as the disk has them."
    )
    looked_at: int = Field(description="The first so many of the question were looked at; ask again for the others.")


class UploadAccepted(BaseModel):
    """The original's answer to an upload."""

    status: Literal["Accepted"]
    message: str
    original_file: str


class Health(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Check(BaseModel):
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether studies can be taken in and shown."""

    ready: bool
    checks: list[Check]
    components: dict[str, str] = Field(description="Other deployments, as far as known.")


class DiskView(BaseModel):
    """The disk of the data folder."""

    level: str = Field(description="`well`, `warn`, or `refuse`: images are refused until there is room.")
    used_percent: float
    free_bytes: int
    warn_percent: float
    refuse_percent: float
    min_free_bytes: int


class StatusView(BaseModel):
    """The installation at a glance."""

    studies: dict[str, int] = Field(description="Studies by state.")
    jobs: dict[str, int] = Field(description="Queue rows by state.")
    queue_depth: int = Field(description="Jobs that wait or run.")
    oldest_wait_s: float | None = Field(description="Age of the oldest job that waits.")
    version: str
    build: str
    versions: dict[str, str] = Field(description="Of the packages that results depend on.")
    profile: str
    synthetic: bool = Field(description="True where results come from demo weights.")
    idle_seconds: float = Field(
        description="A study without an image for so long is complete, where nothing is known of how its sender ended."
    )
    settle_after_release_seconds: float = Field(
        description="The same after its sender has ended properly. Sources may have rules of their own."
    )
    disk: DiskView | None = Field(description="Null where the disk does not answer.")
    server_now: datetime
