"""The tables, a class each: studies and their images, who sent them, the queue, history, results, the audit chain.

Rows point at blobs by sha256, never the other way. Times are UTC. Text that came from outside is data, never a name.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from heimdallr_ray.catalog.states import JobState, StudyState
from heimdallr_ray.catalog.types import UtcDateTime
from heimdallr_ray.ids import new_id

_BIG_ID = BigInteger().with_variant(Integer(), "sqlite")
# SQLite gives a deleted row's id to the next row otherwise: a Last-Event-ID or a step would then mean another thing.
_NEVER_REUSE_IDS = {"sqlite_autoincrement": True}


class StudyRow(SQLModel, table=True):
    """One study, keyed by StudyInstanceUID (a derived UID where the sender left it blank)."""

    __tablename__ = "study"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (
        Index("ix_study_state_last", "state", "last_received_at"),
        Index("ix_study_state_id", "state", "id"),
    )

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    study_uid: str = Field(unique=True, max_length=64)
    uid_generated: bool = False
    state: str = Field(default=StudyState.RECEIVING.value, max_length=16)
    step: str | None = Field(default=None, max_length=32)
    reason_code: str | None = Field(default=None, max_length=64)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    epoch: int = 1
    manifest_sha256: str | None = Field(default=None, max_length=64)
    n_instances: int = 0
    n_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))
    first_received_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    last_received_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    closed_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    n_expected: int | None = None
    """Number of Study Related Instances (0020,1208), where a header carries it."""
    epoch_opened_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    """When the first image of the present epoch came; None until the watcher has seen the epoch."""
    closes_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    """When the study will be closed if nothing more comes; None while that cannot be said."""
    close_code: str | None = Field(default=None, max_length=32)
    """CloseCode: why it was closed, or will be."""
    close_reason: str | None = Field(default=None, sa_column=Column(Text))
    last_transfer: str | None = Field(default=None, max_length=8)
    """How the last transfer had ended when it was closed: a value of `How`, or `open`; None where that is not known."""
    done_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    urgency: str | None = Field(default=None, max_length=2, index=True)
    urgency_reason: str | None = Field(default=None, sa_column=Column(Text))
    ordered_priority: str | None = Field(default=None, max_length=16)
    synthetic: bool = False
    door: str = Field(default="dicom", max_length=8)
    calling_ae: str | None = Field(default=None, max_length=16)
    patient_id: str | None = Field(default=None, max_length=64, index=True)
    patient_name: str | None = Field(default=None, max_length=324)
    patient_birth_date: str | None = Field(default=None, max_length=8)
    patient_sex: str | None = Field(default=None, max_length=16)
    accession_number: str | None = Field(default=None, max_length=16, index=True)
    study_date: str | None = Field(default=None, max_length=8)
    study_time: str | None = Field(default=None, max_length=16)
    study_description: str | None = Field(default=None, max_length=64)
    modalities: str | None = Field(default=None, max_length=64)
    """Comma-separated, sorted."""


class SeriesRow(SQLModel, table=True):
    """One series of a study, and why it was, or was not, chosen."""

    __tablename__ = "series"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("study_id", "series_uid"),)

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    study_id: str = Field(foreign_key="study.id", index=True, max_length=32)
    series_uid: str = Field(max_length=64)
    modality: str | None = Field(default=None, max_length=16)
    series_number: int | None = None
    series_description: str | None = Field(default=None, max_length=64)
    body_part: str | None = Field(default=None, max_length=16)
    n_instances: int = 0
    chosen: bool | None = None
    """None until a selection has run."""
    reject_code: str | None = Field(default=None, max_length=64)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    geometry: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    """JSON: shape, spacing_mm, flags of the assembled volume."""
    selection: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    """JSON: `rules` (id, version, sha256, purpose) and `parts`: code, reason and every line of each."""


class InstanceRow(SQLModel, table=True):
    """One stored DICOM object, whose bytes are the blob `blob_sha256`."""

    __tablename__ = "instance"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (
        UniqueConstraint("study_id", "sop_uid", "blob_sha256"),
        Index("ix_instance_sender", "study_id", "epoch", "association_id"),
        # Few rows, asked for with every page of the worklist.
        Index(
            "ix_instance_conflict",
            "study_id",
            sqlite_where=text("sop_uid_conflict IS 1"),
            postgresql_where=text("sop_uid_conflict IS true"),
        ),
    )

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    study_id: str = Field(foreign_key="study.id", max_length=32)
    series_id: str = Field(foreign_key="series.id", index=True, max_length=32)
    sop_uid: str = Field(index=True, max_length=64)
    sop_class_uid: str = Field(max_length=64)
    transfer_syntax_uid: str = Field(max_length=64)
    blob_sha256: str = Field(max_length=64)
    """Of the Part 10 file, whose group 0002 depends on the object alone: equal objects have equal digests."""
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Bytes of the data set, without preamble and file meta."""
    spool_name: str = Field(unique=True, max_length=64)
    epoch: int = 1
    received_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    door: str = Field(default="dicom", max_length=8)
    association_id: str | None = Field(default=None, max_length=64)
    calling_ae: str | None = Field(default=None, max_length=16)
    address: str | None = Field(default=None, max_length=64)
    sop_uid_conflict: bool = False
    durable: bool = True
    """False: a power cut may still take its bytes (the setting durability = study)."""


