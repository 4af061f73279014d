"""What drivers say, as our errors, without what they quote."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from heimdallr_ray.catalog.faults import translate
from heimdallr_ray.errors import (
    DatabaseBusy,
    DatabaseUnusable,
    HeimdallrError,
    SchemaMismatch,
    StorageFailed,
    StorageFull,
)

PATIENT = "SILVA^JOSÉ"


def _sqlite(text: str) -> DBAPIError:
    return OperationalError("SELECT :name", {"name": PATIENT}, sqlite3.OperationalError(text))


def _postgresql(sqlstate: str) -> DBAPIError:
    cause = psycopg.errors.lookup(sqlstate)(f"something about {PATIENT}")
    return OperationalError("SELECT :name", {"name": PATIENT}, cause)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_sqlite("database is locked"), DatabaseBusy),
        (_sqlite("database or disk is full"), StorageFull),
        (_sqlite("disk I/O error"), StorageFailed),
        (_sqlite("database disk image is malformed"), DatabaseUnusable),
        (_sqlite("no such table: study"), SchemaMismatch),
        (_postgresql("40001"), DatabaseBusy),
        (_postgresql("40P01"), DatabaseBusy),
        (_postgresql("57P01"), DatabaseBusy),
        (_postgresql("55P03"), DatabaseBusy),
        (_postgresql("53100"), StorageFull),
        (_postgresql("58030"), StorageFailed),
        (_postgresql("42P01"), SchemaMismatch),
        (_postgresql("28P01"), DatabaseUnusable),
        (PoolTimeout("pool"), DatabaseBusy),
    ],
)
def test_each_fault_has_its_family_and_quotes_nothing(error: DBAPIError, kind: type[HeimdallrError]) -> None:
    found = translate(error)
    assert type(found) is kind
    assert PATIENT not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed: job.kind, job.key")),
        _sqlite('near "ROWS": syntax error'),
        _postgresql("42601"),
    ],
)
def test_a_defect_of_ours_is_not_dressed_up(error: DBAPIError) -> None:
    assert translate(error) is None
