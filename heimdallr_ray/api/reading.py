"""What the routes ask the catalog: one function, one read transaction each. They block: call them from a thread."""

from __future__ import annotations

from typing import Any, BinaryIO

from heimdallr_ray.api import models, views
from heimdallr_ray.api.services import ApiServices
from heimdallr_ray.catalog import worklist as catalog
from heimdallr_ray.catalog.conflicts import contested_images, contested_uids
from heimdallr_ray.catalog.results import stands_until
from heimdallr_ray.catalog.states import StudyState
from heimdallr_ray.catalog.tables import ArtifactRow
from heimdallr_ray.errors import NoResult, NotFound, ResultsNotReady
from heimdallr_ray.ids import Sha256, Uid

_ENDED = frozenset({StudyState.FAILED, StudyState.NOT_APPLICABLE, StudyState.CANCELLED, StudyState.SUPERSEDED})
"""Nothing happens any more by itself, so no result comes."""


def study_page(services: ApiServices, limit: int, offset: int, state: StudyState | None, text: str) -> models.StudyPage:
    """A page of the worklist."""
    wanted = state.value if state else None
    with services.database.read() as session:
        rows = catalog.worklist(session, limit=limit, offset=offset, state=wanted, text=text or None)
        results = catalog.newest_results(session, [row.id for row in rows])
        total = catalog.worklist_count(session, state=wanted, text=text or None)
        contested = contested_uids(session, [row.id for row in rows])
    return models.StudyPage(
        studies=[views.summary(row, results.get(row.id), contested.get(row.id, 0)) for row in rows],
        total=total,
        limit=limit,
        offset=offset,
        server_now=services.clock.now(),
    )


def study_detail(services: ApiServices, study_uid: str) -> models.StudyDetail:
    """One study.

    Raises:
        BadIdentifier: `study_uid` is no UID.
        NotFound: there is no such study.
    """
    uid = Uid.parse(study_uid)
    with services.database.read() as session:
        found = catalog.study_detail(session, uid)
        if found is None:
            raise NotFound("there is no such study")
        newest = found.jobs[0].id if found.jobs else None
        steps = catalog.steps_of(session, newest) if newest is not None else []
        events = catalog.event_history(session, found.study.id)
        of_results = (found.result, *found.superseded[: views.MAX_OLDER])
        epochs = sorted({row.epoch for row in of_results if row is not None})
        n_images = {epoch: catalog.images_until(session, found.study.id, epoch) for epoch in epochs}
        contested = contested_images(session, found.study.id) if found.uid_conflicts else []
    return views.detail(found, steps, events, n_images, contested, services.clock.now())


def results_document(services: ApiServices, study_uid: str) -> tuple[dict[str, Any], bool]:
    """The results.json of the result that stands, and whether that is older than the study.

    Raises:
        BadIdentifier: `study_uid` is no UID.
        NotFound: there is no such study.
        ResultsNotReady: it has no result yet; the detail says in which state it is.
        NoResult: it ended without one; says in which state, and why.
    """
    uid = Uid.parse(study_uid)
    with services.database.read() as session:
        found = catalog.study_detail(session, uid)
    if found is None:
        raise NotFound("there is no such study")
    if found.result is None:
        if StudyState(found.study.state) in _ENDED:
            raise NoResult(found.study.state, found.study.reason_code, found.study.reason)
        raise ResultsNotReady(f"the study is {found.study.state}")
    return found.result.document, views.is_stale(found.study, stands_until(found.result))


def find_artifact(services: ApiServices, study_uid: str, name: str) -> tuple[ArtifactRow, bool]:
    """The artifact `name` of the result that stands, and whether that is older than the study.

    The name is compared with rows and never becomes a path.

    Raises:
        BadIdentifier: `study_uid` is no UID.
        NotFound: no such study, or its result has no such artifact.
    """
    uid = Uid.parse(study_uid)
    with services.database.read() as session:
        found = catalog.study_detail(session, uid)
        row = catalog.artifact_named(session, found.result.id, name) if found and found.result else None
    if row is None or found is None or found.result is None:
        raise NotFound("there is no such artifact")
    return row, views.is_stale(found.study, stands_until(found.result))


def open_artifact(services: ApiServices, row: ArtifactRow) -> BinaryIO:
    """The bytes of an artifact.

    Raises:
        BlobMissing: the store has lost them.
    """
    return services.blobs.open(Sha256.parse(row.sha256))
