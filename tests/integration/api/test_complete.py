"""A person says that a study is complete, over HTTP and at the command line; and what is told while it settles."""

from __future__ import annotations

import getpass
import json
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select
from typer.testing import CliRunner

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.associations import AssociationClosed, AssociationOpened, record_closed, record_opened
from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.catalog.studies import record_instances
from heimdallr_ray.catalog.tables import AuditRow
from heimdallr_ray.cli import app
from heimdallr_ray.security.audit import Action
from tests.integration.api.conftest import client_of
from tests.support.seeded import FAILED_UID, add_study
from tests.support.studies import received

UID = "1.2.1"
WISH = {"reason": "the scanner broke", "completed_by": "Dr. Grey"}


@pytest.fixture
def site(empty: ApiServices) -> ApiServices:
    with empty.database.write() as session:
        now = empty.clock.now()
        record_instances(session, [received(1, at=now), received(2, at=now)], now)
        add_study(session, FAILED_UID, now, state="failed", reason_code="engine_unavailable", reason="gone")
    return empty


@pytest.fixture
def client(site: ApiServices) -> TestClient:
    return client_of(create_app(site))


def test_a_study_is_closed_as_it_stands(client: TestClient, site: ApiServices) -> None:
    coming = client.get(f"/api/v1/studies/{UID}").json()["study"]["completion"]
    assert (coming["code"], coming["reason"], coming["closes_at"]) == ("receiving", "images are coming", None)
    answer = client.post(f"/api/v1/studies/{UID}/complete", json=WISH)
    assert (answer.status_code, answer.json()) == (202, {"study_uid": UID, "state": "queued", "n_instances": 2})
    page = client.get(f"/api/v1/studies/{UID}").json()
    words = "Dr. Grey said that it is complete: the scanner broke"
    assert page["study"]["completion"] == {
        "code": "operator",
        "reason": words,
        "closes_at": None,
        "transfer": None,
        "incomplete": None,
    }
    assert (page["study"]["state"], page["study"]["reason"], page["job"]["state"]) == ("queued", None, "queued")
    last = page["history"][-1]
    assert (last["actor"], last["new"], last["reason"]) == ("api:Dr. Grey", "queued", words)
    with site.database.read() as session:
        entries = session.exec(select(AuditRow).where(AuditRow.action == Action.STUDY_COMPLETED.value)).all()
    assert len(entries) == 1
    again = client.post(f"/api/v1/studies/{UID}/complete", json=WISH)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "not_open")


