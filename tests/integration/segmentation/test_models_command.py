"""`heimdallr models` as a person types it, against a mirror on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from heimdallr_ray.cli import app
from heimdallr_ray.segmentation.archives import archive_of
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.weights import MANIFEST_NAME, WORK_FOLDER, verify
from tests.support.file_server import Behaviour, serving_file
from tests.support.weights import model_files, spec_of, write_zip

NUMBER = "q" * 9 + "w" * 9
Run = Callable[..., Result]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes], Behaviour]]:
    """The base URL of a mirror, what it has, and how it behaves."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    files: dict[str, bytes] = {}
    for number in (297, 298, 481):
        archive = write_zip(tmp_path / "made.zip", model_files(number))
        files[f"/{archive_of(number).file_name}"] = archive.read_bytes()
    told = Behaviour(files=files)
    with serving_file(told) as base:
        yield base, files, told


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("HEIMDALLR_PROFILE", "HEIMDALLR_WEIGHTS_DIR", "HEIMDALLR_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*words: str, licence: str = "") -> Result:
        env = {"HEIMDALLR_DATA_DIR": str(tmp_path / "data"), "HEIMDALLR_TOTALSEGMENTATOR_LICENCE": licence}
        return CliRunner().invoke(app, ["models", *words], env=env)

    return invoke


def test_fetch_shows_the_terms_installs_and_is_done_the_second_time(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, files, told = mirror
    registry = tmp_path / "data" / "weights"
    unasked = run("fetch", "total_fast", "--from", base)
    assert unasked.exit_code == 1 and "--accept-licence" in unasked.output and "Apache-2.0" in unasked.output
    assert told.seen == [] and not registry.exists()
    done = run("fetch", "total_fast", "--from", base, "--accept-licence")
    assert done.exit_code == 0, done.output
    assert {name.split("/")[0] for name in verify(registry).files} == {
        spec_of(297).dataset_folder, spec_of(298).dataset_folder
    }  # fmt: skip
    assert f"installed in {registry}" in done.output
    assert [path.name for path in (registry / WORK_FOLDER).iterdir()] == ["lock"]
    pins = json.loads((registry / MANIFEST_NAME).read_text())["imported"]
    for number in (297, 298):
        pin = pins[archive_of(number).folder]
        assert pin["archive_sha256"] == hashlib.sha256(files[f"/{archive_of(number).file_name}"]).hexdigest()
        assert pin["source"] == f"{base}/{archive_of(number).file_name}"
    asked = len(told.seen)
    again = run("fetch", "total_fast", "--from", base, "--accept-licence")
    assert again.exit_code == 0 and "already installed and unchanged" in again.output
    assert len(told.seen) == asked
    assert run("verify").exit_code == 0


def test_a_changed_byte_is_found_and_fetch_mends_it(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, _, _ = mirror
    assert run("fetch", "298", "--from", base, "--accept-licence").exit_code == 0
    file = tmp_path / "data" / "weights" / spec_of(298).checkpoint
    file.write_bytes(file.read_bytes().replace(b"archive", b"archivE", 1))
    verified = run("verify")
    assert verified.exit_code == 1 and "weights_tampered" in verified.output
    assert f"{tmp_path / 'data' / 'weights'} (profile site)" in verified.output
    assert run("fetch", "298", "--from", base, "--accept-licence").exit_code == 0
    assert run("verify").exit_code == 0


def test_what_upstream_changed_is_refused_until_it_is_said(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, files, _ = mirror
    assert run("fetch", "298", "--from", base, "--accept-licence").exit_code == 0
    registry = tmp_path / "data" / "weights"
    before = verify(registry).files
    (registry / spec_of(298).checkpoint).unlink()
    other = write_zip(tmp_path / "other.zip", model_files(298, description="a newer model"))
    files[f"/{archive_of(298).file_name}"] = other.read_bytes()
    refused = run("fetch", "298", "--from", base, "--accept-licence")
    assert refused.exit_code == 1 and "pinned" in refused.output and "--replace" in refused.output
    assert run("fetch", "298", "--from", base, "--accept-licence", "--replace").exit_code == 0
    assert verify(registry).files != before


@pytest.mark.parametrize(
    ("digest", "said"),
    [
        ("0" * 64, "not the one that was given"),
        ("xyz", "64 hexadecimal"),
        (f"Dataset999={'0' * 64}", "FOLDER=HEX"),
    ],
)
def test_a_digest_that_is_not_the_archives(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour], digest: str, said: str
) -> None:
    refused = run("fetch", "298", "--from", mirror[0], "--accept-licence", "--sha256", digest)
    assert refused.exit_code == 1 and said in refused.output
    assert not (tmp_path / "data" / "weights" / MANIFEST_NAME).exists()


def test_digests_of_several_archives(run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]) -> None:
    base, files, _ = mirror
    given = [
        f"--sha256={archive_of(number).folder}={hashlib.sha256(files[f'/{archive_of(number).file_name}']).hexdigest()}"
        for number in (297, 298)
    ]
    assert run("fetch", "total_fast", "--from", base, "--accept-licence", *given).exit_code == 0


def test_an_archive_with_another_model_in_it_is_refused(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, files, _ = mirror
    files[f"/{archive_of(298).file_name}"] = files[f"/{archive_of(297).file_name}"]
    refused = run("fetch", "298", "--from", base, "--accept-licence")
    assert refused.exit_code == 1 and "bad_archive" in refused.output and "Dataset297" in refused.output
    assert not (tmp_path / "data" / "weights" / MANIFEST_NAME).exists()


def test_a_licensed_task_asks_nobody_without_a_licence_and_never_shows_one(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, _, told = mirror
    refused = run("fetch", "tissue_types", "--from", base, "--accept-licence")
    assert refused.exit_code == 1 and "licence_required" in refused.output
    assert "https://backend.totalsegmentator.com/license-academic/" in refused.output
    assert told.seen == []
    done = run("fetch", "tissue_types", "--from", base, "--accept-licence", licence=NUMBER)
    assert done.exit_code == 0, done.output
    outputs = [done, *(run(*words, licence=NUMBER) for words in (["licence"], ["licence", "--json"], ["list"]))]
    assert all(NUMBER not in one.output for one in outputs)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and NUMBER.encode() in p.read_bytes()]
    assert not [headers for _, _, headers, body in told.seen if NUMBER in str(headers) + str(body)]


def test_list_tells_every_task_with_what_it_is_for(run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]) -> None:
    assert run("fetch", "total_fast", "--from", mirror[0], "--accept-licence").exit_code == 0
    listed = json.loads(run("list", "--json").output)
    rows = {row["task"]: row for row in listed["tasks"]}
    assert set(rows) == set(TASKS)
    assert rows["total_fast"]["state"] == "installed" and "liver_volume" in rows["total_fast"]["measurements"]
    assert rows["total_fast"]["command"] == "" and len(rows["total_fast"]["models"][0]["sha256"]) == 64
    assert rows["tissue_types"]["state"] == "missing" and rows["tissue_types"]["licence"] == "site"
    assert rows["tissue_types"]["command"] == "heimdallr models fetch tissue_types"
    assert "l3_muscle_area" in rows["tissue_types"]["measurements"]
    told = run("list").output
    assert "total_fast " in told and "-> heimdallr models fetch tissue_types" in told
    demo = {row["task"]: row["state"] for row in json.loads(run("list", "--json", "--profile", "demo").output)["tasks"]}
    assert demo["total_fast"] == "synthetic"


def test_licence_tells_what_each_task_needs_and_whether_there_is_one(run: Run) -> None:
    without, with_one = (json.loads(run("licence", "--json", licence=number).output) for number in ("", NUMBER))
    assert (without["licence_set"], with_one["licence_set"]) == (False, True)
    for document, may in ((without, False), (with_one, True)):
        rows = {row["task"]: row for row in document["tasks"]}
        assert rows["tissue_types"] == {
            "task": "tissue_types", "terms": ["TotalSegmentator licence"], "needs_licence": True, "may_run": may
        }  # fmt: skip
        assert rows["cerebral_bleed"]["may_run"] and rows["cerebral_bleed"]["terms"] == ["Apache-2.0"]
    assert "A licence number is not set." in run("licence").output


def test_the_demos_weights_are_not_a_registry_to_change(run: Run, tmp_path: Path) -> None:
    refused = run("fetch", "total_fast", "--profile", "demo", "--accept-licence")
    assert refused.exit_code == 1 and "--into" in refused.output


def test_import_says_what_is_still_missing(run: Run, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / archive_of(298).file_name, model_files(298))
    done = run("import", str(archive), "--accept-licence", "--into", str(tmp_path / "there"))
    assert done.exit_code == 0, done.output
    assert (
        f"CT studies need total_fast too: heimdallr models fetch total_fast --into {tmp_path / 'there'}" in done.output
    )
    assert run("list", "--into", str(tmp_path / "there")).exit_code == 0
