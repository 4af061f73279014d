"""Tokens in the database, on both dialects."""

from __future__ import annotations

from datetime import timedelta

import pytest

from heimdallr_ray.catalog.api_tokens import USE_EVERY, create_token, find_token, list_tokens, note_use, revoke_token
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.errors import NotFound, TokenExists
from heimdallr_ray.ids import Sha256
from tests.support.clock import EPOCH

ONE, TWO = Sha256("a" * 64), Sha256("b" * 64)


def made(database: Database, name: str, sha256: Sha256) -> None:
    with database.write() as session:
        create_token(session, name, sha256, "ingest", now=EPOCH, created_by="test", expires_at=EPOCH)


def test_a_token_is_found_by_its_digest_and_its_name_is_used_once(database: Database) -> None:
    made(database, "ct-1", ONE)
    with pytest.raises(TokenExists):
        made(database, "ct-1", TWO)
    with database.read() as session:
        row = find_token(session, ONE)
        assert row is not None
        assert (row.name, row.scopes, row.created_at, row.expires_at) == ("ct-1", "ingest", EPOCH, EPOCH)
        assert find_token(session, TWO) is None
    with database.write() as session:
        revoke_token(session, "ct-1", now=EPOCH)
    with pytest.raises(TokenExists):
        made(database, "ct-1", TWO)
    made(database, "ct-0", TWO)
    with database.read() as session:
        assert [row.name for row in list_tokens(session)] == ["ct-0", "ct-1"]


def test_a_token_is_revoked_once(database: Database) -> None:
    made(database, "ct-1", ONE)
    for later in (0, 5):
        with database.write() as session:
            row = revoke_token(session, "ct-1", now=EPOCH + timedelta(seconds=later))
            assert row.revoked_at == EPOCH
    with pytest.raises(NotFound), database.write() as session:
        revoke_token(session, "ct-2", now=EPOCH)


def test_the_last_use_is_written_once_a_minute(database: Database) -> None:
    made(database, "ct-1", ONE)
    told: list[bool] = []
    for seconds in (0, 1, 59, 61):
        with database.write() as session:
            told.append(note_use(session, ONE, now=EPOCH + timedelta(seconds=seconds)))
    assert told == [True, False, False, True]
    with database.read() as session:
        row = find_token(session, ONE)
        assert row is not None and row.last_used_at == EPOCH + timedelta(seconds=61)
    assert timedelta(seconds=60) == USE_EVERY
