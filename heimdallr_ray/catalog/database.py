"""The one door to the database: read and write transactions, migrations, readiness. SQLite embedded, PostgreSQL by URL.

SQLite runs in WAL with synchronous=FULL and BEGIN IMMEDIATE for writes: a commit is on disk when it returns, and a
writer never fails half way because it could not upgrade its lock. One host, local disk.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from heimdallr_ray.catalog import faults, migrate
from heimdallr_ray.catalog.events import PENDING_EVENTS, flush_events
from heimdallr_ray.catalog.lastly import LAST, run_last
from heimdallr_ray.errors import BadSetting, DatabaseBusy, DatabaseUnusable

BUSY_TIMEOUT_S = 30.0
"""How long a writer waits for the lock; then `DatabaseBusy`."""
STATEMENT_TIMEOUT_S = 60.0
WAL_ATTEMPTS = 100
WAL_PAUSE_S = 0.1
_MODE = "heimdallr_mode"
_TIMEOUT = "heimdallr_timeout_s"


class Database:
    """A database that the catalog and the queue share. Safe to use from several threads; one object per process."""

    def __init__(self, url: str) -> None:
        """Prepare, but do not connect to, the database at `url`.

        Raises:
            BadSetting: not a URL, neither a SQLite file nor PostgreSQL; says what to write instead.
        """
        self._url = _parse_url(url)
        self.engine: Engine = _create_engine(self._url)
        self.dialect: str = self.engine.dialect.name
        self._reader = self.engine.execution_options(**{_MODE: "read"})
        self._writer = self.engine.execution_options(**{_MODE: "write"})
        self._writing = threading.local()
        if self.dialect == "sqlite":
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "begin", _begin_postgresql)

    @contextmanager
    def read(self) -> Generator[Session]:
        """One consistent snapshot; a write inside it fails. Rows stay usable after the block.

        Raises:
            DatabaseBusy: no connection, or no answer within the bound.
            DatabaseUnusable: no such file, no such database, damaged, or not migrated.
        """
        with self._translated(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self, timeout_s: float | None = None) -> Generator[Session]:
        """One transaction: committed and durable when the block ends, rolled back where it raises.

        Events and entries of the audit chain that are recorded inside get their ids last, so that their order is the
        order of commits.

        Args:
            timeout_s: How long to wait for locks; None for 30 s.

        Raises:
            DatabaseBusy: the lock was not free within the bound, or the server ended the transaction; nothing changed.
            StorageFull: no room for the commit; nothing changed.
            StorageFailed: the disk refused; nothing changed.
            DatabaseUnusable: no such file, no such database, damaged, or not migrated.
        """
        if getattr(self._writing, "active", False):
            # A second writer in this thread would wait for the first one until the timeout.
            raise RuntimeError("write() inside write()")
        self._writing.active = True
        try:
            writer = self._writer if timeout_s is None else self._writer.execution_options(**{_TIMEOUT: timeout_s})
            with self._translated(), Session(writer, expire_on_commit=False) as session:
                session.info[PENDING_EVENTS] = []
                session.info[LAST] = []
                # SQLite's BEGIN IMMEDIATE is where the lock is taken: what the block reads first is already protected.
                session.connection()
                yield session
                flush_events(session)
                run_last(session)
                session.commit()
        finally:
            self._writing.active = False

    def migrate(self) -> None:
        """The schema is the one this version knows. Safe when several processes start at once: one works, others wait.

        Raises:
            SchemaMismatch: the database was written by a newer version.
            DatabaseBusy: another process held the schema lock for too long.
            DatabaseUnusable: cannot be opened.
        """
        if self.dialect == "sqlite":
            # Nobody else on the host reads patient data; SQLite gives its side files the same mode.
            Path(cast(str, self._url.database)).touch(mode=0o600)
        with self._translated(), self._writer.begin() as connection:
            migrate.upgrade(connection)

    def check(self, *, integrity: bool = False) -> None:
        """The database answers, its schema is ours and its settings keep what the package promises.

        Args:
            integrity: Also let SQLite read all pages (`quick_check`); takes time in proportion to the file.

        Raises:
            SchemaMismatch: migration missing, or schema newer than the package.
            DatabaseUnusable: cannot be opened, is damaged, or forgets commits; says how to mend it.
            DatabaseBusy: no answer within the bound.
        """
        with self._translated(), self._reader.begin() as connection:
            migrate.require_current(connection)
            _require_durable(connection, self.dialect)
            if integrity and self.dialect == "sqlite":
                verdict = str(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar())
                if verdict != "ok":
                    raise DatabaseUnusable(f"the SQLite file is damaged ({verdict}): restore the last backup")

    def close(self) -> None:
        """All pooled connections are closed; the object may be used again."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout) as error:
            typed = faults.translate(error)
            if typed is None:
                raise
            raise typed from error


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise BadSetting(
            "database_url is not a URL; write sqlite:////folder/catalog.sqlite or postgresql://user@host/database"
        ) from error
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:" or "mode=memory" in text:
            raise BadSetting("database_url names no file; an in-memory database forgets studies")
        return url.set(drivername="sqlite")
    if url.get_backend_name() in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise BadSetting(f"database_url: {url.get_backend_name()} is not supported; use sqlite or postgresql")