@pytest.mark.parametrize(
    ("uid", "wish", "status", "code"),
    [
        (FAILED_UID, WISH, 409, "not_open"),
        ("1.2.3", WISH, 404, "not_found"),
        ("1.2.x", WISH, 400, "bad_identifier"),
        (UID, {**WISH, "reason": " "}, 400, "bad_identifier"),
        (UID, {"reason": "why"}, 422, "invalid_request"),
        (UID, {**WISH, "now": True}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    client: TestClient, uid: str, wish: dict[str, object], status: int, code: str
) -> None:
    answer = client.post(f"/api/v1/studies/{uid}/complete", json=wish)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert client.get(f"/api/v1/studies/{UID}").json()["study"]["state"] == "receiving"


def test_no_foreign_page_may_ask(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"}
    assert client.post(f"/api/v1/studies/{UID}/complete", json=WISH, headers=headers).status_code == 403


def test_the_command_needs_a_reason_and_says_how_many_images(site: ApiServices, client: TestClient) -> None:
    words = ["complete", UID, "--data-dir", str(site.settings.data_dir)]
    assert CliRunner().invoke(app, words).exit_code == 2
    done = CliRunner().invoke(app, [*words, "--reason", "switched off"])
    assert done.exit_code == 0 and "queued with 2 images" in done.output
    last = client.get(f"/api/v1/studies/{UID}").json()["history"][-1]
    user = getpass.getuser()
    assert (last["actor"], last["reason"]) == (f"cli:{user}", f"{user} said that it is complete: switched off")
    again = CliRunner().invoke(app, [*words, "--reason", "again"])
    assert again.exit_code == 1 and "not_open" in again.output


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (How.RELEASED, None),
        (How.ABORTED, "the last association was broken off"),
        (How.LOST, "the last association was lost"),
        (None, "an association was still sending"),
    ],
)
def test_a_person_s_word_does_not_hide_how_the_transfer_had_ended(
    client: TestClient, site: ApiServices, how: How | None, words: str | None
) -> None:
    now, uid = site.clock.now(), "1.2.8"
    with site.database.write() as session:
        record_opened(session, [AssociationOpened("a8", Door.DICOM, "CT_1", "HEIMDALLR", "192.0.2.7", now)])
        record_instances(session, [received(1, study=8, at=now, association="a8")], now)
        if how is not None:
            record_closed(session, [AssociationClosed("a8", now, how)])
    assert client.post(f"/api/v1/studies/{uid}/complete", json=WISH).status_code == 202
    page = client.get(f"/api/v1/studies/{uid}").json()
    told = page["study"]["completion"]
    said = "Dr. Grey said that it is complete: the scanner broke" + (f" ({words})" if words else "")
    assert (told["code"], told["reason"], page["history"][-1]["reason"]) == ("operator", said, said)
    assert told["transfer"] == (how.value if how else "open")
    assert told["incomplete"] == ("transfer_incomplete" if words else None)
    with site.database.read() as session:
        (entry,) = session.exec(select(AuditRow).where(AuditRow.action == Action.STUDY_COMPLETED.value)).all()
    assert json.loads(entry.detail)["transfer"] == told["transfer"]


@pytest.mark.parametrize("state", ["receiving", "settling"])
def test_while_it_is_open_the_api_tells_when_and_why_it_will_close(
    client: TestClient, site: ApiServices, state: str
) -> None:
    at = site.clock.now() + timedelta(seconds=9)
    plan = {"closes_at": at, "close_code": "idle_after_release", "close_reason": "15 s without an image"}
    with site.database.write() as session:
        add_study(session, "1.2.7", site.clock.now(), state=state, **plan)
    told = client.get("/api/v1/studies/1.2.7").json()["study"]["completion"]
    assert (told["code"], told["reason"]) == ("idle_after_release", "15 s without an image")
    assert told["closes_at"] is not None
    row = next(one for one in client.get("/api/v1/studies").json()["studies"] if one["study_uid"] == "1.2.7")
    assert row["completion"] == told


@pytest.mark.parametrize(
    ("code", "state", "incomplete"),
    [
        ("idle_after_abort", "receiving", None),
        ("idle_after_abort", "settling", None),
        ("hard_maximum", "settling", None),
        ("idle_after_abort", "queued", "idle_after_abort"),
        ("hard_maximum", "failed", "hard_maximum"),
    ],
)
def test_no_open_study_is_called_closed_without_its_images(
    client: TestClient, site: ApiServices, code: str, state: str, incomplete: str | None
) -> None:
    now = site.clock.now()
    is_open = state in ("receiving", "settling")
    when = {"closes_at": now + timedelta(minutes=5)} if is_open else {"closed_at": now, "last_transfer": "aborted"}
    with site.database.write() as session:
        add_study(session, "1.2.9", now, state=state, close_code=code, close_reason="why", **when)
    told = client.get("/api/v1/studies/1.2.9").json()["study"]["completion"]
    assert (told["code"], told["incomplete"]) == (code, incomplete)
    row = next(one for one in client.get("/api/v1/studies").json()["studies"] if one["study_uid"] == "1.2.9")
    assert row["completion"] == told


def test_the_status_tells_both_waits(client: TestClient, site: ApiServices) -> None:
    status = client.get("/api/v1/status").json()
    rules = site.settings.completion.site
    assert (status["idle_seconds"], status["settle_after_release_seconds"]) == (rules.idle_s, rules.after_release_s)
