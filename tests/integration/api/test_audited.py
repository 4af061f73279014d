"""What people decide over the API and at the command line stands in the audit chain, or was not done."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.cli import app as command
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.security.audit_check import verify
from heimdallr_ray.security.audit_entries import recent
from heimdallr_ray.security.audit_key import read_key
from tests.integration.api.conftest import TOKEN, bearer, client_of
from tests.support.seeded import add_study, services

FAILED, DONE = "1.2.3.1", "1.2.3.2"


@pytest.fixture
def site(tmp_path: Path) -> ApiServices:
    """A failed study and one that is done."""
    made = services(tmp_path / "data", api_token=TOKEN)
    now = SystemClock().now()
    with made.database.write() as session:
        for uid, state in ((FAILED, "failed"), (DONE, "done")):
            study = add_study(session, uid, now, state=state)
            insert_job(session, STUDY_JOB, f"{study.id}:1", now=now, study_id=study.id)
    return made


def entries(made: ApiServices) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Action and actor of all entries but the first, oldest first; the chain is whole."""
    with made.database.read() as session:
        assert verify(session, [read_key(made.settings.data_dir / "audit.key")]).intact
        return [
            (row.action, row.actor_kind, row.actor_name, row.actor_address, json.loads(row.detail))
            for row in reversed(recent(session, 100))
            if row.action != "audit.key_created"
        ]


def test_a_retry_and_a_choice_over_the_api(site: ApiServices) -> None:
    client = client_of(create_app(site))
    assert client.post(f"/api/v1/studies/{FAILED}/retry").status_code == 401
    assert client.post(f"/api/v1/studies/{FAILED}/retry", headers=bearer(TOKEN)).status_code == 202
    assert client.post(f"/api/v1/studies/{FAILED}/retry", headers=bearer(TOKEN)).status_code == 409
    wish = {"series_uid": None, "reason": "DOE^JANE moved", "chosen_by": " Dr. Roe "}
    answer = client.post(f"/api/v1/studies/{DONE}/series", json=wish, headers=bearer(TOKEN))
    assert answer.status_code == 202
    told = entries(site)
    assert [one[:4] for one in told] == [
        ("study.retried", "token", "api_token", "127.0.0.1"),
        ("series.chosen", "token", "api_token", "127.0.0.1"),
    ]
    assert told[1][4] == {"by_rules": True, "chosen_by": "Dr. Roe", "deskew": None, "epoch": 1, "part": None}
    assert "DOE" not in str(told)


def test_a_retry_and_a_choice_at_the_command_line(site: ApiServices) -> None:
    data_dir = str(site.settings.data_dir)
    environment = {"HEIMDALLR_PROFILE": "demo", "HEIMDALLR_DATA_DIR": ""}
    for words in (
        ["retry", FAILED, "--data-dir", data_dir],
        ["series", "choose", DONE, "--reason", "as the rules say", "--data-dir", data_dir],
        ["retry", FAILED, "--data-dir", data_dir],
    ):
        CliRunner().invoke(command, words, env=environment)
    user = getpass.getuser()
    assert [one[:4] for one in entries(site)] == [
        ("study.retried", "user", user, ""),
        ("series.chosen", "user", user, ""),
    ]
