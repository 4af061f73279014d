"""Transactions, migrations and readiness, on SQLite and PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, inspect, text
from sqlmodel import SQLModel, select

from heimdallr_ray.catalog import migrate
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.events import flush_events, record_event
from heimdallr_ray.catalog.tables import EventRow
from heimdallr_ray.catalog.worklist import events_after
from heimdallr_ray.errors import BadSetting, DatabaseBusy, DatabaseUnusable, SchemaMismatch
from tests.support.clock import EPOCH

TABLES = {
    "study",
    "series",
    "instance",
    "job",
    "job_step",
    "engine_call",
    "event",
    "result",
    "artifact",
    "association",
    "audit",
    "audit_head",
    "commitment",
    "api_token",
}


def _event(database: Database, kind: str) -> None:
    with database.write() as session:
        record_event(session, kind, now=EPOCH, actor="test")


def _kinds(database: Database) -> list[str]:
    with database.read() as session:
        return [row.kind for row in events_after(session, 0, 500)]


def test_a_write_is_there_after_the_block_and_gone_after_an_error(database: Database) -> None:
    _event(database, "kept")
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.add(EventRow(at=EPOCH, kind="lost", actor="test"))
        record_event(session, "lost too", now=EPOCH, actor="test")
        session.flush()
        raise ZeroDivisionError
    assert _kinds(database) == ["kept"]


def test_rows_stay_usable_after_the_block(database: Database) -> None:
    _event(database, "one")
    with database.read() as session:
        row = session.exec(select(EventRow)).one()
    assert (row.kind, row.at) == ("one", EPOCH)


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseUnusable), database.read() as session:
        session.add(EventRow(at=EPOCH, kind="sneaked", actor="test"))
        session.flush()
    _event(database, "allowed")
    assert _kinds(database) == ["allowed"]


def test_a_read_is_one_snapshot(database: Database) -> None:
    _event(database, "before")
    with database.read() as session:
        assert len(events_after(session, 0, 10)) == 1
        thread = threading.Thread(target=_event, args=(database, "meanwhile"))
        thread.start()
        thread.join()
        assert len(events_after(session, 0, 10)) == 1
    assert _kinds(database) == ["before", "meanwhile"]


def test_a_lock_that_is_not_free_in_time_is_busy(database: Database, dialect: str) -> None:
    lock = text("SELECT 1" if dialect == "sqlite" else "LOCK TABLE event IN EXCLUSIVE MODE")
    with database.engine.connect() as other:
        other.execute(lock)
        with pytest.raises(DatabaseBusy), database.write(timeout_s=0.2) as session:
            session.connection().execute(lock)
    with database.write(timeout_s=0.2) as session:
        session.connection().execute(lock)


def test_the_next_write_waits_its_full_bound_again(database: Database, dialect: str) -> None:
    with database.write(timeout_s=0.2):
        pass
    query = "PRAGMA busy_timeout" if dialect == "sqlite" else "SHOW lock_timeout"
    with database.write() as session:
        assert str(session.connection().execute(text(query)).scalar()) in ("30000", "30s")


def test_a_write_inside_a_write_is_a_defect_not_a_deadlock(database: Database) -> None:
    with database.write(), pytest.raises(RuntimeError, match="inside"), database.write():
        pass
    _event(database, "still works")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_event_ids_grow_in_the_order_of_commits(database: Database) -> None:
    """A reader that saw the last id never misses an event that was recorded earlier but committed later."""
    started, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with database.write() as session:
            record_event(session, "recorded first", now=EPOCH, actor="test")
            started.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=slow)
    thread.start()
    assert started.wait(60)
    _event(database, "committed first")
    go_on.set()
    thread.join()
    assert _kinds(database) == ["committed first", "recorded first"]


def test_no_event_gets_an_id_while_a_smaller_one_is_not_committed(database: Database) -> None:
    done = threading.Event()

    def second() -> None:
        _event(database, "second")
        done.set()

    thread = threading.Thread(target=second)
    with database.write() as session:
        record_event(session, "first", now=EPOCH, actor="test")
        flush_events(session)
        thread.start()
        assert not done.wait(0.5)
        assert _kinds(database) == []
    thread.join()
    assert _kinds(database) == ["first", "second"]


def test_sqlite_keeps_its_promises(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'c.sqlite'}")
    database.migrate()
    with database.write() as session:
        found = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_the_migrated_schema_is_the_models(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.engine.begin() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    database.close()
    assert [item for item in differences if getattr(item[1], "name", "") in TABLES or item[0] != "add_table"] == []


def test_migrating_again_changes_nothing_and_steps_back_work(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    _event(database, "kept")
    database.migrate()
    assert _kinds(database) == ["kept"]
    with database.engine.begin() as connection:
        migrate.downgrade(connection, "0004")
        assert {"engine_call", "association"} & set(inspect(connection).get_table_names()) == {"engine_call"}
        migrate.downgrade(connection, "0003")
        assert "engine_call" not in inspect(connection).get_table_names()
        assert connection.execute(text("SELECT kind FROM event")).scalars().all() == ["kept"]
        migrate.downgrade(connection, "base")
        assert not TABLES & set(inspect(connection).get_table_names())
    database.migrate()
    database.check(integrity=True)
    database.close()


def test_two_processes_migrate_at_once(empty_url: str) -> None:
    code = "import sys; from heimdallr_ray.catalog.database import Database as D; D(sys.argv[1]).migrate()"
    children = [subprocess.Popen([sys.executable, "-c", code, empty_url]) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    database = Database(empty_url)
    database.check(integrity=True)
    database.close()


def test_a_database_without_migration_says_what_to_do(empty_url: str) -> None:
    database = Database(empty_url)
    with pytest.raises(DatabaseUnusable, match="heimdallr up"):
        database.check()
    with pytest.raises(DatabaseUnusable, match="heimdallr up"), database.read() as session:
        events_after(session, 0, 1)
    database.close()


def test_only_a_migration_makes_the_sqlite_file_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a b%20#ü.sqlite"
    database = Database(URL.create("sqlite", database=str(path)).render_as_string())
    with pytest.raises(DatabaseUnusable), database.write():
        pass
    assert list(tmp_path.iterdir()) == []
    database.migrate()
    database.check()
    assert path.is_file()
    assert {item.stat().st_mode & 0o777 for item in tmp_path.iterdir()} == {0o600}
    database.close()


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    with database.write() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (database.check, database.migrate):
        with pytest.raises(SchemaMismatch, match="newer"):
            call()


@pytest.mark.parametrize(
    "url",
    ["", "not a url", "sqlite://", "sqlite:///:memory:", "mysql://host/db", "sqlite:///file:x?mode=memory&uri=true"],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadSetting, match="database_url"):
        Database(url)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="create absent/"):
        Database(f"sqlite:///{tmp_path / 'absent' / 'c.sqlite'}")


def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this is not a database, it is a text file of some length" * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(DatabaseUnusable, match="restore"):
        database.check()
    database.close()


def test_a_server_that_is_not_there_is_busy_not_broken(tmp_path: Path) -> None:
    database = Database(f"postgresql://nobody@/nothing?host={tmp_path}")
    with pytest.raises(DatabaseBusy, match="PostgreSQL"):
        database.check()
    database.close()


def test_a_postgresql_database_that_does_not_exist_is_named(postgres_url: str) -> None:
    database = Database(postgres_url.replace("/postgres?", "/absent?"))
    with pytest.raises(DatabaseUnusable, match="create it"):
        database.check()
    database.close()


def test_a_postgresql_that_forgets_commits_is_refused(database: Database) -> None:
    if database.dialect == "sqlite":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
            connection.exec_driver_sql("BEGIN")
    else:
        name = database.engine.url.database
        with database.write() as session:
            session.connection().execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
        database.close()
    with pytest.raises(DatabaseUnusable, match="synchronous"):
        database.check()
