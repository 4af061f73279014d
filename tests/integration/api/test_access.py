"""Every route names who may call it, and the rule holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from heimdallr_ray.api.access import ACCESS_RULES, anyone, operator, reader, uploader
from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.config import load
from tests.integration.api.conftest import TOKEN, UPLOAD_TOKEN, bearer, client_of
from tests.support.related import TYPE, related
from tests.support.seeded import ABDOMEN_UID

STUDY = f"/api/v1/studies/{ABDOMEN_UID}"
GUARDED = [
    "/api/v1/studies",
    STUDY,
    f"{STUDY}/results",
    f"{STUDY}/artifacts/results.json",
    "/api/v1/events",
    "/api/v1/status",
]
OPEN_TO_ALL = {
    "/",
    "/studies",
    "/studies/{study_uid}",
    "/docs",
    "/docs/{name}",
    "/assets/{name:path}",
    "/favicon.svg",
    "/openapi.json",
    "/api/v1/health",
    "/api/v1/ready",
    "/api/v1/reasons",
}
CHANGES = ("/retry", "/series", "/complete")
INTAKE = {
    "/upload",
    "/api/v1/upload",
    "/api/v1/instances/known",
    "/dicomweb/studies",
    "/dicomweb/studies/{study_uid}",
}
FORWARDING = [
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Real-IP",
    "Via",
]
ZIP = {"file": ("study.zip", b"PK", "application/zip")}


def with_settings(seeded: ApiServices, **settings: Any) -> TestClient:
    configured = load(
        {}, None, **{"data_dir": seeded.settings.data_dir, "profile": "demo", "min_free_mib": 0, **settings}
    )
    return client_of(create_app(replace(seeded, settings=configured)))


def test_every_route_names_exactly_one_access_rule(seeded: ApiServices):
    rules: dict[str, list[Any]] = {}
    for route in iter_route_contexts(create_app(seeded).routes):
        called = [dependency.call for dependency in route.dependant.dependencies]  # codespell:ignore dependant
        rules[str(route.path)] = [call for call in called if call in ACCESS_RULES]
    assert len(rules) >= 18
    assert [path for path, named in rules.items() if len(named) != 1] == []
    assert {path for path, named in rules.items() if named == [anyone]} == OPEN_TO_ALL
    assert {path for path, named in rules.items() if named == [uploader]} == INTAKE
    changing = {path for path in rules if path.startswith("/api/v1/studies/") and path.endswith(CHANGES)}
    assert {path for path, named in rules.items() if named == [operator]} == changing
    studies = {path for path in rules if path.startswith("/api/v1/studies")}
    assert all(rules[path] == [reader] for path in studies - changing)


@pytest.mark.parametrize("path", [path for path in GUARDED if path != "/api/v1/events"])
def test_on_loopback_without_a_token_this_machine_may_read(client: TestClient, path: str):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", [*GUARDED, "/api/v1/intake", "/metrics"])
def test_who_presents_a_token_is_judged_by_it_also_on_loopback(client: TestClient, path: str):
    for wrong in ("no-token-of-ours", "x" * 2000):
        answer = client.get(path, headers=bearer(wrong))
        assert (answer.status_code, answer.json()["error"]["detail"]) == (401, "this token is not known here")


def test_a_wrong_token_opens_no_door_of_this_machine(client: TestClient):
    wrong = [bearer("no-token-of-ours"), {"X-Upload-Token": "no-token-of-ours"}]
    for path in ("/upload", "/api/v1/upload"):
        for headers in wrong:
            assert client.post(path, files=ZIP, headers=headers).status_code == 401
    for headers in wrong:
        answer = client.post("/api/v1/instances/known", json={"instances": []}, headers=headers)
        assert answer.status_code == 401


@pytest.mark.parametrize("path", GUARDED)
def test_another_machine_may_not_although_no_token_is_set(seeded: ApiServices, path: str):
    stranger = client_of(create_app(seeded), peer=("192.0.2.9", 4000))
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert stranger.post("/upload", files=ZIP).status_code == 401


@pytest.mark.parametrize("name", FORWARDING)
def test_what_a_proxy_on_this_machine_passes_on_is_from_elsewhere(seeded: ApiServices, name: str):
    local = client_of(create_app(seeded))
    # Also a proxy that says the request began here: it repeats what its own client told it.
    for value in ("203.0.113.9", "127.0.0.1", ""):
        passed_on = {name: value}
        for path in [*GUARDED, "/api/v1/intake", "/metrics"]:
            answer = local.get(path, headers=passed_on)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
        for path in ("/upload", "/api/v1/upload"):
            assert local.post(path, files=ZIP, headers=passed_on).status_code == 401
        objects = {"Content-Type": TYPE, **passed_on}
        assert local.post("/dicomweb/studies", content=related([b"x"]), headers=objects).status_code == 401
        asked = local.post("/api/v1/instances/known", json={"instances": []}, headers=passed_on)
        assert asked.status_code == 401
        for change in CHANGES:
            assert local.post(f"{STUDY}{change}", json={}, headers=passed_on).status_code == 401
        assert local.get("/api/v1/health", headers=passed_on).status_code == 200


@pytest.mark.parametrize("name", FORWARDING)
def test_a_token_opens_through_a_proxy(seeded: ApiServices, name: str):
    client = with_settings(seeded, api_token=TOKEN, upload_token=UPLOAD_TOKEN)
    passed_on = {name: "203.0.113.9"}
    assert client.get("/api/v1/studies", headers=passed_on).status_code == 401
    assert client.get("/api/v1/studies", headers={**passed_on, **bearer(TOKEN)}).status_code == 200
    answer = client.post("/upload", files=ZIP, headers={**passed_on, "X-Upload-Token": UPLOAD_TOKEN})
    assert answer.json()["error"]["code"] == "bad_archive"


@pytest.mark.parametrize("path", GUARDED)
def test_with_an_api_token_everybody_needs_it(seeded: ApiServices, path: str):
    client = with_settings(seeded, api_token=TOKEN, upload_token=UPLOAD_TOKEN)
    refused = client.get(path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    for wrong in ("", TOKEN[:-1]):
        assert client.get(path, headers=bearer(wrong)).status_code == 401
    assert client.get(path, headers=bearer(UPLOAD_TOKEN)).status_code == 403
    assert client.get(path, headers={"X-Upload-Token": TOKEN}).status_code == 401
    if path != "/api/v1/events":  # an endless answer; its rule is the same dependency
        assert client.get(path, headers=bearer(TOKEN)).status_code == 200


def test_pages_and_health_need_no_token(seeded: ApiServices):
    client = with_settings(seeded, api_token=TOKEN)
    assert client.get("/api/v1/health").json() == {"status": "alive"}
    assert client.get("/openapi.json").status_code == 200
    ready = client.get("/api/v1/ready")
    assert ready.status_code in (200, 503)
    assert "DEMO" not in ready.text


@pytest.mark.parametrize("path", ["/upload", "/api/v1/upload"])
def test_uploads_take_either_token_by_either_header(seeded: ApiServices, path: str):
    client = with_settings(seeded, api_token=TOKEN, upload_token=UPLOAD_TOKEN)
    assert client.post(path, files=ZIP).status_code == 401
    assert client.post(path, files=ZIP, headers=bearer("wrong-wrong-wrong-wrong")).status_code == 401
    for headers in (bearer(TOKEN), bearer(UPLOAD_TOKEN), {"X-Upload-Token": UPLOAD_TOKEN}):
        assert client.post(path, files=ZIP, headers=headers).json()["error"]["code"] == "bad_archive"


def test_an_upload_token_alone_guards_uploads_only(seeded: ApiServices):
    client = with_settings(seeded, upload_token=UPLOAD_TOKEN)
    assert client.post("/upload", files=ZIP).status_code == 401
    assert client.post("/upload", files=ZIP, headers=bearer(UPLOAD_TOKEN)).json()["error"]["code"] == "bad_archive"
    assert client.get("/api/v1/studies").status_code == 200


def test_a_rebound_name_gets_nothing(client: TestClient):
    for path in ("/", "/api/v1/studies", "/api/v1/health"):
        answer = client.get(path, headers={"Host": "evil.example:8001"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "forbidden"


def test_a_foreign_page_cannot_upload(client: TestClient):
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = client.post("/api/v1/upload", files=ZIP, headers=headers)
        assert answer.status_code == 403
    own = {"Origin": "http://localhost:8001", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/v1/upload", files=ZIP, headers=own).json()["error"]["code"] == "bad_archive"


def test_every_answer_carries_the_security_headers(client: TestClient, tmp_path: Path):
    for path in ("/", "/api/v1/studies", f"{STUDY}/artifacts/results.json", "/nowhere", "/openapi.json"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe-inline" not in policy
        assert "http:" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert client.get("/api/v1/studies").headers["cache-control"] == "no-store"
