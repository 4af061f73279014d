"""Named tokens at the HTTP interface: what each scope opens, when a token ends, who is said to have asked."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from heimdallr_ray.api.access import ANYONE, OPERATOR, READER, SCRAPER, UPLOADER, actor_of, anyone
from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.catalog.api_tokens import create_token, find_token, revoke_token
from heimdallr_ray.security.audit import Actor, ActorKind
from heimdallr_ray.security.tokens import Scope, digest, mint
from tests.integration.api.conftest import TOKEN, UPLOAD_TOKEN, bearer, client_of
from tests.support.clock import FakeClock
from tests.support.seeded import services

STRANGER = ("192.0.2.9", 4000)
RULES = {
    "read": ("/probe/read", Scope.READ),
    "ingest": ("/probe/ingest", Scope.INGEST),
    "admin": ("/probe/admin", Scope.ADMIN),
    "metrics": ("/probe/metrics", Scope.METRICS),
}


def token_for(made: ApiServices, name: str, *scopes: Scope, expires_at: datetime | None = None) -> str:
    token = mint()
    with made.database.write() as session:
        create_token(
            session,
            name,
            digest(token),
            ",".join(scopes),
            now=made.clock.now(),
            created_by="test",
            expires_at=expires_at,
        )
    return token


def probing(made: ApiServices) -> FastAPI:
    """The application, with one route of each rule that says who asked."""
    app = create_app(made)

    def who(request: Request) -> dict[str, str]:
        actor = actor_of(request)
        return {"kind": actor.kind.value, "name": actor.name, "address": actor.address}

    for name, rule in (("read", READER), ("ingest", UPLOADER), ("admin", OPERATOR), ("metrics", SCRAPER)):
        app.add_api_route(f"/probe/{name}", who, dependencies=[rule])
    app.add_api_route("/probe/anyone", who, dependencies=[ANYONE])
    return app


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_opens_its_routes_and_no_others(empty: ApiServices, scope: Scope) -> None:
    client = client_of(probing(empty), peer=STRANGER)
    token = token_for(empty, "gateway", scope)
    for path, needed in RULES.values():
        assert client.get(path).status_code == 401
        answer = client.get(path, headers=bearer(token))
        if needed is scope:
            assert answer.json() == {"kind": "token", "name": "gateway", "address": STRANGER[0]}
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            assert f"no scope {needed}" in answer.json()["error"]["detail"]
    in_other_header = client.get("/probe/ingest", headers={"X-Upload-Token": token})
    assert in_other_header.status_code == (200 if scope is Scope.INGEST else 403)
    assert client.get("/probe/read", headers={"X-Upload-Token": token}).status_code == 401


def test_every_guarded_route_refuses_a_token_of_another_scope(empty: ApiServices) -> None:
    app = create_app(empty)
    client = client_of(app, peer=STRANGER)
    metrics = token_for(empty, "monitor", Scope.METRICS)
    guarded = 0
    for route in iter_route_contexts(app.routes):
        called = [dependency.call for dependency in route.dependant.dependencies]  # codespell:ignore dependant
        if anyone in called or not str(route.path).startswith(("/api", "/upload", "/dicomweb")):
            continue
        path = str(route.path).format(study_uid="1.2.3", name="x")
        for method in route.methods or ():
            if path == "/metrics":
                continue
            guarded += 1
            assert client.request(method, path).status_code == 401, path
            assert client.request(method, path, headers=bearer(metrics)).status_code == 403, path
    assert guarded >= 10


def test_a_token_ends_when_it_expires_or_is_revoked(tmp_path: Path) -> None:
    clock = FakeClock()
    made = services(tmp_path / "data", clock)
    client = client_of(probing(made), peer=STRANGER)
    brief = token_for(made, "brief", Scope.READ, expires_at=clock.now() + timedelta(hours=1))
    lasting = token_for(made, "lasting", Scope.READ)
    for token in (brief, lasting):
        assert client.get("/probe/read", headers=bearer(token)).status_code == 200
    clock.advance(3601)
    answer = client.get("/probe/read", headers=bearer(brief))
    assert (answer.status_code, answer.json()["error"]["detail"]) == (401, "the token brief has expired")
    assert client.get("/probe/read", headers=bearer(lasting)).status_code == 200
    with made.database.write() as session:
        revoke_token(session, "lasting", now=clock.now())
    answer = client.get("/probe/read", headers=bearer(lasting))
    assert (answer.status_code, answer.json()["error"]["detail"]) == (401, "the token lasting was revoked")


def test_the_last_use_is_noted(empty: ApiServices) -> None:
    token = token_for(empty, "gateway", Scope.READ)
    assert client_of(probing(empty)).get("/probe/read", headers=bearer(token)).status_code == 200
    with empty.database.read() as session:
        row = find_token(session, digest(token))
    assert row is not None and row.last_used_at is not None
    assert abs(row.last_used_at - empty.clock.now()) < timedelta(minutes=1)


def test_the_tokens_of_the_settings_have_names_too(tmp_path: Path) -> None:
    made = services(tmp_path / "data", api_token=TOKEN, upload_token=UPLOAD_TOKEN)
    client = client_of(probing(made))
    for path, scope in RULES.values():
        assert client.get(path, headers=bearer(TOKEN)).json()["name"] == "api_token"
        answer = client.get(path, headers=bearer(UPLOAD_TOKEN))
        if scope is Scope.INGEST:
            assert answer.json()["name"] == "upload_token"
        else:
            assert answer.status_code == 403


def test_this_machine_is_local_where_no_token_is_configured(empty: ApiServices) -> None:
    client = client_of(probing(empty))
    assert client.get("/probe/admin").json() == {"kind": "local", "name": "local", "address": "127.0.0.1"}
    token_for(empty, "gateway", Scope.INGEST)  # a token for another machine locks nobody out of this one
    assert client.get("/probe/read").json()["name"] == "local"
    assert client.get("/probe/anyone").json() == {"kind": "anonymous", "name": "", "address": "127.0.0.1"}


def test_before_a_rule_let_it_in_a_request_is_nobody_s(empty: ApiServices) -> None:
    request = Request({"type": "http", "client": ("192.0.2.9", 1), "headers": []})
    assert actor_of(request) == Actor(ActorKind.ANONYMOUS, "", "192.0.2.9")


def test_a_refusal_is_logged_with_its_reason_and_without_the_token(
    empty: ApiServices, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a-guess-that-is-long-enough"
    with caplog.at_level(logging.WARNING, "heimdallr_ray"):
        client_of(probing(empty), peer=STRANGER).get("/probe/ingest", headers=bearer(secret))
    (record,) = [record for record in caplog.records if record.getMessage() == "request.refused"]
    facts = {name: getattr(record, name) for name in ("code", "reason", "status", "route", "address")}
    assert facts == {
        "code": "unauthorized",
        "reason": "this token is not known here",
        "status": 401,
        "route": "/probe/ingest",
        "address": STRANGER[0],
    }
    assert secret not in str(record.__dict__)


def test_tokens_are_no_text_of_the_database_file(empty: ApiServices, client: TestClient) -> None:
    token = token_for(empty, "gateway", Scope.READ)
    empty.database.close()
    for file in empty.settings.data_dir.glob("catalog.sqlite*"):
        assert token.encode() not in file.read_bytes()
