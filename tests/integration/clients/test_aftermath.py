"""What is told after a send or an upload is what the server says of it: its sources' rules, what it knew before."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from heimdallr_ray import cli
from heimdallr_ray.clients import upload
from heimdallr_ray.clients.aftermath import Server, Tally
from heimdallr_ray.clients.send import send_folder
from heimdallr_ray.sources import SourceRule
from tests.support.intake import Intake, ct_slice, file_bytes, write_study
from tests.support.server import serving_intake

TOKEN = "a token for this test only"
UID = "1.2.826.0.1.3680043.9.9.1"
SLOW = SourceRule(name="SLOW", calling_aes=("SLOW",), idle_seconds=900, settle_after_release_seconds=90)


@contextlib.contextmanager
def installed(intake: Intake) -> Generator[tuple[int, str]]:
    """Port of the listener and base URL of the HTTP door."""
    with intake.listening() as service, serving_intake(intake) as base:
        yield service.scp.port, base


def test_the_rule_of_the_source_counts_and_what_was_known_is_told(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", api_token=TOKEN, idle_seconds=20, sources=(SLOW,))
    with installed(intake) as (port, base):
        server = Server(f"{base}/", TOKEN, timeout_s=60.0)
        assert server.tally() == Tally()
        for calling, wait_s, known in (("OTHER", 15, 0), ("SLOW", 90, 0), ("SLOW", 90, 2)):
            study_uid = f"{UID}.{wait_s}"
            write_study(tmp_path / calling, 3 if known else 2, study_uid)
            before = server.tally()
            report = send_folder(tmp_path / calling, "127.0.0.1", port, "HEIMDALLR", calling)
            assert server.known_of(before, report.sent, patience_s=30) == known
            (fate,) = server.fates(report.study_uids, patience_s=30)
            assert fate.study_uid == study_uid and fate.state in ("receiving", "settling")
            assert fate.closes_in_s is not None and wait_s - 10 < fate.closes_in_s <= wait_s
            assert f"{wait_s} s without an image" in fate.reason
        # Somebody else sends meanwhile: whose the known ones were is not told.
        before = server.tally()
        for _ in range(2):
            assert send_folder(tmp_path / "SLOW", "127.0.0.1", port, "HEIMDALLR", "SLOW").sent == 3
        assert server.known_of(before, 6, patience_s=30) == 6
        assert server.known_of(before, 5, patience_s=0) is None


@pytest.mark.parametrize("base", [None, "http://127.0.0.1:9", "http://["])
def test_nothing_is_told_where_nobody_answers(base: str | None) -> None:
    server = Server(base)
    assert (server.tally(), server.fates([UID]), server.known_of(None, 3)) == (None, (), None)
    assert server.known_of(Tally(), 3) is None


def test_nothing_is_told_to_who_has_no_token(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", api_token=TOKEN)
    with serving_intake(intake) as base:
        server = Server(base, timeout_s=60.0)
        assert (server.tally(), server.fates([UID])) == (None, ())


def _environment(root: Path, **more: str) -> dict[str, str]:
    return {"HEIMDALLR_DATA_DIR": str(root), "HEIMDALLR_PROFILE": "demo", **more}


def test_an_upload_of_what_is_there_stores_nothing_and_says_so(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", idle_seconds=600, settle_after_release_seconds=600)
    write_study(tmp_path / "study", 3)
    words = ["upload", str(tmp_path / "study")]
    with installed(intake) as (_, base):
        said = [
            CliRunner().invoke(cli.app, [*words, "--url", base], env=_environment(tmp_path / "client"))
            for _ in range(2)
        ]
    assert [one.exit_code for one in said] == [0, 0]
    first, again = (one.output for one in said)
    assert first.startswith("stored   3 images of 1 study")
    assert re.search(r"analysis starts in (5[6-9]|60)\d s if nothing more comes: 10 minutes without an image", first)
    assert again.startswith("known    3 images, there before: nothing new\nstudy    ")
    assert "stored" not in again and "10 minutes without an image" in again


def test_an_upload_under_a_known_uid_says_that_both_are_kept(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", idle_seconds=600, settle_after_release_seconds=600)
    [first, *_] = write_study(tmp_path / "study", 3)
    with installed(intake) as (_, base):
        words = ["--url", base]
        CliRunner().invoke(cli.app, ["upload", str(tmp_path / "study"), *words], env=_environment(tmp_path / "client"))
        (tmp_path / "cut.dcm").write_bytes(first.read_bytes()[:-40])
        said = CliRunner().invoke(
            cli.app, ["upload", str(tmp_path / "cut.dcm"), *words], env=_environment(tmp_path / "client")
        )
    assert said.exit_code == 0
    told = f"conflict 1 SOP Instance UID with images of different bytes in study {UID}: all are kept, see its page"
    assert told in said.output


def test_images_without_a_study_that_are_known_are_told_as_what_they_are(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "data", idle_seconds=600, settle_after_release_seconds=600)
    (tmp_path / "study").mkdir()
    for index in range(1, 4):
        unnamed = ct_slice(index, "", f"{UID}.7")
        (tmp_path / "study" / f"{index}.dcm").write_bytes(file_bytes(unnamed))
    with installed(intake) as (_, base):
        words = ["upload", str(tmp_path / "study"), "--url", base]
        first, again = (
            CliRunner().invoke(cli.app, words, env=_environment(tmp_path / "client")).output for _ in range(2)
        )
    assert first.startswith("stored   3 images of 1 study")
    assert again.splitlines() == [
        "known    3 images, there before: nothing new",
        "study    3 images without a StudyInstanceUID; the server gave them one",
        f"page     {base}/ is the worklist; the study is there under its patient",
    ]


def test_ctrl_c_tells_what_is_left_and_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = Intake(tmp_path / "data")
    write_study(tmp_path / "study", 11)
    monkeypatch.setattr(upload, "BATCH_OBJECTS", 4)
    post, requests = httpx.Client.post, []

    def pressed(client: httpx.Client, url: str, **how: object) -> httpx.Response:
        requests.append(url)
        if len(requests) == 3:
            raise KeyboardInterrupt
        return post(client, url, **how)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(httpx.Client, "post", pressed)
    with serving_intake(intake) as base:
        words = ["upload", str(tmp_path / "study"), "--url", base]
        stopped = CliRunner().invoke(cli.app, words, env=_environment(tmp_path / "client"))
        assert stopped.exit_code == 130
        assert "stopped: 4 of 11 images confirmed; one request of 4 images was on its way" in stopped.output
        assert "may have been stored; the same command goes on from there." in stopped.output
        goes_on = CliRunner().invoke(cli.app, words, env=_environment(tmp_path / "client"))
    assert goes_on.exit_code == 0
    assert goes_on.output.startswith("stored   7 new images of 1 study")
    assert "known    4 images were there before" in goes_on.output
    assert len(intake.instances()) == 11


@pytest.mark.parametrize("asked", ["known_of", "fates"])
def test_ctrl_c_while_the_server_is_asked_keeps_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    intake = Intake(tmp_path / "data")
    write_study(tmp_path / "study", 3)
    with installed(intake) as (port, base):
        environment = _environment(tmp_path / "client", HEIMDALLR_DICOM_PORT=str(port))
        monkeypatch.setattr(Server, asked, pressed)
        done = CliRunner().invoke(cli.app, ["send", str(tmp_path / "study")], env=environment)
        assert done.exit_code == 130
        assert "sent     3 images" in done.output and f"study    {UID}" in done.output
        if asked == "fates":
            words = ["upload", str(tmp_path / "study"), "--url", base]
            done = CliRunner().invoke(cli.app, words, env=environment)
            assert done.exit_code == 130
            assert "known    3 images, there before" in done.output and f"study    {UID}" in done.output
