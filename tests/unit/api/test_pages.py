from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from heimdallr_ray.api import failures
from heimdallr_ray.api.pages import build_router, list_files, media_type_of, unknown_page, wants_page


def test_only_regular_files_under_the_folder_are_listed(tmp_path: Path):
    site, outside = tmp_path / "site", tmp_path / "secret"
    (site / "assets").mkdir(parents=True)
    outside.write_text("secret")
    (site / "index.html").write_text("x")
    (site / "assets" / "a.js").write_text("x")
    (site / "link").symlink_to(outside)
    (site / ".env").write_text("secret")
    assert sorted(list_files(site)) == ["assets/a.js", "index.html"]


def test_no_folder_no_files(tmp_path: Path):
    assert list_files(None) == {}
    assert list_files(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("assets/a-1.js", "text/javascript"),
        ("a.css", "text/css"),
        ("x.wasm", "application/wasm"),
        ("x", "application/octet-stream"),
    ],
)
def test_types_do_not_depend_on_the_machine(name: str, media_type: str):
    assert media_type_of(name) == media_type


def test_unbuilt_pages_name_a_target_that_the_makefile_has():
    app = FastAPI()
    failures.install(app)
    app.include_router(build_router(None))
    answer = TestClient(app).get("/")
    found = re.search(r"run `make ([a-z-]+)`", answer.json()["error"]["detail"])
    assert answer.status_code == 503
    assert found is not None
    makefile = (Path(__file__).parents[3] / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{found[1]}:", makefile, re.MULTILINE)


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("method", "path", "accept", "wanted"),
    [
        ("GET", "/nosuch", BROWSER, True),
        ("HEAD", "/apiary", BROWSER, True),
        ("GET", "/api/v1/nosuch", BROWSER, False),
        ("GET", "/api", BROWSER, False),
        ("GET", "/nosuch", "*/*", False),
        ("GET", "/nosuch", "", False),
        ("POST", "/nosuch", BROWSER, False),
    ],
)
def test_only_a_browser_outside_the_api_wants_a_page(method: str, path: str, accept: str, wanted: bool):
    assert wants_page(method, path, accept) is wanted


def test_a_browser_at_an_unknown_address_gets_a_page_and_a_program_gets_json(tmp_path: Path):
    (tmp_path / "index.html").write_text("<!doctype html>app")
    app = FastAPI()
    failures.install(app, unknown_page(tmp_path))
    app.include_router(build_router(tmp_path))
    client = TestClient(app)
    for path in ("/nosuch", "/a/b", "/studies/no-uid", "/docs/nosuch", "/assets/nosuch.js"):
        answer = client.get(path, headers={"Accept": BROWSER})
        assert (answer.status_code, answer.text) == (404, "<!doctype html>app")
        assert answer.headers["content-type"].startswith("text/html")
    assert client.get("/studies/1.2.3", headers={"Accept": BROWSER}).status_code == 200
    for path, accept in (("/nosuch", "*/*"), ("/api/v1/nosuch", BROWSER), ("/assets/nosuch.js", "*/*")):
        answer = client.get(path, headers={"Accept": accept})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_without_built_pages_a_browser_gets_json_too():
    app = FastAPI()
    failures.install(app, unknown_page(None))
    assert TestClient(app).get("/nosuch", headers={"Accept": BROWSER}).json()["error"]["code"] == "not_found"