class UidAliasRow(SQLModel, table=True):
    """A derived study or series UID of objects that had come before, by another association and under another UID."""

    __tablename__ = "uid_alias"  # pyright: ignore[reportAssignmentType]

    uid: str = Field(primary_key=True, max_length=64)
    stands_for: str = Field(max_length=64)
    """UID of the study or series that they are in."""
    at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]


class ResendRow(SQLModel, table=True):
    """An association, upload or STOW request that brought known images to a study while this epoch of it was open."""

    __tablename__ = "resend"  # pyright: ignore[reportAssignmentType]

    study_id: str = Field(foreign_key="study.id", primary_key=True, max_length=32)
    epoch: int = Field(primary_key=True)
    association_id: str = Field(primary_key=True, max_length=64)


class AssociationRow(SQLModel, table=True):
    """One intake: a DICOM association, an upload or a STOW request. A column is None where it is not known."""

    __tablename__ = "association"  # pyright: ignore[reportAssignmentType]

    id: str = Field(primary_key=True, max_length=64)
    """What `instance.association_id` holds."""
    door: str | None = Field(default=None, max_length=8)
    calling_ae: str | None = Field(default=None, max_length=16)
    called_ae: str | None = Field(default=None, max_length=16)
    address: str | None = Field(default=None, max_length=64)
    implementation: str | None = Field(default=None, max_length=64)
    actor_kind: str | None = Field(default=None, max_length=16)
    """`ActorKind` of who stood behind an HTTP request, and `actor_name`; None for a DICOM association."""
    actor_name: str | None = Field(default=None, max_length=64)
    opened_at: datetime | None = Field(default=None, index=True, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    closed_at: datetime | None = Field(default=None, index=True, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    how: str | None = Field(default=None, max_length=8)
    """`How` it ended."""
    reason: str | None = Field(default=None, sa_column=Column(Text))
    stored: int = 0
    duplicates: int = 0
    """Without those that were read back from the spool, which may have been counted before."""
    refused: int = 0
    n_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, default=0))


class ApiTokenRow(SQLModel, table=True):
    """One bearer token of a machine or person. The token itself is shown once and kept nowhere."""

    __tablename__ = "api_token"  # pyright: ignore[reportAssignmentType]

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    name: str = Field(unique=True, max_length=32)
    """Of who holds it; never given to another token, because the audit chain knows it."""
    sha256: str = Field(unique=True, max_length=64)
    scopes: str = Field(max_length=64)
    """Comma-separated, sorted."""
    created_by: str = Field(max_length=64)
    created_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]


class JobRow(SQLModel, table=True):
    """One row of the lease table. `fence` grows with each claim; who holds an older fence changes nothing."""

    __tablename__ = "job"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (
        UniqueConstraint("kind", "key"),
        Index("ix_job_claim", "state", "priority", "run_at"),
        _NEVER_REUSE_IDS,
    )

    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    kind: str = Field(max_length=16)
    key: str = Field(max_length=128)
    study_id: str | None = Field(default=None, foreign_key="study.id", index=True, max_length=32)
    epoch: int = 1
    priority: int = 3
    state: str = Field(default=JobState.QUEUED.value, max_length=16)
    run_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    attempt: int = 0
    max_attempts: int = 3
    lost: int = 0
    """Holders that vanished: killed, or stopped without giving the job back. No failure of the job."""
    fence: int = 0
    owner: str | None = Field(default=None, max_length=64)
    lease_until: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    payload: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    error_code: str | None = Field(default=None, max_length=64)
    error: str | None = Field(default=None, sa_column=Column(Text))
    created_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]


