"""What people decide over the API and at the command line stands in the audit chain, or was not done."""

from __future__ import annotations

import getpass
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.api.told import carry_out, telling_of
from heimdallr_ray.catalog.api_tokens import create_token
from heimdallr_ray.catalog.jobs import STUDY_JOB, insert_job
from heimdallr_ray.catalog.states import Door
from heimdallr_ray.catalog.tables import InstanceRow
from heimdallr_ray.cli import app as command
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.listener.snapshots import FOLDER, read_snapshots
from heimdallr_ray.security.audit import Actor, ActorKind
from heimdallr_ray.security.audit_anchor import read_anchor
from heimdallr_ray.security.audit_check import verify
from heimdallr_ray.security.audit_entries import recent
from heimdallr_ray.security.audit_key import read_key
from heimdallr_ray.security.tokens import Scope, digest, mint
from tests.integration.api.conftest import TOKEN, bearer, client_of
from tests.support.intake import ct_slice, file_bytes, wait_for, write_study
from tests.support.related import TYPE, related
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


def zipped(folder: Path, count: int) -> dict[str, tuple[str, bytes, str]]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in write_study(folder / "images", count):
            archive.write(path, path.name)
    return {"file": ("study.zip", buffer.getvalue(), "application/zip")}


def entries(made: ApiServices) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Action and actor of all entries but the first, oldest first; the chain is whole."""
    with made.database.read() as session:
        assert verify(session, [read_key(made.settings.data_dir / "audit.key")]).intact
        return [
            (row.action, row.actor_kind, row.actor_name, row.actor_address, json.loads(row.detail))
            for row in reversed(recent(session, 100))
            if row.action != "audit.key_created"
        ]


def test_an_upload_and_a_stow_request_are_told_with_who_sent_them(site: ApiServices, tmp_path: Path) -> None:
    client = client_of(create_app(site))
    content = zipped(tmp_path, 3)
    assert client.post("/api/v1/upload", files=content).status_code == 401
    assert client.post("/api/v1/upload", files=content).status_code == 401
    assert client.post("/api/v1/upload", files=content, headers=bearer(TOKEN)).status_code == 200
    objects = [file_bytes(ct_slice(number, "1.2.3.9", "1.2.3.9.1")) for number in (1, 2)]
    headers = {"Content-Type": TYPE, **bearer(TOKEN)}
    body = related([objects[0], b"no image"])
    assert client.post("/dicomweb/studies", content=body, headers=headers).status_code == 202
    assert client.post("/dicomweb/studies", content=related([b"no image"]), headers=headers).status_code == 409
    assert client.post("/dicomweb/studies", content=b"", headers=headers).status_code == 400
    told = entries(site)
    assert [one[:4] for one in told] == [
        # Two of the same within a minute are one entry.
        ("upload.refused", "anonymous", "", "127.0.0.1"),
        ("upload.accepted", "token", "api_token", "127.0.0.1"),
        ("stow.accepted", "token", "api_token", "127.0.0.1"),
        ("stow.refused", "token", "api_token", "127.0.0.1"),
        *[("stow.refused", "token", "api_token", "127.0.0.1")] * (len(told) - 4),
    ]
    assert told[0][4] == {"reason": "unauthorized"}
    assert (told[1][4]["instances"], told[1][4]["studies"]) == (3, 1)
    assert told[2][4]["instances"] == 1
    assert told[3][4] == {"reason": "not_dicom"}
    with site.database.read() as session:
        assert told[1][4]["intake"] in {row.association_id for row in session.exec(select(InstanceRow)).all()}
    figures = site.figures.figures()
    assert figures.stored == {"dicom": 0, "upload": 3, "stow": 1}
    assert figures.refused["upload"] == {"request.unauthorized": 2}
    assert figures.refused["stow"]["store.not_dicom"] == 2
    assert sum(figures.store_seconds["upload"].counts) == 1


@pytest.mark.parametrize("session_header", [{}, {"X-Upload-Session": "ab" * 16}], ids=["alone", "of a session"])
def test_a_study_that_came_by_upload_names_who_sent_it_when_it_is_closed(
    site: ApiServices, tmp_path: Path, session_header: dict[str, str]
) -> None:
    client = client_of(create_app(site))
    headers = {**bearer(TOKEN), **session_header}
    assert client.post("/api/v1/upload", files=zipped(tmp_path, 3), headers=headers).status_code == 200
    with site.database.write() as session:
        study_id = session.exec(select(InstanceRow.study_id)).first()
        assert study_id is not None
        site.intake_audit.study_received(session, study_id, site.clock.now())
    accepted, received = entries(site)
    assert received[:4] == ("study.received", "token", "api_token", "127.0.0.1")
    assert (received[4]["door"], received[4]["intake"]) == ("upload", accepted[4]["intake"])


def test_a_known_token_without_the_scope_is_named_and_its_secret_is_not(site: ApiServices, tmp_path: Path) -> None:
    token = mint()
    with site.database.write() as session:
        create_token(
            session, "monitor", digest(token), Scope.METRICS, now=site.clock.now(), created_by="t", expires_at=None
        )
    client = client_of(create_app(site))
    answer = client.post("/api/v1/upload", files=zipped(tmp_path, 1), headers=bearer(token))
    assert answer.status_code == 403 and "monitor" in answer.json()["error"]["detail"]
    (told,) = entries(site)
    assert told[:4] == ("upload.refused", "token", "monitor", "127.0.0.1") and told[4] == {"reason": "forbidden"}
    with site.database.read() as session:
        assert all(token not in row.detail + row.actor_name for row in recent(session, 10))


def test_a_question_about_instances_that_is_refused_is_counted_and_told(site: ApiServices) -> None:
    client = client_of(create_app(site))
    assert client.post("/api/v1/instances/known", json={"instances": []}).status_code == 401
    assert site.figures.figures().refused["upload"] == {"request.unauthorized": 1}
    assert [one[:2] for one in entries(site)] == [("upload.refused", "anonymous")]


def test_an_upload_that_is_rolled_back_leaves_no_entry(site: ApiServices, tmp_path: Path) -> None:
    content = zipped(tmp_path, 2)
    with site.database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE series RENAME TO gone")
    answer = client_of(create_app(site)).post("/api/v1/upload", files=content, headers=bearer(TOKEN))
    assert answer.status_code >= 500
    assert [one[0] for one in entries(site)] == ["upload.refused"]


def test_the_http_interface_tells_its_figures_like_a_listener(site: ApiServices) -> None:
    telling = telling_of(site)
    telling.start()
    try:
        told = wait_for(lambda: read_snapshots(site.settings.run_dir / FOLDER, site.clock.now()), 10, "figures")
    finally:
        telling.stop()
    assert [(one.place, one.state.healthy) for one in told] == [("http-0", True)]
    note = site.intake_audit.refused("unauthorized", Actor(ActorKind.ANONYMOUS, "", "192.0.2.9"), door=Door.STOW)
    assert note is not None
    carry_out(site, note)
    telling.chores()
    anchor = read_anchor(site.settings.data_dir)
    assert anchor is not None and anchor.entries == 1 + len(entries(site))


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
