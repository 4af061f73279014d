from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.api.pages import list_files, media_type_of


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
