from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from heimdallr_ray.api import failures
from heimdallr_ray.api.pages import build_router, list_files, media_type_of


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
