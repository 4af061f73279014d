"""The audit chain on SQLite and PostgreSQL: one chain whoever writes, and every way of bending it is found."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import record_event
from heimdallr_ray.catalog.tables import AuditHeadRow, AuditRow
from heimdallr_ray.security.audit import Action, Actor, AuditLog, Outcome
from heimdallr_ray.security.audit_check import Anchor, Verdict, verify
from heimdallr_ray.security.audit_entries import head, recent
from heimdallr_ray.security.audit_key import AuditKey
from tests.support.clock import EPOCH
from tests.support.databases import MakeUrl

KEY, OTHER = AuditKey(b"k" * 32), AuditKey(b"o" * 32)
CT = Actor.ae("CT_1", "192.0.2.7")


def append(database: Database, number: int = 1, key: AuditKey = KEY, prefix: str = "s") -> None:
    """`number` entries, each in a transaction of its own."""
    log = AuditLog(key)
    for index in range(number):
        with database.write() as session:
            log.append(
                session, Action.UPLOAD_ACCEPTED, CT, now=EPOCH, study_id=f"{prefix}{index}", detail={"instances": index}
            )


def look(database: Database, *keys: AuditKey, first: int = 1, anchors: tuple[Anchor, ...] = ()) -> Verdict:
    with database.read() as session:
        return verify(session, keys or (KEY,), anchors=anchors, first=first)


def found(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(one.entry, one.code) for one in verdict.findings]


def force(database: Database, *statements: str) -> None:
    """As somebody who may change the schema, and so takes the triggers away first."""
    with database.write() as session:
        connection = session.connection()
        if database.dialect == "sqlite":
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            for name in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            for table in ("audit", "audit_head"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_an_entry_is_there_with_its_change_or_not_at_all(database: Database) -> None:
    append(database, 2)
    with pytest.raises(ZeroDivisionError), database.write() as session:
        AuditLog(KEY).append(session, Action.STUDY_RETRIED, CT, now=EPOCH)
        record_event(session, "lost", now=EPOCH, actor="test")
        raise ZeroDivisionError
    append(database)
    with database.read() as session:
        rows = recent(session, 100)
        tip = head(session)
    # The first entry of all says which key the chain begins with.
    assert [row.id for row in rows] == [4, 3, 2, 1]
    assert [row.action for row in rows][-1] == "audit.key_created"
    assert rows[0].detail == '{"instances":0}'
    assert (rows[0].actor_kind, rows[0].actor_name, rows[0].actor_address) == ("ae", "CT_1", "192.0.2.7")
    assert tip is not None
    assert (tip.entries, tip.mac) == (4, rows[0].mac)
    verdict = look(database)
    assert verdict.intact
    assert (verdict.entries, str(verdict.tip)) == (4, f"4:{rows[0].mac}")


def test_several_entries_of_one_transaction_keep_their_order(database: Database) -> None:
    log = AuditLog(KEY)
    with database.write() as session:
        for index in range(5):
            log.append(session, Action.ASSOCIATION_ACCEPTED, CT, now=EPOCH, detail={"index": index})
        record_event(session, "between", now=EPOCH, actor="test")
    with database.read() as session:
        assert [row.detail for row in reversed(recent(session, 5))] == [f'{{"index":{index}}}' for index in range(5)]
    assert look(database).entries == 6


def test_four_threads_with_their_own_connections_write_one_chain(make_url: MakeUrl) -> None:
    url = make_url()
    failures: list[BaseException] = []

    def work() -> None:
        database = Database(url)
        try:
            append(database, 25)
        except BaseException as error:
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    database = Database(url)
    verdict = look(database)
    database.close()
    assert verdict.intact
    assert verdict.entries == 101


def _append_elsewhere(url: str, number: int) -> None:
    database = Database(url)
    append(database, number)
    database.close()


def test_processes_write_one_chain_too(make_url: MakeUrl) -> None:
    url = make_url()
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_append_elsewhere, args=(url, 20), daemon=True) for _ in range(2)]
    for process in started:
        process.start()
    database = Database(url)
    append(database, 20)
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    verdict = look(database)
    database.close()
    assert verdict.intact
    assert verdict.entries == 61


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (("UPDATE audit SET outcome = 'refused' WHERE id = 5",), [(5, "changed")]),
        (("UPDATE audit SET actor_address = '192.0.2.8' WHERE id = 5",), [(5, "changed")]),
        (("UPDATE audit SET detail = '{ \"instances\":3}' WHERE id = 5",), [(5, "changed")]),
        (("UPDATE audit SET study_id = NULL WHERE id = 5",), [(5, "changed")]),
        (("UPDATE audit SET at = '2026-01-01 12:00:00.000001' WHERE id = 5",), [(5, "changed")]),
        (("DELETE FROM audit WHERE id = 5",), [(5, "missing")]),
        (("DELETE FROM audit WHERE id IN (5, 6)",), [(5, "missing")]),
        (("DELETE FROM audit WHERE id = 1",), [(1, "missing")]),
        (("DELETE FROM audit WHERE id = 5", "UPDATE audit SET id = id - 1 WHERE id > 5"), [(5, "changed")]),
        (
            (
                "UPDATE audit SET id = 99 WHERE id = 5",
                "UPDATE audit SET id = 5 WHERE id = 6",
                "UPDATE audit SET id = 6 WHERE id = 99",
            ),
            [(5, "changed"), (6, "changed")],
        ),
        (
            (
                "INSERT INTO audit SELECT 12, at, action, outcome, actor_kind, actor_name, actor_address, study_id, "
                "detail, key_id, prev_mac, mac FROM audit WHERE id = 11",
            ),
            [(12, "changed"), (12, "added")],
        ),
        (
            (
                "INSERT INTO audit SELECT 0, at, action, outcome, actor_kind, actor_name, actor_address, study_id, "
                "detail, key_id, prev_mac, mac FROM audit WHERE id = 1",
            ),
            [(0, "added"), (0, "changed"), (1, "broken_link")],
        ),
        (("DELETE FROM audit WHERE id > 8",), [(9, "cut")]),
        (("DELETE FROM audit_head",), [(None, "head_missing")]),
        (("DELETE FROM audit WHERE id > 8", "UPDATE audit_head SET entries = 8"), [(None, "head_changed")]),
    ],
)
def test_a_chain_that_was_bent_is_found_and_where(
    database: Database, statements: tuple[str, ...], expected: list[tuple[int | None, str]]
) -> None:
    append(database, 10)
    assert look(database).intact
    force(database, *statements)
    verdict = look(database)
    assert not verdict.intact
    assert found(verdict)[: len(expected)] == expected


def test_a_time_that_is_none_is_a_changed_entry(folder: Path, sqlite_template: Path) -> None:
    path = folder / "catalog.sqlite"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{path}")
    append(database, 4)
    force(database, "UPDATE audit SET at = 'yesterday' WHERE id = 3")
    assert found(look(database)) == [(3, "changed")]
    database.close()


def test_rows_and_head_put_back_together_are_found_by_an_anchor_only(database: Database) -> None:
    append(database, 5)
    kept = look(database).tip
    with database.read() as session:
        seal = session.exec(select(AuditHeadRow)).one().seal
    append(database, 5)
    anchor = look(database).tip
    force(
        database,
        "DELETE FROM audit WHERE id > 6",
        f"UPDATE audit_head SET entries = 6, mac = '{kept.mac}', seal = '{seal}'",  # noqa: S608 - values made here
    )
    assert look(database).intact
    assert found(look(database, anchors=(anchor,))) == [(None, "cut")]
    append(database, 5, prefix="other")
    assert look(database).intact
    assert found(look(database, anchors=(anchor,))) == [(anchor.entries, "anchor")]


def test_images_are_taken_in_behind_a_cut_tail_and_the_gap_stays_visible(database: Database) -> None:
    append(database, 5)
    force(database, "DELETE FROM audit WHERE id > 4")
    append(database, 2)
    with database.read() as session:
        rows = list(reversed(recent(session, 3)))
    assert [row.id for row in rows] == [7, 8, 9]
    assert (rows[0].action, rows[0].outcome) == ("audit.head_mismatch", "failed")
    assert found(look(database)) == [(5, "missing"), (7, "head_mismatch")]
    # Whoever has looked into it goes on from there.
    assert look(database, first=8).intact


@pytest.mark.parametrize("statement", ["DELETE FROM audit_head", "UPDATE audit_head SET entries = 90"])
def test_a_lost_or_changed_head_is_told_by_the_chain_itself(database: Database, statement: str) -> None:
    append(database, 3)
    force(database, statement)
    append(database)
    assert found(look(database)) == [(5, "head_mismatch")]


def test_a_new_key_is_told_and_the_old_entries_want_the_old_one(database: Database) -> None:
    append(database, 3)
    append(database, 2, OTHER)
    with database.read() as session:
        told = [row for row in recent(session, 10) if row.action == "audit.key_created"]
    assert [row.id for row in told] == [5, 1]
    assert told[0].detail == f'{{"before":"{KEY.id}","key":"{OTHER.id}"}}'
    assert found(look(database, OTHER)) == [(1, "other_key")]
    assert look(database, OTHER, KEY).intact


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET outcome = 'refused'",
        "DELETE FROM audit WHERE id = 1",
        "DELETE FROM audit",
        "UPDATE audit_head SET entries = entries - 1",
        "DELETE FROM audit_head",
    ],
)
def test_the_database_itself_refuses_to_change_the_past(database: Database, statement: str) -> None:
    append(database, 2)
    with pytest.raises(DBAPIError, match="append-only"), database.write() as session:
        session.connection().execute(text(statement))
    assert look(database).entries == 3


def test_neither_replacing_nor_emptying_gets_past_the_triggers(database: Database) -> None:
    append(database, 2)
    statement = (
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 2"
        if database.dialect == "sqlite"
        else "TRUNCATE audit"
    )
    with pytest.raises(DBAPIError, match="append-only"), database.write() as session:
        session.connection().execute(text(statement))
    assert look(database).entries == 3


def test_a_chain_longer_than_a_page_is_read_to_its_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    append(database, 11)
    monkeypatch.setattr("heimdallr_ray.security.audit_check.PAGE", 5)
    assert look(database).entries == 12
    force(database, "DELETE FROM audit WHERE id = 6")
    assert found(look(database)) == [(6, "missing")]


def test_the_newest_entries_by_actor_study_and_action(database: Database) -> None:
    append(database, 3)
    log = AuditLog(KEY)
    with database.write() as session:
        log.append(session, Action.UPLOAD_REFUSED, Actor.system("x"), now=EPOCH, outcome=Outcome.REFUSED, study_id="s1")

    def ids(choose: Callable[[AuditRow], bool] = lambda row: True, **filters: str) -> list[int]:
        with database.read() as session:
            return [row.id for row in recent(session, 10, **filters) if choose(row)]

    assert ids() == [5, 4, 3, 2, 1]
    assert ids(actor="CT_1") == ids(actor="192.0.2.7") == [4, 3, 2]
    assert ids(study_id="s1") == [5, 3]
    assert ids(action="upload.") == [5, 4, 3, 2]
    assert ids(action="upload.refused") == [5]
