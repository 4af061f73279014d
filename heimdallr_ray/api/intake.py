"""Two routes for those who operate it: the intake at a glance, and the same in numbers for Prometheus."""

from __future__ import annotations

import logging
from datetime import datetime

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from heimdallr_ray.api.access import READER, SCRAPER, SERVICES
from heimdallr_ray.api.failures import documented
from heimdallr_ray.api.models import DiskView
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.api.views import disk_view
from heimdallr_ray.catalog.associations import LastSeen
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener import overview as intake
from heimdallr_ray.listener.exposition import IntakeCollector, expose
from heimdallr_ray.listener.overview import IntakeCounts, IntakeOverview, OpenStudy
from heimdallr_ray.listener.room import Room, measure
from heimdallr_ray.listener.snapshots import FOLDER, Snapshot, read_snapshots

_log = logging.getLogger(__name__)


class OpenAssociationView(BaseModel):
    """One DICOM association that is open."""

    calling_ae: str
    address: str
    opened_at: datetime
    stored: int = Field(description="Images that were answered Success, new or known.")
    refused: int = Field(description="Images that were refused.")


class ProcessView(BaseModel):
    """One process that takes images in."""

    name: str = Field(description="`listener-0`, `http-0`, ...")
    port: int = Field(description="Of DICOM; 0: none, or closed because the stack drains.")
    healthy: bool
    trouble: str = Field(description="What is wrong, in words; empty where nothing is.")
    draining: bool
    started_at: datetime
    told_at: datetime
    open_associations: int
    stored: dict[str, int] = Field(description="Images that were answered as stored since its start, by door.")


class SenderView(BaseModel):
    """One sender at one door: calling AE title and address as it gave them. Counts are of the last 30 days."""

    calling_ae: str = Field(description="Empty at the HTTP doors, and where it gave none.")
    address: str
    door: str = Field(description="`dicom`, `upload` or `stow`; who uses several is listed once for each.")
    last_opened_at: datetime | None
    last_stored_at: datetime | None = Field(description="When its last association with an image ended.")
    open: int = Field(description="Associations, or sessions of an upload, that are open.")
    associations: int = Field(
        description="Associations that were accepted; uploads and STOW requests that stored something."
    )
    unclean: int = Field(description="Of these, aborted or lost.")
    stored: int = Field(
        description="Images that were answered as stored, new or known. Of a DICOM association they count once its "
        "end is seen: not while it is open, nor where the listener died first."
    )
    duplicates: int = Field(
        description="Images of `stored` that were there before, byte for byte. They count once they are in the catalog."
    )
    refused: int = Field(
        description="Images that were refused one by one; of an upload, files in it that are not DICOM. An association "
        "or a request that was refused as a whole is in `refused_last_hour`, in the audit chain and in the log."
    )
    bytes: int = Field(description="Data sets of `stored`.")


class OpenStudyView(BaseModel):
    """A study that images may still come to."""

    study_uid: str
    state: str
    door: str
    calling_ae: str | None
    instances: int
    first_received_at: datetime
    last_received_at: datetime
    closes_at: datetime | None = Field(description="If nothing more comes; null while an association is sending.")
    close_reason: str | None = Field(description="Why then.")


class SpoolView(BaseModel):
    """Acknowledged images on their way to the catalog."""

    depth: int
    oldest_s: float | None = Field(description="Age of the oldest; null: there is none.")
    quarantined: int = Field(description="That could not become rows; kept, with their reasons.")


class ContestedStudyView(BaseModel):
    """A study with images whose SOP Instance UID another image has."""

    study_uid: str
    uids: int = Field(description="Such UIDs in it.")


class ContestedView(BaseModel):
    """Images that came under a SOP Instance UID that another image has, with other bytes. All are kept."""

    uids: int = Field(description="Such UIDs in all.")
    images: int = Field(description="Images under them.")
    n_studies: int = Field(description="Studies with such an image.")
    studies: list[ContestedStudyView] = Field(description="Those that had one last, at most 20.")


class CommitmentView(BaseModel):
    """Requests for storage commitment."""

    waiting: int
    oldest_asked_at: datetime | None
    failing: int = Field(description="Of those that wait, with a report that failed.")
    given_up: int


class IntakeView(BaseModel):
    """The intake at one moment."""

    at: datetime
    processes: list[ProcessView]
    associations: list[OpenAssociationView] = Field(description="Open now, the oldest first.")
    senders: list[SenderView] = Field(description="Of the last 30 days, the last seen first; at most 100.")
    studies: list[OpenStudyView] = Field(description="Received or settling, the longest wait first.")
    receiving: int
    settling: int
    spool: SpoolView
    disk: DiskView
    uid_conflicts: ContestedView
    refused_last_hour: dict[str, int] = Field(
        description="By what and why, most first: associations (`rejected.called_ae`), connections "
        "(`refused.address`, `cut.slow_sender`), images (`store.too_large`), requests (`request.unauthorized`)."
    )
    commitment: CommitmentView
    speculations: dict[str, int] = Field(
        description="Labels made ahead of their studies, by what became of that, since the installation began."
    )
    audit_entries: int = Field(description="Length of the audit chain.")