class JobStepRow(SQLModel, table=True):
    """One finished step of a job: what went in, what came out, how long it took."""

    __tablename__ = "job_step"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("job_id", "step", "input_hash"), _NEVER_REUSE_IDS)

    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    job_id: int = Field(sa_column=Column(_BIG_ID, nullable=False, index=True))
    step: str = Field(max_length=32)
    input_hash: str = Field(max_length=64)
    output: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """JSON: small facts and blob digests, never bulk."""
    fence: int
    attempt: int = 1
    seconds: float
    finished_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]


class EngineCallRow(SQLModel, table=True):
    """One study inside a segmentation engine, or one death of an engine that a study was inside of."""

    __tablename__ = "engine_call"  # pyright: ignore[reportAssignmentType]

    id: str = Field(primary_key=True, max_length=32)
    """Of the call, made by who calls: a repeated call is another one."""
    job_id: int = Field(sa_column=Column(_BIG_ID, nullable=False, index=True))
    fence: int
    input_hash: str = Field(max_length=64)
    """Of the study's images and the engine: a changed study or another engine starts anew."""
    replica: str = Field(index=True, max_length=64)
    """The engine's process, as `host/process/nonce`: it dies once."""
    node: str = Field(max_length=64)
    """Ray's id of the machine."""
    state: str = Field(max_length=8)
    """EngineCallState."""
    began_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]


class EventRow(SQLModel, table=True):
    """What happened, in order; the state history and the source of the live stream (id = Last-Event-ID)."""

    __tablename__ = "event"  # pyright: ignore[reportAssignmentType]
    __table_args__ = _NEVER_REUSE_IDS

    id: int | None = Field(default=None, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=True))
    at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    kind: str = Field(max_length=32)
    """study.state, study.step, study.images, study.urgency, job.claimed, ..."""
    study_id: str | None = Field(default=None, index=True, max_length=32)
    job_id: int | None = Field(default=None, sa_column=Column(_BIG_ID, nullable=True))
    actor: str = Field(max_length=64)
    old: str | None = Field(default=None, max_length=64)
    new: str | None = Field(default=None, max_length=64)
    reason: str | None = Field(default=None, sa_column=Column(Text))
    payload: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class ResultRow(SQLModel, table=True):
    """The result of one epoch of a study. A later epoch supersedes it, visibly."""

    __tablename__ = "result"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("study_id", "epoch", "version"),)

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    study_id: str = Field(foreign_key="study.id", index=True, max_length=32)
    job_id: int = Field(sa_column=Column(_BIG_ID, nullable=False, unique=True))
    epoch: int = 1
    version: int = 1
    fence: int
    created_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    superseded_by: str | None = Field(default=None, max_length=32)
    inputs_sha256: str | None = Field(default=None, max_length=64)
    """Of everything that the result was made from: equal inputs are not worked on again."""
    kept_epoch: int | None = None
    """The latest epoch that this result stands for unchanged; None: its own."""
    urgency: str | None = Field(default=None, max_length=2)
    synthetic: bool = False
    document: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The same JSON as the artifact results.json."""


class ArtifactRow(SQLModel, table=True):
    """One file that belongs to a result; its bytes are the blob `sha256`."""

    __tablename__ = "artifact"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("result_id", "name"),)

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    result_id: str = Field(foreign_key="result.id", index=True, max_length=32)
    study_id: str = Field(foreign_key="study.id", index=True, max_length=32)
    name: str = Field(max_length=128)
    kind: str = Field(max_length=32)
    """id, results, resultados, label_map, display_volume, key_image, overlay."""
    media_type: str = Field(max_length=64)
    sha256: str = Field(max_length=64)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    synthetic: bool = False
    meta: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


class LabelsAheadRow(SQLModel, table=True):
    """Label maps that were made of one series while its study settled; a result takes them where all inputs are equal.

    Nothing depends on the row: it is removed at a bounded age, used or not.
    """

    __tablename__ = "labels_ahead"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("study_id", "inputs_sha256"),)

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    study_id: str = Field(foreign_key="study.id", max_length=32)
    epoch: int
    series_uid: str = Field(max_length=64)
    job_id: int = Field(sa_column=Column(_BIG_ID, nullable=False))
    inputs_sha256: str = Field(max_length=64)
    """Of everything that decides the labels."""
    document: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """JSON: the run, and the blob of each label map; see pipelines/labels.py."""
    made_at: datetime = Field(index=True, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    seconds: float
    used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    used_by: int | None = Field(default=None, sa_column=Column(_BIG_ID, nullable=True))
    """The study's job that took them."""


