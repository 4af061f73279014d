"""Images that a power cut took are taken out of the catalog and told once, whoever finds them."""

from __future__ import annotations

from dataclasses import replace

from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.durability import Undurable, take_back, undurable
from heimdallr_ray.catalog.recording import record_instances
from heimdallr_ray.catalog.tables import EventRow, InstanceRow, StudyRow
from tests.support.clock import EPOCH
from tests.support.studies import received


def _take_back(database: Database, lost: list[Undurable], there: frozenset[str] = frozenset()) -> int:
    with database.write() as session:
        return take_back(session, lost, there.__contains__, now=EPOCH, actor="test")


def _told(database: Database) -> list[tuple[object, object]]:
    with database.read() as session:
        events = session.exec(select(EventRow).where(EventRow.kind == "study.images_lost")).all()
    return [(event.payload["lost"], event.payload["n_instances"]) for event in events]


def _held(database: Database) -> list[tuple[int, int]]:
    """Number of instances by each study's row, and by the rows themselves."""
    with database.read() as session:
        studies = session.exec(select(StudyRow).order_by(StudyRow.study_uid)).all()
        rows = session.exec(select(InstanceRow.study_id)).all()
    return [(study.n_instances, rows.count(study.id)) for study in studies]


def test_what_two_processes_find_lost_is_counted_once(database: Database) -> None:
    items = [replace(received(n, study=study), durable=False) for study in (1, 2) for n in range(4)]
    with database.write() as session:
        record_instances(session, items, EPOCH)
    with database.read() as session:
        found = undurable(session, None, 100)
    one, two = sorted({row.study_id for row in found})
    first = [row for row in found if row.study_id == one][:3]
    assert _take_back(database, first) == 3
    assert _told(database) == [(3, 1)]
    # The other process has looked before the first one wrote: all of it, and nothing but it.
    _take_back(database, first)
    assert _told(database) == [(3, 1)]
    _take_back(database, [*found, *first])
    assert sorted(_told(database)) == [(1, 0), (3, 1), (4, 0)]
    assert _held(database) == [(0, 0), (0, 0)]
    assert {one, two} == {row.study_id for row in found}


def test_an_image_that_came_again_meanwhile_keeps_its_row(database: Database) -> None:
    items = [replace(received(n), durable=False) for n in range(4)]
    with database.write() as session:
        record_instances(session, items, EPOCH)
    with database.read() as session:
        found = undurable(session, None, 100)
    assert _take_back(database, found, frozenset({found[1].blob_sha256})) == 3
    assert _told(database) == [(3, 1)]
    with database.read() as session:
        # Nobody has seen its bytes on the disk yet.
        assert undurable(session, None, 100) == [found[1]]