def view_of(found: IntakeOverview) -> IntakeView:
    """The overview for a client."""
    commitments, contested = found.counts.commitments, found.contested
    opened = sorted((one for process in found.processes for one in process.state.open), key=lambda one: one.opened_at)
    return IntakeView(
        at=found.at,
        processes=[_process(one) for one in found.processes],
        associations=[
            OpenAssociationView(
                calling_ae=one.calling_ae,
                address=one.address,
                opened_at=one.opened_at,
                stored=one.stored,
                refused=one.refused,
            )
            for one in opened
        ],
        senders=[_sender(one) for one in found.senders],
        studies=[_study(one) for one in found.studies],
        receiving=found.counts.studies.get("receiving", 0),
        settling=found.counts.studies.get("settling", 0),
        spool=SpoolView(depth=found.spool.depth, oldest_s=found.spool.oldest_s, quarantined=found.spool.quarantined),
        disk=disk_view(found.room, found.marks),
        uid_conflicts=ContestedView(
            uids=contested.uids,
            images=contested.images,
            n_studies=contested.n_studies,
            studies=[ContestedStudyView(study_uid=uid, uids=number) for uid, number in contested.studies],
        ),
        refused_last_hour=found.refusals,
        commitment=CommitmentView(
            waiting=commitments.depth,
            oldest_asked_at=commitments.oldest_asked_at,
            failing=commitments.failing,
            given_up=commitments.given_up,
        ),
        speculations=found.counts.speculations,
        audit_entries=found.counts.audit_entries,
    )


def _process(one: Snapshot) -> ProcessView:
    return ProcessView(
        name=one.place,
        port=one.state.port,
        healthy=one.state.healthy,
        trouble=one.state.trouble,
        draining=one.state.draining,
        started_at=one.started_at,
        told_at=one.written_at,
        open_associations=len(one.state.open),
        stored=dict(one.figures.stored),
    )


def _sender(one: LastSeen) -> SenderView:
    return SenderView(
        calling_ae=one.calling_ae,
        address=one.address,
        door=one.door,
        last_opened_at=one.opened_at,
        last_stored_at=one.stored_at,
        open=one.open,
        associations=one.associations,
        unclean=one.unclean,
        stored=one.stored,
        duplicates=one.duplicates,
        refused=one.refused,
        bytes=one.n_bytes,
    )


def _study(one: OpenStudy) -> OpenStudyView:
    return OpenStudyView(
        study_uid=one.study_uid,
        state=one.state,
        door=one.door,
        calling_ae=one.calling_ae,
        instances=one.n_instances,
        first_received_at=one.first_received_at,
        last_received_at=one.last_received_at,
        closes_at=one.closes_at,
        close_reason=one.close_reason,
    )


def collector_of(services: ApiServices) -> IntakeCollector:
    """What is known now. A database or disk that does not answer is left out: the rest is what one looks for then."""
    now = services.clock.now()
    counts: IntakeCounts | None = None
    room: Room | None = None
    try:
        with services.database.read() as session:
            counts = intake.count(session)
    except HeimdallrError as error:
        _log.warning("metrics.without_database", extra={"code": error.code})
    try:
        room = measure(services.settings.data_dir)
    except HeimdallrError as error:
        _log.warning("metrics.without_disk", extra={"code": error.code})
    processes = read_snapshots(services.settings.run_dir / FOLDER, now)
    return IntakeCollector(processes, counts, intake.spool_state(services.settings.spool_dir, now), room)


def build_router() -> APIRouter:
    """GET /api/v1/intake and GET /metrics."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/api/v1/intake",
        dependencies=[READER],
        responses=documented(401, 403, 503),
        summary="The intake at a glance",
    )
    def at_a_glance(services: ApiServices = SERVICES) -> IntakeView:
        """Who is connected, who sent last, what is on its way in, how much room there is."""
        return view_of(intake.overview(services.settings, services.database, services.clock.now()))

    @router.get(
        "/metrics",
        dependencies=[SCRAPER],
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format."},
            **documented(401, 403),
        },
        response_class=Response,
        summary="Figures for Prometheus",
    )
    def metrics(request: Request, services: ApiServices = SERVICES) -> Response:
        """Every process of the intake together. No patient data, AE titles or addresses."""
        content_type, body = expose(collector_of(services), request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return router