class TallyRow(SQLModel, table=True):
    """How often something has happened in this installation; counted in the transaction in which it happens."""

    __tablename__ = "tally"  # pyright: ignore[reportAssignmentType]

    what: str = Field(primary_key=True, max_length=48)
    number: int = Field(sa_column=Column(BigInteger, nullable=False))


class AuditRow(SQLModel, table=True):
    """One entry of the audit chain; written by security/audit.py only, never changed, never deleted."""

    __tablename__ = "audit"  # pyright: ignore[reportAssignmentType]

    id: int = Field(sa_column=Column(_BIG_ID, primary_key=True, autoincrement=False))
    """1, 2, 3, ... without a gap: given under the chain's lock and not by the database."""
    at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    action: str = Field(max_length=64)
    outcome: str = Field(max_length=16)
    actor_kind: str = Field(max_length=16)
    actor_name: str = Field(index=True, max_length=64)
    actor_address: str = Field(default="", max_length=64)
    study_id: str | None = Field(default=None, index=True, max_length=32)
    """`study.id`, without a foreign key: the entry outlives the study."""
    detail: str = Field(sa_column=Column(Text, nullable=False))
    """Canonical JSON, as text, because the MAC is of these very characters. No patient data."""
    key_id: str = Field(max_length=16)
    """Of the key that `mac` was made with."""
    prev_mac: str = Field(max_length=64)
    mac: str = Field(max_length=64)


class AuditHeadRow(SQLModel, table=True):
    """The one row that says how long the audit chain is, so that a cut tail is seen."""

    __tablename__ = "audit_head"  # pyright: ignore[reportAssignmentType]

    id: int = Field(default=1, sa_column=Column(_BIG_ID, primary_key=True, autoincrement=False))
    entries: int = Field(sa_column=Column(BigInteger, nullable=False))
    mac: str = Field(max_length=64)
    """Of the last entry."""
    key_id: str = Field(max_length=16)
    seal: str = Field(max_length=64)
    """HMAC of the columns before."""


class CommitmentRow(SQLModel, table=True):
    """One request for storage commitment (PS3.4 annex J), and what has become of its report."""

    __tablename__ = "commitment"  # pyright: ignore[reportAssignmentType]
    __table_args__ = (UniqueConstraint("calling_ae", "transaction_uid"), Index("ix_commitment_due", "state", "run_at"))

    id: str = Field(default_factory=new_id, primary_key=True, max_length=32)
    transaction_uid: str = Field(max_length=64)
    calling_ae: str = Field(max_length=16)
    address: str | None = Field(default=None, max_length=64)
    association_id: str | None = Field(default=None, max_length=64)
    state: str = Field(max_length=12)
    """CommitmentState."""
    items: list[list[str]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """JSON: SOP Class UID and SOP Instance UID of each reference, in the order of the request."""
    items_sha256: str = Field(max_length=64)
    n_items: int
    failures: list[list[int]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    """JSON: position in `items` and Failure Reason (0008,1197) of each reference that cannot be committed."""
    n_failed: int | None = None
    """None until the instances have been looked at."""
    first_asked_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    asked_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    times_asked: int = 1
    checked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    run_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    set_at: datetime = Field(sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    """When `run_at` was decided: a time in the future says that the clock was set back since."""
    attempt: int = 0
    """Reports that did not get through since it was last asked."""
    refusals: int = 0
    """Of these, how many the peer answered with a failure."""
    fence: int = 0
    owner: str | None = Field(default=None, max_length=64)
    lease_until: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)  # pyright: ignore[reportArgumentType]
    error_code: str | None = Field(default=None, max_length=64)
    error: str | None = Field(default=None, sa_column=Column(Text))
