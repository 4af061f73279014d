"""`heimdallr models` as a person types it, against a mirror on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from heimdallr_ray.cli import app
from heimdallr_ray.operations import models as work
from heimdallr_ray.segmentation.archives import archive_of
from heimdallr_ray.segmentation.tasks import TASKS
from heimdallr_ray.segmentation.weights import DAMAGED_NAME, MANIFEST_NAME, WORK_FOLDER, verify
from tests.support.file_server import Behaviour, serving_file
from tests.support.weights import model_files, spec_of, write_models, write_zip

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
    # Images will lie beside the models; nobody else is to read there whoever made the folder.
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
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
    told = run("list").output
    assert "not verified here: heimdallr models verify" in told, "of the same size: only hashing tells"
    command = verified.output.partition("-> heimdallr models ")[2].partition(" puts it right")[0]
    assert command == f"fetch {archive_of(298).folder} --into {tmp_path / 'data' / 'weights'}"
    assert run(*shlex.split(command), "--from", base, "--accept-licence").exit_code == 0
    assert run("verify").exit_code == 0


def test_a_changed_model_that_no_import_pinned_is_mended_by_the_command_that_is_named(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    registry = tmp_path / "a place"
    for number in (297, 298):
        write_models(registry, model_files(number))
    (registry / "Dataset999_ours" / "t").mkdir(parents=True)
    ours = registry / "Dataset999_ours" / "t" / "plans.json"
    ours.write_text("{}")
    assert run("manifest", str(registry)).exit_code == 0
    (registry / spec_of(297).checkpoint).write_bytes(b"shorter")
    (registry / spec_of(298).checkpoint).unlink()
    ours.write_text("[]")
    ended = run("verify", "--into", str(registry), "--json")
    told = json.loads(ended.output)
    assert ended.exit_code == 1 and told["code"] == "weights_tampered"
    assert all(name in told["detail"] for name in (spec_of(297).checkpoint, spec_of(298).checkpoint))
    assert "put Dataset999_ours back" in told["mend"] and "models manifest" in told["mend"]
    command = told["mend"].partition("heimdallr models ")[2].partition(" puts it right")[0]
    assert command.endswith("--replace")
    rows = {row["task"]: row for row in json.loads(run("list", "--into", str(registry), "--json").output)["tasks"]}
    assert rows["total_fast"]["state"] == rows["total_fast"]["models"][0]["state"] == "changed"
    assert rows["total"]["state"] == "missing"
    assert "total_fast                   changed" in run("list", "--into", str(registry)).output
    assert run(*shlex.split(command), "--from", mirror[0], "--accept-licence").exit_code == 0
    left = json.loads(run("verify", "--into", str(registry), "--json").output)
    assert "fetch" not in left["mend"].partition("; put")[0].partition("put ")[0] and "Dataset999" in left["detail"]
    ours.write_text("{}")
    assert run("verify", "--into", str(registry)).exit_code == 0


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


def test_a_digest_is_asked_of_what_is_installed_too(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    base, files, told = mirror
    registry = tmp_path / "data" / "weights"
    fetch = ("fetch", "298", "--from", base, "--accept-licence")
    right = hashlib.sha256(files[f"/{archive_of(298).file_name}"]).hexdigest()
    assert run(*fetch).exit_code == 0
    before, asked = (registry / MANIFEST_NAME).read_bytes(), len(told.seen)
    refused = run(*fetch, "--sha256", "0" * 64)
    assert refused.exit_code == 1 and "weights_tampered" in refused.output and right in refused.output
    assert run(*fetch, "--sha256", right).exit_code == 0
    assert ((registry / MANIFEST_NAME).read_bytes(), len(told.seen)) == (before, asked)
    document = json.loads(before)
    for pins in ({}, {archive_of(298).folder: {**document["imported"][archive_of(298).folder], "archive_sha256": ""}}):
        (registry / MANIFEST_NAME).write_text(json.dumps({**document, "imported": pins}))
        unknown = run(*fetch, "--sha256", right)
        assert unknown.exit_code == 1 and "did not come from an archive" in unknown.output
    assert run(*fetch, "--sha256", right, "--replace").exit_code == 0


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
    (digest,) = rows["total_fast"]["models"][0]["checkpoints"].values()
    assert rows["total_fast"]["command"] == "" and len(digest) == 64
    assert rows["tissue_types"]["state"] == "missing" and rows["tissue_types"]["licence"] == "site"
    command = f"heimdallr models fetch tissue_types --into {listed['folder']}"
    assert rows["tissue_types"]["command"] == command
    assert "l3_muscle_area" in rows["tissue_types"]["measurements"]
    told = run("list").output
    assert "total_fast " in told and f"-> {command}" in told and digest[:16] in told
    demo = {row["task"]: row for row in json.loads(run("list", "--json", "--profile", "demo").output)["tasks"]}
    assert demo["total_fast"]["state"] == "synthetic"
    assert demo["total"]["command"] == "heimdallr models fetch total", "the package is no registry to fill"


def test_the_command_that_list_names_fills_the_registry_that_was_listed(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour]
) -> None:
    there = tmp_path / "an other place"
    listed = json.loads(run("list", "--into", str(there), "--json").output)
    command = next(row["command"] for row in listed["tasks"] if row["task"] == "total_fast")
    words = shlex.split(command)
    assert words[:2] == ["heimdallr", "models"]
    assert run(*words[2:], "--from", mirror[0], "--accept-licence").exit_code == 0
    assert spec_of(297).checkpoint in verify(there).files
    assert not (tmp_path / "data").exists()
    told = json.loads(run("verify", "--into", str(there), "--json").output)
    assert told == {"folder": str(there), "profile": "site", "ok": True, "files": 6, "synthetic": False}
    assert str(there) in run("verify", "--into", str(there)).output
    (there / spec_of(297).checkpoint).write_bytes(b"changed")
    ended = run("verify", "--into", str(there), "--json")
    told = json.loads(ended.output)
    assert ended.exit_code == 1 and (told["ok"], told["code"]) == (False, "weights_tampered")
    assert "--into" in told["mend"] and str(there) in told["mend"]
    assert run("verify", "--json").exit_code == 1, "there is nothing in the registry of the settings"


def test_verify_names_every_model_that_cannot_be_built(tmp_path: Path, run: Run) -> None:
    registry = tmp_path / "data" / "weights"
    for number in (297, 298):
        write_models(registry, model_files(number))
    write_models(registry, model_files(343, plans={"a": 1}))
    write_models(registry, model_files(305, labels={1: "one label of two"}))
    assert run("manifest", str(registry)).exit_code == 0 and run("verify").exit_code == 0
    ended = run("verify", "--build")
    assert ended.exit_code == 1 and "Dataset343" in ended.output and "Dataset305" in ended.output
    assert "Dataset297" not in ended.output
    for number in (343, 305):
        shutil.rmtree(registry / spec_of(number).dataset_folder)
    assert run("manifest", str(registry)).exit_code == 0 and run("verify", "--build").exit_code == 0


@pytest.mark.parametrize("damage", ["half", "deep", "list", "another form", "a path outside", "pins"])
def test_a_damaged_manifest_is_mended_by_the_command_that_is_named(
    tmp_path: Path, run: Run, mirror: tuple[str, dict[str, bytes], Behaviour], damage: str
) -> None:
    fetch = ("fetch", "298", "--from", mirror[0], "--accept-licence")
    assert run(*fetch).exit_code == 0
    manifest = tmp_path / "data" / "weights" / MANIFEST_NAME
    whole = json.loads(manifest.read_text())
    content = {
        "half": manifest.read_text()[:100],
        "deep": "[" * 100_000,
        "list": "[]",
        "another form": "{}",
        "a path outside": json.dumps({**whole, "files": {"../a": {}}}),
        "pins": json.dumps({**whole, "imported": {"Dataset298": 1}}),
    }[damage]
    manifest.write_text(content)
    refused = run(*fetch)
    assert refused.exit_code == 1 and "models manifest FOLDER" in refused.output
    if damage != "pins":
        ended = run("verify", "--json")
        assert ended.exit_code == 1
        command = json.loads(ended.output)["mend"].partition("heimdallr models ")[2].partition(";")[0]
    else:
        command = f"manifest {manifest.parent}"
    mended = run(*shlex.split(command))
    assert mended.exit_code == 0 and DAMAGED_NAME in mended.output
    assert (manifest.parent / DAMAGED_NAME).read_text() == content
    assert run("verify").exit_code == 0 and run(*fetch).exit_code == 0
    assert set(verify(manifest.parent).files) == set(whole["files"])


def test_licence_tells_what_each_task_needs_and_whether_there_is_one(run: Run) -> None:
    without, with_one = (json.loads(run("licence", "--json", licence=number).output) for number in ("", NUMBER))
    assert (without["licence_set"], with_one["licence_set"]) == (False, True)
    for document, may in ((without, False), (with_one, True)):
        rows = {row["task"]: row for row in document["tasks"]}
        assert rows["tissue_types"] == {
            "task": "tissue_types", "terms": ["TotalSegmentator licence"], "needs_licence": True,
            "non_commercial": False, "may_run": may
        }  # fmt: skip
        assert rows["cerebral_bleed"]["may_run"] and rows["cerebral_bleed"]["terms"] == ["Apache-2.0"]
    assert "A licence number is not set." in run("licence").output


def test_weights_that_allow_no_commercial_use_are_not_called_open(run: Run) -> None:
    rows = {row["task"]: row for row in json.loads(run("licence", "--json").output)["tasks"]}
    assert [name for name, row in rows.items() if row["non_commercial"]] == ["brain_aneurysm"]
    said = run("licence").output
    (line,) = [line for line in said.splitlines() if line.startswith("brain_aneurysm ")]
    assert line.endswith("may run, non-commercial use only") and "CC BY-NC 4.0: the authors" in said
    listed = {row["task"]: row for row in json.loads(run("list", "--json").output)["tasks"]}
    assert [name for name, row in listed.items() if row["licence"] == "non-commercial"] == ["brain_aneurysm"]
    (line,) = [line for line in run("list").output.splitlines() if line.startswith("brain_aneurysm ")]
    assert line.endswith("non-commercial")


def test_the_demos_weights_are_not_a_registry_to_change(run: Run, tmp_path: Path) -> None:
    refused = run("fetch", "total_fast", "--profile", "demo", "--accept-licence")
    assert refused.exit_code == 1 and "--into" in refused.output


def test_import_says_what_is_still_missing(run: Run, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / archive_of(298).file_name, model_files(298))
    done = run("import", str(archive), "--accept-licence", "--into", str(tmp_path / "there"))
    assert done.exit_code == 0, done.output
    command = f"heimdallr models fetch total_fast --into {tmp_path / 'there'}"
    assert f"the measurements of this site need total_fast too: {command}" in done.output
    assert run("list", "--into", str(tmp_path / "there")).exit_code == 0


def test_what_lies_beside_the_archives_of_a_folder_is_named_and_passed_over(run: Run, tmp_path: Path) -> None:
    brought = tmp_path / "brought"
    (brought / "old scans" / "deep").mkdir(parents=True)
    (brought / "old scans" / "deep" / "notes.txt").write_text("nothing of a model")
    (brought / "README.txt").write_text("how these came here")
    alone = run("import", str(brought), "--accept-licence", "--into", str(tmp_path / "none"))
    assert alone.exit_code == 1 and "bad_archive" in alone.output, "nothing at all was imported"
    write_zip(brought / archive_of(298).file_name, model_files(298))
    registry = tmp_path / "there"
    done = run("import", str(brought), "--accept-licence", "--into", str(registry))
    assert done.exit_code == 0, done.output
    assert "passed over, no model of TotalSegmentator in it: README.txt, old scans\n" in done.output
    assert {name.split("/")[0] for name in verify(registry).files} == {spec_of(298).dataset_folder}
    assert [path.name for path in (registry / WORK_FOLDER).iterdir()] == ["lock"]
    write_models(brought / "nested" / "more", model_files(297))
    both = run("import", str(brought), "--accept-licence", "--into", str(registry))
    assert both.exit_code == 0 and "in it: README.txt\n" in both.output
    found = {name.split("/")[0] for name in verify(registry).files}
    assert found == {spec_of(297).dataset_folder, spec_of(298).dataset_folder}


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EACCES, "storage_failed", "Permission denied"),
        (errno.EIO, "storage_failed", "Input/output error"),
        (errno.ENOSPC, "storage_full", "No space left on device"),
    ],
)
@pytest.mark.parametrize("where", ["the folder", "the archive", "the staging folder"])
def test_a_file_system_that_fails_ends_an_import_by_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, code: str, said: str
) -> None:
    brought = tmp_path / "brought"
    brought.mkdir()
    archive = write_zip(brought / archive_of(298).file_name, model_files(298))
    failing = {"the folder": brought, "the archive": archive, "the staging folder": tmp_path / "there" / WORK_FOLDER}

    def failed(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(failing[where]))

    if where == "the folder":
        monkeypatch.setattr(Path, "iterdir", failed)
    elif where == "the archive":
        monkeypatch.setattr(work, "digest_of", failed)
    else:
        monkeypatch.setattr(work.OpenRegistry, "install", lambda *_, **__: monkeypatch.setattr(Path, "mkdir", failed))
    ended = run("import", str(brought), "--accept-licence", "--into", str(tmp_path / "there"))
    assert isinstance(ended.exception, SystemExit) and ended.exit_code == 1
    assert code in ended.output and said in ended.output
    named = {"the folder": "brought", "the archive": archive.name, "the staging folder": "staging"}[where]
    assert f"{named}: {said}" in ended.output


def test_a_fetch_without_a_network_tells_of_every_attempt_and_of_other_ways(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heimdallr_ray.cli_models.time.sleep", lambda _seconds: None)
    ended = run("fetch", "298", "--from", "http://127.0.0.1:9", "--accept-licence")
    assert ended.exit_code == 1 and "download_failed" in ended.output
    for attempt in range(1, 6):
        assert f"connecting to 127.0.0.1, attempt {attempt} of 5" in ended.output
    assert "again in 2 s" in ended.output
    assert all(way in ended.output for way in ("HTTPS_PROXY", "--from https://", "heimdallr models import FILE.zip"))