def _create_engine(url: URL) -> Engine:
    try:
        if url.drivername == "sqlite":
            folder = Path(cast(str, url.database)).parent
            if not folder.is_dir():
                raise DatabaseUnusable(f"the folder of the database does not exist: create {folder.name}/ first")
            return create_engine(url, creator=partial(_connect_sqlite, url), pool_timeout=BUSY_TIMEOUT_S)
        settings = {
            "statement_timeout": STATEMENT_TIMEOUT_S,
            "lock_timeout": BUSY_TIMEOUT_S,
            "idle_in_transaction_session_timeout": 2 * STATEMENT_TIMEOUT_S,
        }
        options = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in settings.items())
        return create_engine(
            url,
            connect_args={"connect_timeout": 10, "options": options},
            pool_pre_ping=True,
            pool_timeout=BUSY_TIMEOUT_S,
        )
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseUnusable("the PostgreSQL driver is missing: install psycopg[binary]") from error


def _connect_sqlite(url: URL) -> sqlite3.Connection:
    # mode=rw: only `migrate` makes the file; a misspelt path is an error and not an empty hospital.
    path = quote(str(Path(cast(str, url.database)).absolute()))
    return sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False)


def _prepare_sqlite(dbapi_connection: object, _record: object) -> None:
    connection = cast(sqlite3.Connection, dbapi_connection)
    # The driver's own implicit BEGIN is switched off; `_begin_sqlite` says which BEGIN is meant.
    connection.isolation_level = None
    # SQLite's own lower() knows ASCII only; a search for "josé" must find JOSÉ, as on PostgreSQL.
    connection.create_function("lower", 1, _lower, deterministic=True)
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        _enter_wal(cursor)
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _lower(value: str | None) -> str | None:
    return value.lower() if isinstance(value, str) else value


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    # SQLite answers "locked" at once, without the busy handler, where two processes switch a new file at the same time.
    for attempt in range(1, WAL_ATTEMPTS + 1):
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                return
            if cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return
        except sqlite3.OperationalError as error:
            if attempt == WAL_ATTEMPTS or "locked" not in str(error):
                raise
        time.sleep(WAL_PAUSE_S)
    raise DatabaseBusy("SQLite could not switch to WAL; is the file on a network disk?")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    reading = options.get(_MODE) == "read"
    timeout_s = cast(float, options.get(_TIMEOUT, BUSY_TIMEOUT_S))
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {max(1, int(timeout_s * 1000))}")
    connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if reading else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_MODE) == "read":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    elif _TIMEOUT in options:
        timeout_s = cast(float, options[_TIMEOUT])
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, int(timeout_s * 1000))}")


def _require_durable(connection: Connection, dialect: str) -> None:
    if dialect == "sqlite":
        wanted = {"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"}
        mend = "delete nothing; see that no other program changed the SQLite file's settings"
        query = "PRAGMA {}"
    else:
        wanted = {"fsync": "on", "full_page_writes": "on"}
        mend = "set it in postgresql.conf and reload"
        query = "SHOW {}"
    for name, value in wanted.items():
        found = str(connection.exec_driver_sql(query.format(name)).scalar())
        if found != value:
            raise DatabaseUnusable(f"{name} is {found}, needed is {value}: {mend}")
    if dialect == "postgresql":
        found = str(connection.exec_driver_sql("SHOW synchronous_commit").scalar())
        if found == "off":
            raise DatabaseUnusable("synchronous_commit is off, so a commit can be forgotten: set it to on")
