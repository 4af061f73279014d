"""What a database driver says, as one of our errors: busy, full, failed or unusable."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from heimdallr_ray.errors import (
    DatabaseBusy,
    DatabaseUnusable,
    HeimdallrError,
    SchemaMismatch,
    StorageFailed,
    StorageFull,
)

NOT_MIGRATED = "the database has no or an older schema: run `heimdallr up` (or Database.migrate()) once"

# SQLite tells its result codes apart by text only (sqlite.org/rescode.html); Python 3.11 adds sqlite_errorname.
_SQLITE: tuple[tuple[str, type[HeimdallrError], str], ...] = (
    ("locked", DatabaseBusy, "the SQLite write lock was not free within the bound"),
    ("busy", DatabaseBusy, "the SQLite write lock was not free within the bound"),
    ("disk is full", StorageFull, "no room for the database's commit"),
    ("disk i/o error", StorageFailed, "the disk refused the database's commit"),
    (
        "unable to open",
        DatabaseUnusable,
        "the SQLite file is not there or not writable: run `heimdallr up` once, or check database_url",
    ),
    (
        "not a database",
        DatabaseUnusable,
        "the file is not a SQLite database: check database_url, or restore the backup",
    ),
    ("malformed", DatabaseUnusable, "the SQLite file is damaged: restore the last backup"),
    ("attempt to write a readonly database", DatabaseUnusable, "the SQLite file, or this transaction, is read only"),
    ("no such table", SchemaMismatch, NOT_MIGRATED),
    ("no such column", SchemaMismatch, NOT_MIGRATED),
)

# PostgreSQL error codes, appendix A of its manual; a prefix of two is a class.
_POSTGRESQL: tuple[tuple[str, type[HeimdallrError], str], ...] = (
    ("40", DatabaseBusy, "PostgreSQL ended the transaction to resolve a conflict; it may be repeated"),
    ("55P03", DatabaseBusy, "a lock was not free within the bound"),
    ("57014", DatabaseBusy, "the statement took longer than its bound"),
    ("57P", DatabaseBusy, "the PostgreSQL server is starting or stopping"),
    ("25P03", DatabaseBusy, "the transaction was idle for too long"),
    ("08", DatabaseBusy, "the connection to PostgreSQL was lost"),
    ("53100", StorageFull, "the PostgreSQL server's disk is full"),
    ("53", DatabaseBusy, "the PostgreSQL server has no connection or memory left"),
    ("58", StorageFailed, "the PostgreSQL server's disk refused"),
    ("25006", DatabaseUnusable, "this transaction is read only"),
    ("3D000", DatabaseUnusable, "the PostgreSQL database does not exist: create it (createdb)"),
    ("28", DatabaseUnusable, "PostgreSQL refused the user or password: check database_url"),
    ("42501", DatabaseUnusable, "the PostgreSQL user may not do this: grant it the database"),
    ("42P01", SchemaMismatch, NOT_MIGRATED),
    ("42703", SchemaMismatch, NOT_MIGRATED),
)


def translate(error: DBAPIError | PoolTimeout) -> HeimdallrError | None:
    """Our error for the driver's `error`; None where it shows a defect of ours and must not be dressed up.

    The detail repeats neither the statement nor its parameters: they can hold patient data.
    """
    if isinstance(error, PoolTimeout):
        return DatabaseBusy("no database connection became free within the bound")
    if isinstance(error, IntegrityError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None)
    if isinstance(sqlstate, str):
        return next((kind(detail) for prefix, kind, detail in _POSTGRESQL if sqlstate.startswith(prefix)), None)
    text = str(error.orig).lower()
    for phrase, kind, detail in _SQLITE:
        if phrase in text:
            return kind(detail)
    if error.connection_invalidated or "connection" in text:
        return _connection_fault(text)
    return None


def _connection_fault(text: str) -> HeimdallrError:
    # libpq's own failures (no server, wrong password at connect) carry no SQLSTATE.
    if "does not exist" in text and "database" in text:
        return DatabaseUnusable("the PostgreSQL database or user does not exist: create it, or check database_url")
    if "password" in text or "authentication" in text:
        return DatabaseUnusable("PostgreSQL refused the user or password: check database_url")
    return DatabaseBusy("no connection to PostgreSQL: see that the server of database_url runs and can be reached")
