"""`heimdallr audit`: what a person sees of the chain, and the exit status that a monitor goes by."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.catalog.tables import StudyRow
from heimdallr_ray.cli import app
from heimdallr_ray.config import Settings, load
from heimdallr_ray.security.audit import Action, Actor, AuditLog, Fact
from heimdallr_ray.security.audit_anchor import keep_anchor, read_anchor
from heimdallr_ray.security.audit_check import Anchor
from tests.support.clock import EPOCH


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    configured = load({}, None, data_dir=tmp_path / "data", profile="demo")
    configured.data_dir.mkdir()
    return configured


@pytest.fixture
def database(settings: Settings) -> Database:
    """Three entries about one study."""
    made = Database(settings.resolved_database_url)
    made.migrate()
    write(made, settings, 2)
    return made


def write(database: Database, settings: Settings, number: int) -> None:
    log = AuditLog.of(settings)
    with database.write() as session:
        study = StudyRow(study_uid=f"1.2.{number}", first_received_at=EPOCH, last_received_at=EPOCH)
        session.add(study)
        session.flush()
        for index in range(number):
            log.append(
                session,
                Action.STUDY_RETRIED,
                Actor.ae("CT_1", "192.0.2.7"),
                now=EPOCH,
                study_id=study.id,
                detail={"index": index, "word": "[red]"},
            )


def invoke(settings: Settings, *words: str) -> tuple[int, str]:
    command = ["audit", *words, "--data-dir", str(settings.data_dir)]
    done = CliRunner().invoke(app, command, env={"HEIMDALLR_PROFILE": "demo", "HEIMDALLR_DATA_DIR": ""})
    return done.exit_code, done.output


def test_a_whole_chain_is_exit_status_0(settings: Settings, database: Database) -> None:
    status, said = invoke(settings, "verify")
    assert status == 0
    assert "is whole: 3 entries" in said
    status, said = invoke(settings, "verify", "--json")
    document = json.loads(said)
    assert (status, document["intact"], document["entries"], document["first_bad"]) == (0, True, 3, None)
    status, said = invoke(settings, "head")
    assert (status, said.strip()) == (0, document["head"])


def test_a_deleted_row_is_exit_status_1_and_named(settings: Settings, database: Database) -> None:
    with database.write() as session:
        session.connection().execute(text("DROP TRIGGER audit_no_delete"))
        session.connection().execute(text("DELETE FROM audit WHERE id = 2"))
    status, said = invoke(settings, "verify")
    assert status == 1
    assert "entry 2: missing" in said and "NOT whole" in said
    status, said = invoke(settings, "verify", "--json")
    document = json.loads(said)
    assert (status, document["first_bad"], document["findings"][0]["code"]) == (1, 2, "missing")


def test_an_older_state_is_found_by_the_file_beside_the_database(settings: Settings, database: Database) -> None:
    before = (settings.data_dir / "catalog.sqlite").with_suffix(".before")
    with sqlite3.connect(settings.data_dir / "catalog.sqlite") as connection:
        connection.execute(f"VACUUM INTO '{before}'")
    connection.close()
    write(database, settings, 5)
    assert keep_anchor(database, settings.data_dir) == read_anchor(settings.data_dir)
    assert keep_anchor(database, settings.data_dir) is None
    assert invoke(settings, "verify")[0] == 0
    database.close()
    for path in settings.data_dir.glob("catalog.sqlite*"):
        if path != before:
            path.unlink()
    before.rename(settings.data_dir / "catalog.sqlite")
    status, said = invoke(settings, "verify")
    assert status == 1
    assert "the end was cut" in said
    again = Database(settings.resolved_database_url)
    write(again, settings, 8)
    assert keep_anchor(again, settings.data_dir) is None
    again.close()
    # The chain is longer than before now, and the file is still the witness of the other one.
    status, said = invoke(settings, "verify")
    assert status == 1
    assert "entry 8: anchor" in said
    (settings.data_dir / "audit.anchor").unlink()
    assert invoke(settings, "verify")[0] == 0
    # Kept by a person on another machine, it still tells.
    assert invoke(settings, "verify", "--anchor", str(Anchor(12, "a" * 64)))[0] == 1


def test_without_its_key_nothing_is_verified_and_no_new_one_is_made(settings: Settings, database: Database) -> None:
    key = settings.data_dir / "audit.key"
    content = key.read_text()
    key.unlink()
    status, said = invoke(settings, "verify")
    assert status == 1
    assert "bad_setting: there is no audit key audit.key" in said
    assert not key.exists()
    old = settings.data_dir / "old.key"
    old.write_text(content)
    old.chmod(0o600)
    write(database, settings, 1)
    status, said = invoke(settings, "verify")
    assert status == 1
    assert "entry 1: other_key" in said and "--key-file" in said
    assert invoke(settings, "verify", "--key-file", str(old))[0] == 0


def test_an_address_without_an_ae_title_is_not_listed_as_one(settings: Settings, database: Database) -> None:
    with database.write() as session:
        facts: dict[str, Fact] = {"reason": "address"}
        AuditLog.of(settings).append(
            session, Action.ASSOCIATION_REFUSED, Actor.ae("", "192.0.2.9"), now=EPOCH, detail=facts
        )
    said = invoke(settings, "list")[1]
    assert "ae (no AE title told) 192.0.2.9" in said


def test_entries_are_listed_by_study_and_actor_the_newest_last(settings: Settings, database: Database) -> None:
    write(database, settings, 1)
    status, said = invoke(settings, "list")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == ["1", "2", "3", "4"]
    assert {line.split()[3] for line in said.splitlines()} == {"UTC"}
    assert said.count(f"  {EPOCH:%Y-%m-%d %H:%M:%S} UTC  study.retried") == 3
    assert "study.retried" in said and "ae CT_1 192.0.2.7" in said and "word=[red]" in said
    of_study = json.loads(invoke(settings, "list", "--study", "1.2.2", "--json")[1])
    assert [row["id"] for row in of_study] == [2, 3]
    assert of_study[0]["actor"] == {"kind": "ae", "name": "CT_1", "address": "192.0.2.7"}
    assert [row["id"] for row in json.loads(invoke(settings, "list", "--actor", "audit", "--json")[1])] == [1]
    assert [row["id"] for row in json.loads(invoke(settings, "list", "--last", "1", "--json")[1])] == [4]
    status, said = invoke(settings, "list", "--study", "1.2.99")
    assert status == 1 and "not_found" in said


def test_a_chain_without_an_entry_is_whole(settings: Settings) -> None:
    made = Database(settings.resolved_database_url)
    made.migrate()
    made.close()
    AuditLog.of(settings)
    assert invoke(settings, "verify")[0] == 0
    assert invoke(settings, "head")[0] == 1


def test_an_action_that_there_is_not_is_refused_with_those_there_are(settings: Settings, database: Database) -> None:
    write(database, settings, 1)
    status, said = invoke(settings, "list", "--action", "nonsense")
    assert status == 1 and "there is no action nonsense" in said and "study.retried" in said
    for known in ("upload.", "token.created"):
        assert invoke(settings, "list", "--action", known)[0] == 0
