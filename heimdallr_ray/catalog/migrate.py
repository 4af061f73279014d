"""Schema versions: Alembic, run from the package, under a lock so that processes may start together."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from heimdallr_ray.catalog.faults import NOT_MIGRATED
from heimdallr_ray.errors import SchemaMismatch

MIGRATIONS = Path(__file__).with_name("migrations")
# Alembic says two lines for each question about the version; readiness is asked every few seconds.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
_SCHEMA_LOCK = 0x4865_696D_6400


def upgrade(connection: Connection, revision: str = "head") -> None:
    """The schema is at `revision`, in the connection's transaction.

    Args:
        connection: In a transaction that holds SQLite's write lock (BEGIN IMMEDIATE), or one on PostgreSQL.
        revision: An Alembic revision; the newest by default.

    Raises:
        SchemaMismatch: the database was written by a newer version.
    """
    _lock(connection)
    _require_known(connection)
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """The schema is back at `revision` (`-1`: one step), in the connection's transaction.

    Raises:
        SchemaMismatch: the database was written by a newer version.
    """
    _lock(connection)
    _require_known(connection)
    command.downgrade(_config(connection), revision)


def require_current(connection: Connection) -> None:
    """Nothing happens where the schema is the newest one this version knows.

    Raises:
        SchemaMismatch: it is older or newer; says what to do.
    """
    found = _require_known(connection)
    if found != _scripts().get_current_head():
        raise SchemaMismatch(NOT_MIGRATED)


def _require_known(connection: Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in _scripts().walk_revisions()}
    if found is not None and found not in known:
        raise SchemaMismatch(
            f"the database has schema {found[:32]}, written by a newer heimdallr_ray: "
            "install that version, or restore the backup made before the upgrade"
        )
    return found


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # ConfigParser would read a per cent sign in a folder's name as an interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
