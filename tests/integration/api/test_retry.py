"""A study is queued again over HTTP and by the command, and only where that makes sense."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.cli import app
from heimdallr_ray.config import load
from tests.integration.api.conftest import TOKEN, bearer, client_of
from tests.support.seeded import FAILED_UID, QUEUED_UID, add_study


@pytest.fixture
def writable(empty: ApiServices) -> TestClient:
    with empty.database.write() as session:
        now = empty.clock.now()
        add_study(session, FAILED_UID, now, state="failed", reason_code="engine_unavailable", reason="gone")
        add_study(session, QUEUED_UID, now)
    return client_of(create_app(empty))


def _history(client: TestClient) -> list[tuple[str, str]]:
    history = client.get(f"/api/v1/studies/{FAILED_UID}").json()["history"]
    return [(entry["kind"], entry["actor"]) for entry in history]


def test_a_failed_study_is_queued_again(writable: TestClient) -> None:
    answer = writable.post(f"/api/v1/studies/{FAILED_UID}/retry")
    assert (answer.status_code, answer.json()) == (202, {"study_uid": FAILED_UID, "state": "queued"})
    study = writable.get(f"/api/v1/studies/{FAILED_UID}").json()
    assert (study["study"]["state"], study["study"]["reason_code"], study["job"]["state"]) == ("queued", None, "queued")
    assert ("study.retry", "api") in _history(writable)
    again = writable.post(f"/api/v1/studies/{FAILED_UID}/retry")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "not_retryable")


@pytest.mark.parametrize(
    ("uid", "status", "code"),
    [(QUEUED_UID, 409, "not_retryable"), ("1.2.3", 404, "not_found"), ("1.2.x", 400, "bad_identifier")],
)
def test_what_cannot_be_retried_is_refused(writable: TestClient, uid: str, status: int, code: str) -> None:
    answer = writable.post(f"/api/v1/studies/{uid}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_it_needs_the_token_and_no_foreign_page_may_ask(writable: TestClient, empty: ApiServices) -> None:
    path = f"/api/v1/studies/{FAILED_UID}/retry"
    foreign = writable.post(path, headers={"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"})
    assert foreign.status_code == 403
    settings = load({}, None, data_dir=empty.settings.data_dir, profile="demo", min_free_mib=0, api_token=TOKEN)
    guarded = client_of(create_app(replace(empty, settings=settings)))
    assert guarded.post(path).status_code == 401
    assert guarded.post(path, headers=bearer(TOKEN)).status_code == 202


def test_the_command_queues_it_without_a_running_stack(writable: TestClient, empty: ApiServices) -> None:
    words = ["retry", FAILED_UID, "--data-dir", str(empty.settings.data_dir)]
    environment = {"HEIMDALLR_PROFILE": "demo"}
    first = CliRunner().invoke(app, words, env=environment)
    assert first.exit_code == 0, first.output
    assert next(actor for kind, actor in _history(writable) if kind == "study.retry").startswith("cli:")
    second = CliRunner().invoke(app, words, env=environment)
    assert second.exit_code == 1
    assert "not_retryable" in second.output
