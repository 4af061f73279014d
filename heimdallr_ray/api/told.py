"""What an HTTP door tells of a request: entries of the audit chain, and figures. Nothing of it decides anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fastapi import Request
from starlette.background import BackgroundTask

from heimdallr_ray.api.access import actor_of
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.auditing import Note
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.snapshots import HTTP, ProcessState
from heimdallr_ray.listener.telling import Telling
from heimdallr_ray.security.audit import Actor

_log = logging.getLogger(__name__)
WAIT_S = 5.0
"""For the database, when a refusal is told; the client has its answer already."""
DOORS = {
    "/upload": Door.UPLOAD,
    "/api/v1/upload": Door.UPLOAD,
    "/api/v1/instances/known": Door.UPLOAD,
    "/dicomweb/studies": Door.STOW,
    "/dicomweb/studies/{study_uid}": Door.STOW,
}
"""By the route's template."""


class Story:
    """One request at a door, from its first byte on."""

    def __init__(self, services: ApiServices, request: Request, door: Door, intake_id: str) -> None:
        self._services = services
        self._actor = actor_of(request)
        self._door = door
        self._intake_id = intake_id
        self._began = services.clock.monotonic()
        self._objects = self._bytes = 0

    def notes(self, items: Sequence[Accepted]) -> Sequence[Note]:
        """What is carried out in the transaction of the rows of `items`."""
        self._objects, self._bytes = len(items), sum(item.entry.size for item in items)
        studies = len({str(item.identity.study_uid) for item in items})
        return (
            self._services.intake_audit.taken_in(
                self._actor,
                self._door,
                self._intake_id,
                instances=self._objects,
                studies=studies,
                size=self._bytes,
            ),
        )

    def stored(self) -> None:
        """The rows are there, and are counted."""
        seconds = self._services.clock.monotonic() - self._began
        self._services.figures.taken_in(self._door, self._objects, self._bytes, seconds)

    def refused(self, codes: Sequence[str]) -> BackgroundTask | None:
        """Single objects were refused, and are counted; where none was stored the chain is told, behind the answer."""
        for code in codes:
            self._services.figures.refused(f"store.{code}", self._door)
        if self._objects or not codes:
            return None
        return BackgroundTask(_tell, self._services, self._door, self._actor, codes[0])


def refusal(request: Request, template: str, error: HeimdallrError) -> BackgroundTask | None:
    """A request at a door was refused as a whole: it is counted, and the chain is told behind the answer.

    Returns:
        None where the route is no door.
    """
    door = DOORS.get(template)
    services: ApiServices | None = getattr(request.app.state, "services", None)
    if door is None or services is None:
        return None
    services.figures.refused(f"request.{error.code}", door)
    return BackgroundTask(_tell, services, door, actor_of(request), error.code)


def _tell(services: ApiServices, door: Door, actor: Actor, reason: str) -> None:
    try:
        note = services.intake_audit.refused(reason, actor, door=door)
        if note is not None:
            carry_out(services, note)
    except HeimdallrError as error:
        # The refusal itself stands in the log already.
        _log.warning("audit.refusal_not_told", extra={"code": error.code, "reason": reason})


def carry_out(services: ApiServices, note: Note) -> None:
    """The note is in the catalog.

    Raises:
        Retryable: not now.
    """
    with services.database.write(timeout_s=WAIT_S) as session:
        note(session)


def telling_of(services: ApiServices) -> Telling:
    """What tells of this process of the HTTP interface; not started.

    Raises:
        BadSetting: the key of the audit chain is no key, or others can read it.
        StorageFailed: it can be neither read nor made.
    """
    settings = services.settings

    def state() -> ProcessState:
        counts = services.receiver.counts()
        return ProcessState(
            draining=services.draining(),
            committed=counts.committed,
            duplicates=counts.duplicates,
            conflicts=counts.conflicts,
            commit_failures=counts.commit_failures,
            notes_dropped=counts.dropped_notes,
        )

    return Telling(
        HTTP,
        settings.data_dir,
        settings.run_dir,
        services.database,
        services.clock,
        services.figures,
        services.intake_audit,
        lambda note: carry_out(services, note),
        state,
    )
