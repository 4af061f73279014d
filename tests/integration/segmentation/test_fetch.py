"""A download against a real server that cuts, changes, lies and dawdles: whole and right, or a typed end."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from heimdallr_ray.errors import BadArchive, DownloadFailed, LicenceRequired, StorageFull, TooLarge
from heimdallr_ray.segmentation import fetch
from heimdallr_ray.segmentation.fetch import Bounds, Downloaded, Request, download
from heimdallr_ray.segmentation.partial import Part
from tests.support.file_server import Behaviour, serving_file

QUICK = Bounds(connect_s=20, silence_s=20, window_s=30, idle_attempts=3, pause_s=0.001, max_pause_s=0.002)


def zip_like(seed: int, size: int = 300_000) -> bytes:
    return b"PK\x03\x04" + random.Random(seed).randbytes(size)


@pytest.fixture
def told() -> Behaviour:
    return Behaviour(content=zip_like(1))


@pytest.fixture
def base(told: Behaviour, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving_file(told) as url:
        yield url


def get(base: str, folder: Path, bounds: Bounds = QUICK, path: str = "/model.zip") -> Downloaded:
    return download(Request(base + path), folder / "model.zip", bounds=bounds, sleep=lambda _: None)


def ranges(told: Behaviour) -> list[str]:
    return [headers.get("Range", "") for _, _, headers, _ in told.seen]


def assert_whole(got: Downloaded, content: bytes, folder: Path) -> None:
    assert got.path.read_bytes() == content
    assert (got.sha256, got.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [path.name for path in folder.iterdir()] == ["model.zip"]


@pytest.mark.parametrize("chunked", [False, True])
def test_an_unbroken_download_is_whole_and_counted(told: Behaviour, base: str, tmp_path: Path, chunked: bool) -> None:
    told.chunked = chunked
    steps: list[tuple[int, int | None]] = []
    got = download(
        Request(f"{base}/model.zip"), tmp_path / "model.zip", bounds=QUICK, progress=lambda *at: steps.append(at)
    )
    assert_whole(got, told.content, tmp_path)
    assert steps[-1] == (len(told.content), None if chunked else len(told.content))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_server_that_cuts_is_asked_for_the_rest_only(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.cut_after = 70_000
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert ranges(told) == ["", *(f"bytes={70_000 * n}-" for n in range(1, 5))]
    assert all(headers["If-Range"] == told.etag for _, _, headers, _ in told.seen[1:])
    assert told.sent == len(told.content)


def test_a_server_without_ranges_sends_it_anew(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.ranges, told.cut_after = False, 70_000
    told.after_answer = lambda server: setattr(server, "cut_after", None)
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert len(told.seen) == 2


def test_a_later_run_goes_on_where_an_earlier_one_was_given_up(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.cut_after = 100_000
    told.after_answer = lambda server: server.statuses.extend([503] * 9)
    with pytest.raises(DownloadFailed, match="answers 503"):
        get(base, tmp_path)
    assert (tmp_path / "model.zip.part").stat().st_size == 100_000
    assert not (tmp_path / "model.zip").exists()
    told.statuses.clear()
    told.after_answer = told.cut_after = None
    told.seen.clear()
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert ranges(told) == ["bytes=100000-"]


@pytest.mark.parametrize("note", ["[" * 60_000, "{", "[]", '{"address": 1}'], ids=["deep", "half", "list", "other"])
def test_a_part_whose_note_is_damaged_begins_anew(told: Behaviour, base: str, tmp_path: Path, note: str) -> None:
    (tmp_path / "model.zip.part").write_bytes(told.content[:1000])
    (tmp_path / "model.zip.part.json").write_text(note)
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert ranges(told) == [""]


def test_a_part_of_another_address_is_not_continued(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.cut_after = 100_000
    told.after_answer = lambda server: server.statuses.extend([503] * 9)
    with pytest.raises(DownloadFailed):
        get(base, tmp_path, path="/old.zip")
    told.statuses.clear()
    told.after_answer = told.cut_after = None
    told.seen.clear()
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert ranges(told) == [""]


@pytest.mark.parametrize("honest", [True, False], ids=["heeds If-Range", "ignores If-Range"])
def test_content_that_changes_meanwhile_is_never_mixed(
    told: Behaviour, base: str, tmp_path: Path, honest: bool
) -> None:
    told.cut_after, told.if_range = 70_000, honest
    new = zip_like(2, 250_000)

    def change(server: Behaviour) -> None:
        server.content, server.cut_after = new, None

    told.after_answer = change
    assert_whole(get(base, tmp_path), new, tmp_path)


def test_killed_before_the_first_byte_of_new_content_nothing_of_the_old_is_mixed_into_it(
    told: Behaviour, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.cut_after = 100_000
    told.after_answer = lambda server: server.statuses.extend([503] * 9)
    with pytest.raises(DownloadFailed):
        get(base, tmp_path)
    told.statuses.clear()
    told.after_answer = told.cut_after = None
    told.content = zip_like(2, 250_000)
    begin = Part.begin

    def killed(part: Part, validator: str, total: int | None) -> None:
        begin(part, validator, total)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Part, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            get(base, tmp_path)
    assert_whole(get(base, tmp_path), told.content, tmp_path)


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("1234", 1234), ("", None), ("-1", None), ("1e3", None), ("9" * 5000, None)]
)
def test_a_number_of_bytes_is_one_that_a_file_can_have(text: str, count: int | None) -> None:
    response = httpx.Response(206, headers={"Content-Range": f"bytes {text}-9/{text}"})
    assert fetch._content_range(response) == ((-1, None) if count is None else (count, count))


def test_content_that_became_shorter_begins_anew(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.cut_after, told.if_range, told.tag = 200_000, False, '"always the same"'
    new = zip_like(3, 1000)

    def shrink(server: Behaviour) -> None:
        server.content, server.cut_after = new, None

    told.after_answer = shrink
    assert_whole(get(base, tmp_path), new, tmp_path)


def test_a_server_that_names_nothing_is_not_continued(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.tag, told.cut_after = "", 70_000
    told.after_answer = lambda server: setattr(server, "cut_after", None)
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert ranges(told) == ["", ""]


@pytest.mark.parametrize("content", [b"<html>log in first</html>", b"PK\x05\x06" + bytes(18), b"", b"P"])
def test_garbage_is_refused_at_its_first_bytes(told: Behaviour, base: str, tmp_path: Path, content: bytes) -> None:
    told.content = content
    with pytest.raises(BadArchive):
        get(base, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(told.seen) == 1


def test_a_slow_server_is_given_up_by_its_rate(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.trickle = (50, 0.05)
    began = time.monotonic()
    with pytest.raises(DownloadFailed, match=r"bytes in 0 s"):
        get(base, tmp_path, replace(QUICK, window_s=0.3, min_window_bytes=5_000, attempts=3))
    assert time.monotonic() - began < 60


def test_a_silent_server_is_given_up(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.trickle = (1000, 5.0)
    began = time.monotonic()
    with pytest.raises(DownloadFailed):
        get(base, tmp_path, replace(QUICK, silence_s=0.2, attempts=3))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(told: Behaviour, base: str, tmp_path: Path, status: int) -> None:
    told.statuses = [status] * 5
    with pytest.raises(DownloadFailed, match=f"answers {status} for /model.zip"):
        get(base, tmp_path)
    assert len(told.seen) == 1


def test_a_server_that_is_busy_is_asked_again(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.statuses = [503, 429]
    assert_whole(get(base, tmp_path), told.content, tmp_path)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="tried 3 times"):
        get("http://127.0.0.1:1", tmp_path)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "unannounced"])
def test_more_than_allowed_is_refused(told: Behaviour, base: str, tmp_path: Path, chunked: bool) -> None:
    told.chunked = chunked
    taken: list[int] = []
    bounds = replace(QUICK, max_bytes=100_000)
    with pytest.raises(TooLarge):
        download(
            Request(f"{base}/model.zip"), tmp_path / "model.zip", bounds=bounds, progress=lambda at, _: taken.append(at)
        )
    assert list(tmp_path.iterdir()) == []
    assert max(taken, default=0) <= (100_000 if chunked else 0)


def test_a_download_ends_in_all(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.trickle = (1000, 0.02)
    with pytest.raises(DownloadFailed, match="not whole after 0 h"):
        get(base, tmp_path, replace(QUICK, total_s=0.2))
    assert (tmp_path / "model.zip.part").stat().st_size > 0
    told.trickle = None
    assert_whole(get(base, tmp_path), told.content, tmp_path)


def test_a_full_disk_is_told_before_a_byte_is_written(
    told: Behaviour, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(StorageFull, match="MiB more are needed"):
        get(base, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_other_scheme_than_https_leaves_this_machine(told: Behaviour, base: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="only https"):
        get("http://mirror.example", tmp_path)
    told.redirect = "http://mirror.example/model.zip"
    with pytest.raises(DownloadFailed, match=r"mirror\.example: only https"):
        get(base, tmp_path)


def test_redirections_are_followed_and_counted(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.redirect = f"{base}/elsewhere.zip"
    told.after_answer = lambda server: setattr(server, "redirect", "")
    assert_whole(get(base, tmp_path), told.content, tmp_path)
    assert [path for _, path, _, _ in told.seen] == ["/model.zip", "/elsewhere.zip"]
    told.redirect, told.after_answer = f"{base}/again.zip", None
    with pytest.raises(DownloadFailed, match="redirections"):
        get(base, tmp_path)


NUMBER = "x" * 9 + "y" * 9


def licensed(base: str, folder: Path) -> Downloaded:
    body = {"license_number": NUMBER, "task": "tissue_types", "version": "2.18.0"}
    return download(Request(f"{base}/download_weights", body), folder / "model.zip", bounds=QUICK, sleep=lambda _: None)


def test_a_licensed_model_is_posted_for_and_not_continued(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.cut_after = 70_000
    told.after_answer = lambda server: setattr(server, "cut_after", None)
    assert_whole(licensed(base, tmp_path), told.content, tmp_path)
    assert [method for method, _, _, _ in told.seen] == ["POST", "POST"]
    assert ranges(told) == ["", ""]
    assert NUMBER.encode() in told.seen[0][3]


def test_a_licence_that_the_server_refuses_is_told_without_its_number(
    told: Behaviour, base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told.on_post = (400, {"status": "invalid_license", "license_number": NUMBER})
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LicenceRequired) as caught:
        licensed(base, tmp_path)
    assert NUMBER not in caught.value.detail and NUMBER not in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_licence_number_does_not_follow_a_redirection(told: Behaviour, base: str, tmp_path: Path) -> None:
    told.redirect = f"{base}/elsewhere"
    with pytest.raises(DownloadFailed, match="answers 302"):
        licensed(base, tmp_path)
    assert len(told.seen) == 1
