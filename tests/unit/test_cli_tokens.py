"""`heimdallr tokens`: a token is printed once, listed without itself, and revoked; each stands in the audit chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlmodel import col, select
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import AuditRow
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import load
from heimdallr_ray.errors import Unauthorized
from heimdallr_ray.security.grants import TokenBook
from heimdallr_ray.security.tokens import Scope


def invoke(folder: Path, *words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, ["tokens", *words, "--data-dir", str(folder)])
    return done.exit_code, done.stdout, done.stderr


def test_a_token_lives_from_its_making_to_its_end(tmp_path: Path) -> None:
    status, token, said = invoke(tmp_path, "create", "gateway", "--scope", "ingest", "--expires", "90d")
    assert status == 0 and "not shown again" in said and token.strip() not in said
    settings = load({}, None, data_dir=tmp_path)
    database = Database(settings.resolved_database_url)
    book = TokenBook(settings, database, SystemClock())
    grant = book.grant_of(token.strip())
    assert grant is not None and (grant.name, grant.scopes) == ("gateway", {Scope.INGEST})
    status, listed, _ = invoke(tmp_path, "list")
    assert status == 0 and "gateway" in listed and "valid" in listed and "ingest" in listed
    assert token.strip() not in listed
    status, _, said = invoke(tmp_path, "revoke", "gateway")
    assert status == 0 and said.rstrip().endswith("gateway is revoked")
    # Nothing is done the second time, so the chain has one entry of it.
    status, _, said = invoke(tmp_path, "revoke", "gateway")
    assert status == 0 and "gateway is revoked already, since 20" in said
    with pytest.raises(Unauthorized):
        book.grant_of(token.strip())
    (row,) = json.loads(invoke(tmp_path, "list", "--json")[1])
    assert (row["name"], row["state"], row["scopes"]) == ("gateway", "revoked", ["ingest"])
    with database.read() as session:
        actions = [entry.action for entry in session.exec(select(AuditRow).order_by(col(AuditRow.id))).all()]
    assert [action for action in actions if action.startswith("token.")] == ["token.created", "token.revoked"]
    database.close()


def test_mistakes_are_told(tmp_path: Path) -> None:
    assert "token_exists" not in invoke(tmp_path, "create", "a", "--scope", "read")[2]
    assert "token_exists" in invoke(tmp_path, "create", "a", "--scope", "read")[2]
    assert "a scope is one of" in invoke(tmp_path, "create", "b", "--scope", "write")[2]
    assert "a lifetime is" in invoke(tmp_path, "create", "b", "--scope", "read", "--expires", "soon")[2]
    assert "a token's name" in invoke(tmp_path, "create", "api_token", "--scope", "read")[2]
    assert "not_found" in invoke(tmp_path, "revoke", "b")[2]
    status, _, said = invoke(tmp_path / "none", "list")
    assert status == 1 and "database_unusable" in said
