"""Reports in words: what was left out and why, where the study is to be seen, long lists cut and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.clients import wording
from heimdallr_ray.clients.dimse import Refusal
from heimdallr_ray.clients.files import MAX_NAMED, SkippedFile
from heimdallr_ray.clients.send import FileStatus, SendReport, reason_of
from heimdallr_ray.clients.upload import UploadReport
from heimdallr_ray.config import load

HERE = "http://127.0.0.1:8001"


def test_a_send_names_study_page_and_what_was_left_out() -> None:
    files = (FileStatus("a.dcm", "1.2.1", 0x0000), FileStatus("b.dcm", "1.2.2", 0xA700, reason_of(0xA700)))
    skipped = (SkippedFile("notes.txt", "not DICOM"),)
    report = SendReport(files, 1, 1, 2_500_000, 1.25, skipped, ("1.2",), without_study_uid=1)
    assert list(wording.of_send(report, HERE)) == [
        "sent     1 of 2 images, 2.5 MB in 1.2 s",
        "failed   1 image",
        "  b.dcm: the peer has no resources (status 0xA700)",
        "skipped  1 file",
        "  notes.txt: not DICOM",
        "study    1.2",
        f"page     {HERE}/studies/1.2",
        "study    1 image without a StudyInstanceUID; the receiver gives one",
    ]


def test_when_analysis_starts_is_told_where_it_is_known_and_something_new_came() -> None:
    files = (FileStatus("a.dcm", "1.2.1", 0x0000),)
    sent = SendReport(files, 0, 1, 2_500_000, 1.25, (), ("1.2",))
    assert list(wording.of_send(sent, None, 30.0)) == [
        "sent     1 image, 2.5 MB in 1.2 s",
        "study    1.2",
        "then     analysis starts 30 s after the last image",
    ]
    again = UploadReport(2, 0, ("1.2",), 900, already_there=2)
    assert list(wording.of_upload(again, None, 2.5)) == [
        "stored   2 images of 1 study, 0.9 kB uploaded",
        "         2 of them were already there",
        "study    1.2",
    ]
    assert list(wording.of_upload(UploadReport(2, 0, ("1.2",), 900, already_there=1), None, 2.5))[-2:] == [
        "study    1.2",
        "then     analysis starts 2.5 s after the last image",
    ]


def test_long_lists_are_cut_and_counted() -> None:
    named = tuple(SkippedFile(f"{index}.txt", "not DICOM") for index in range(MAX_NAMED))
    failures = tuple(FileStatus(f"{index}.dcm", "1.2", 0xC000, reason_of(0xC000)) for index in range(MAX_NAMED + 3))
    uids = tuple(f"1.2.{index}" for index in range(MAX_NAMED + 2))
    lines = list(wording.of_send(SendReport(failures, 1000, 1, 0, 0.0, named, uids), None))
    assert [line for line in lines if line.startswith("  and ")] == ["  and 3 more", "  and 980 more", "  and 2 more"]
    assert len(lines) == 3 + 3 * MAX_NAMED + 3
    assert not any(mark in line for line in lines for mark in "[{")


def test_an_upload_to_a_remote_server_names_the_study_only() -> None:
    report = UploadReport(4, 1, ("1.2",), 900, 2, (SkippedFile("DICOMDIR", "an index"),))
    assert list(wording.of_upload(report, wording.page_base("https://heimdallr.example.org"))) == [
        "stored   4 images of 1 study, 0.9 kB uploaded",
        "skipped  2 files",
        "  DICOMDIR: an index",
        "  and 1 more",
        "study    1.2",
    ]


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [("127.0.0.1", 11112, HERE), ("localhost", 11112, HERE), ("10.1.1.1", 11112, None), ("127.0.0.1", 104, None)],
)
def test_pages_are_named_where_the_listener_is_the_one_of_the_settings(
    host: str, port: int, expected: str | None
) -> None:
    assert wording.local_base(host, port, "127.0.0.1", 11112, f"{HERE}/") == expected


@pytest.mark.parametrize(
    ("status", "words"),
    [(0x0000, ""), (0xB000, ""), (0xA701, "no resources"), (0xC123, "cannot understand"), (0x0110, "refuses")],
)
def test_statuses_have_words(status: int, words: str) -> None:
    reason = reason_of(status)
    assert (reason == "") if not words else (words in reason and f"0x{status:04X}" in reason)


def test_a_listener_that_speaks_tls_only_is_named_where_nobody_answers(tmp_path: Path) -> None:
    refusal = Refusal("no_answer", "closes the connection without an answer", permanent=False)
    plain = load({}, data_dir=tmp_path)
    assert "allowed_addresses" in wording.local_rule(refusal, plain)
    assert "dicom_tls" not in wording.local_rule(refusal, plain)
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "ca")}
    secured = load({}, data_dir=tmp_path, dicom_tls="on", **{f"dicom_tls_{name}": path for name, path in files.items()})
    for word in ("setting dicom_tls", "--tls-ca", "--tls-certificate", "--tls-key", "allowed_addresses"):
        assert word in wording.local_rule(refusal, secured)
