"""Who sent and how it ended: told as often and in whichever order, and never forgotten."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlmodel import select

from heimdallr_ray.catalog.associations import (
    AssociationClosed,
    AssociationOpened,
    How,
    last_seen,
    last_sender,
    mark_lost,
    record_closed,
    record_opened,
)
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.studies import record_instances, study_by_uid
from heimdallr_ray.catalog.tables import AssociationRow
from tests.support.clock import EPOCH
from tests.support.studies import received


def opened(id_: str, at: float = 0, ae: str | None = "CT1", door: Door = Door.DICOM) -> AssociationOpened:
    return AssociationOpened(id_, door, ae, "HEIMDALLR", "10.0.0.7", EPOCH + timedelta(seconds=at), "DCMTK_367")


def closed(id_: str, at: float = 9, how: How = How.RELEASED, stored: int = 3) -> AssociationClosed:
    return AssociationClosed(id_, EPOCH + timedelta(seconds=at), how, stored, 2, 4000)


def rows(database: Database) -> dict[str, AssociationRow]:
    with database.read() as session:
        return {row.id: row for row in session.exec(select(AssociationRow)).all()}


def tell(database: Database, *items: AssociationOpened | AssociationClosed) -> None:
    for item in items:
        with database.write() as session:
            if isinstance(item, AssociationOpened):
                record_opened(session, [item])
            else:
                record_closed(session, [item])


@pytest.mark.parametrize(
    "told",
    [
        (opened("a"), closed("a")),
        (closed("a"), opened("a")),
        (opened("a"), opened("a"), closed("a"), closed("a"), opened("a")),
        (closed("a"), closed("a", at=99, how=How.ABORTED, stored=0), opened("a")),
    ],
)
def test_the_order_and_number_of_words_do_not_matter(
    database: Database, told: tuple[AssociationOpened | AssociationClosed, ...]
) -> None:
    tell(database, *told)
    (row,) = rows(database).values()
    assert (row.door, row.calling_ae, row.called_ae, row.address) == ("dicom", "CT1", "HEIMDALLR", "10.0.0.7")
    assert (row.opened_at, row.closed_at) == (EPOCH, EPOCH + timedelta(seconds=9))
    assert (row.how, row.stored, row.refused, row.n_bytes) == ("released", 3, 2, 4000)


def test_an_end_without_a_beginning_is_a_row_with_what_is_known(database: Database) -> None:
    tell(database, closed("a", how=How.ABORTED))
    row = rows(database)["a"]
    assert (row.door, row.calling_ae, row.opened_at, row.how, row.stored) == (None, None, None, "aborted", 3)


def test_many_are_told_in_one_transaction(database: Database) -> None:
    with database.write() as session:
        record_opened(session, [opened(f"a{n}") for n in range(1200)])
        record_closed(session, [closed(f"a{n}") for n in range(600)])
        record_opened(session, [])
        record_closed(session, [])
    assert sum(row.how == "released" for row in rows(database).values()) == 600
    with database.write() as session:
        assert mark_lost(session, {"a600"}, EPOCH) == 599
        assert mark_lost(session, {"a600"}, EPOCH) == 0
    assert rows(database)["a600"].closed_at is None


def test_lost_is_a_guess_that_gives_way(database: Database) -> None:
    tell(database, opened("a"), opened("b"))
    with database.write() as session:
        assert mark_lost(session, {"b"}, EPOCH + timedelta(seconds=60)) == 1
    lost = rows(database)["a"]
    assert (lost.how, lost.closed_at) == ("lost", EPOCH + timedelta(seconds=60))
    assert lost.reason
    tell(database, closed("a"))
    found = rows(database)["a"]
    assert (found.how, found.stored, found.closed_at) == ("released", 3, EPOCH + timedelta(seconds=9))


def test_only_the_doors_that_the_caller_knows_are_lost(database: Database) -> None:
    tell(database, opened("a"), opened("u", at=0, door=Door.UPLOAD), opened("v", at=90, door=Door.UPLOAD))
    with database.write() as session:
        assert mark_lost(session, (), EPOCH) == 1
        early = EPOCH + timedelta(seconds=60)
        assert mark_lost(session, (), EPOCH, doors=(Door.UPLOAD, Door.STOW), opened_before=early) == 1
    assert {key: row.how for key, row in rows(database).items()} == {"a": "lost", "u": "lost", "v": None}


def test_text_from_outside_is_bounded(database: Database) -> None:
    hostile = "\0" + "x" * 600 + "\ud800"
    with database.write() as session:
        record_opened(session, [AssociationOpened("a", Door.DICOM, hostile, hostile, hostile, EPOCH, hostile)])
        record_closed(session, [AssociationClosed("a", EPOCH, How.ABORTED, reason=hostile)])
        record_opened(session, [AssociationOpened("b", Door.DICOM, "A\ud800", "", None, EPOCH)])
    row, other = rows(database)["a"], rows(database)["b"]
    assert (row.calling_ae, row.called_ae, row.address) == ("x" * 16, "x" * 16, "x" * 64)
    assert (row.implementation, row.reason) == ("x" * 64, "x" * 500)
    assert (other.calling_ae, other.called_ae, other.address, other.implementation) == ("A?", None, None, None)


def test_last_seen_is_one_line_for_each_sender_the_newest_first(database: Database) -> None:
    tell(database, opened("a"), closed("a"), opened("b", at=20), closed("b", at=30, how=How.ABORTED, stored=1))
    tell(database, opened("c", at=40), opened("d", at=10, ae="CT2"), opened("e", at=5, ae=None), closed("x"))
    with database.read() as session:
        seen = last_seen(session, 10)
        assert [item.calling_ae for item in last_seen(session, 1)] == ["CT1"]
        assert [item.calling_ae for item in last_seen(session, 10, since=EPOCH + timedelta(seconds=6))] == [
            "CT1",
            "CT2",
        ]
    assert [item.calling_ae for item in seen] == ["CT1", "CT2", ""]
    first = seen[0]
    assert (first.address, first.door, first.opened_at) == ("10.0.0.7", "dicom", EPOCH + timedelta(seconds=40))
    assert first.stored_at == EPOCH + timedelta(seconds=30)
    assert (first.open, first.associations, first.unclean) == (1, 3, 1)
    assert (first.stored, first.refused, first.n_bytes) == (4, 4, 8000)


def test_each_door_of_an_address_is_a_line_of_its_own(database: Database) -> None:
    doors = (Door.UPLOAD, Door.STOW, Door.DICOM)
    for at, door in enumerate(doors):
        tell(database, opened(door.value, at=at, ae=None, door=door), closed(door.value, stored=at + 1))
    with database.read() as session:
        seen = last_seen(session, 10)
    assert [(one.door, one.stored) for one in seen] == [("dicom", 3), ("stow", 2), ("upload", 1)]


def test_known_images_are_counted_with_the_rows_whenever_the_association_ends(database: Database) -> None:
    tell(database, opened("a1"), opened("b1", at=1))
    with database.write() as session:
        record_instances(session, [received(n) for n in (1, 2, 3)], EPOCH)
        # One comes twice by one association, two by another one that has ended before they are rows.
        record_instances(session, [received(3, spool="again")], EPOCH)
    tell(database, closed("a1", stored=4), closed("b1", stored=3))
    others = [received(n, spool="b", association="b1") for n in (1, 2, 4)]
    for items in (others, [received(1, spool="c", association="without a row")]):
        with database.write() as session:
            record_instances(session, items, EPOCH)
    tell(database, closed("b1", stored=3))
    found = rows(database)
    assert {key: (row.stored, row.duplicates) for key, row in found.items()} == {"a1": (4, 1), "b1": (3, 2)}


def test_the_last_sender_of_a_study_is_an_open_one_else_the_last_to_end(database: Database) -> None:
    tell(database, opened("a1"), opened("other"))
    with database.write() as session:
        record_instances(session, [received(1), received(2)], EPOCH)
        study = study_by_uid(session, "1.2.1")
        assert study is not None
    with database.read() as session:
        found = last_sender(session, study.id, 1)
        assert found is not None and (found.id, found.closed_at) == ("a1", None)
        assert last_sender(session, study.id, 2) is None
    tell(database, closed("a1"))
    with database.read() as session:
        found = last_sender(session, study.id, 1)
    assert found is not None and found.how == "released"
