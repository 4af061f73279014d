"""Reports in words: what was left out and why, where the study is to be seen, long lists cut and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.clients import wording
from heimdallr_ray.clients.aftermath import Fate
from heimdallr_ray.clients.commit import Commitment, Uncommitted
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
        f"page     {HERE}/ is the worklist; the study is there under its patient",
    ]
    assert list(wording.of_send(report, None))[-1].endswith("the receiver gives one")


def _send(count: int) -> SendReport:
    files = tuple(FileStatus(f"{index}.dcm", f"1.2.{index}", 0x0000) for index in range(count))
    return SendReport(files, 0, 1, 2_500_000, 1.25, (), ("1.2",))


def test_what_was_new_is_told_apart_from_what_was_known() -> None:
    assert list(wording.of_send(_send(3), None, known=0))[1:] == ["study    1.2"]
    assert list(wording.of_send(_send(3), None, known=1))[1] == "known    1 of them was there before, 2 new"
    assert list(wording.of_send(_send(3), None, known=3))[1] == "known    all of them were there before: nothing new"
    assert list(wording.of_upload(UploadReport(3, 0, ("1.2",), 900, already_there=1), None)) == [
        "stored   2 new images of 1 study, 0.9 kB uploaded",
        "known    1 image was there before",
        "study    1.2",
    ]
    assert list(wording.of_upload(UploadReport(3, 0, ("1.2", "1.3"), 0, already_there=3), None)) == [
        "known    3 images, there before: nothing new",
        "study    1.2",
        "study    1.3",
    ]


def test_known_images_that_name_no_study_are_told_without_a_number_of_studies() -> None:
    """What the server gave them it does not say again, so "0 studies" would be wrong, and so would any other number."""
    assert list(wording.of_upload(UploadReport(20, 0, (), 0, already_there=20), HERE)) == [
        "known    20 images, there before: nothing new",
        "study    20 images without a StudyInstanceUID; the server gave them one",
        f"page     {HERE}/ is the worklist; the study is there under its patient",
    ]
    assert list(wording.of_upload(UploadReport(1, 0, (), 0, already_there=1), None)) == [
        "known    1 image, there before: nothing new",
        "study    1 image without a StudyInstanceUID; the server gave it one",
    ]


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        (Fate("1.2", "settling", "5 s without an image", 4.6), "analysis starts in 5 s if nothing more comes: 5 s wi"),
        (Fate("1.2", "settling", "all images are here", 0.0), "analysis starts now if nothing more comes: all images"),
        (Fate("1.2", "receiving"), "not complete yet, its page tells when"),
        (Fate("1.2", "receiving", "an upload is open"), "not complete yet: an upload is open"),
        (Fate("1.2", "queued", "5 s without an image"), "complete, its analysis waits for its turn"),
        (Fate("1.2", "done", "5 s without an image"), "complete, its analysis is done"),
        (Fate("1.2", "failed"), "its analysis has failed, its page tells why"),
        (Fate("1.2", "cancelled"), "it is cancelled"),
        (Fate("1.2", "something newer"), "it is something newer"),
    ],
)
def test_what_becomes_of_a_study_is_what_the_server_says(fate: Fate, words: str) -> None:
    assert list(wording.of_send(_send(1), None, 0, [fate]))[-1].startswith(f"then     {words}")
    assert list(wording.of_upload(UploadReport(1, 0, ("1.2",), 9), None, [fate]))[-1].startswith(f"then     {words}")


def test_studies_that_end_alike_are_told_together() -> None:
    fates = [Fate("1.2", "done"), Fate("1.3", "queued"), Fate("1.4", "done")]
    assert list(wording.of_send(_send(1), None, None, fates))[-2:] == [
        "then     complete, its analysis is done (2 studies)",
        "then     complete, its analysis waits for its turn",
    ]


def test_contested_uids_are_told_to_who_sends_with_their_study() -> None:
    lines = [
        "conflict 2 SOP Instance UIDs with images of different bytes in study 1.2: all are kept, see its page",
        "conflict 1 SOP Instance UID with images of different bytes in study 1.4: all are kept, see its page",
    ]
    fates = [Fate("1.2", "done", uid_conflicts=2), Fate("1.3", "done"), Fate("1.4", "done", uid_conflicts=1)]
    assert list(wording.of_send(_send(1), None, 0, fates))[-3:][1:] == lines
    assert list(wording.of_upload(UploadReport(1, 0, ("1.2",), 9), None, fates))[-2:] == lines


def test_what_is_safe_and_what_is_not_is_told() -> None:
    assert list(wording.of_commitment(Commitment(3, ()))) == ["safe     3 images: the peer has promised to keep them"]
    failures = tuple(Uncommitted(f"{index}.dcm", "1.2", "the peer does not have it") for index in range(MAX_NAMED + 2))
    assert list(wording.of_commitment(Commitment(1, failures[:1]))) == [
        "safe     1 image: the peer has promised to keep it",
        "NOT safe 1 image: do not delete it",
        "  0.dcm: the peer does not have it",
    ]
    other = Uncommitted("other.dcm", "1.2", "no report within 1 s")
    assert list(wording.of_commitment(Commitment(0, (other, *failures)))) == [
        f"NOT safe {MAX_NAMED + 3} images: do not delete them",
        f"  {MAX_NAMED + 2} images: the peer does not have it",
        "    0.dcm",
        "    1.dcm",
        "    2.dcm",
        f"    and {MAX_NAMED - 1} more",
        "  other.dcm: no report within 1 s",
    ]
    assert Commitment(0, (other, *failures)).as_json()["reasons"] == {
        "the peer does not have it": MAX_NAMED + 2,
        "no report within 1 s": 1,
    }
    each = [Uncommitted(f"{n}.dcm", "1.2", f"reason {n // 2}") for n in range(2 * MAX_NAMED + 4)]
    lines = list(wording.of_commitment(Commitment(0, tuple(each))))
    assert len(lines) == 1 + 3 * MAX_NAMED + 1 and lines[-1] == "  and 4 images for other reasons"
    assert wording.of_interrupted_send(4, 4) == "stopped: 4 images answered, none left"
    assert wording.of_interrupted_send(4, 4, promise=True) == (
        "stopped: 4 images answered; the peer has not promised to keep all of them yet"
    )


def test_a_person_who_stops_is_told_what_is_left_and_how_to_go_on() -> None:
    open_for = (
        "the same command goes on from there. What has come stays open for it, for up to settle_after_abort_seconds of "
        "the server (5 minutes unless it was set)"
    )
    assert wording.of_interrupted_upload(4, 11) == f"stopped: 4 of 11 images confirmed; {open_for}"
    assert wording.of_interrupted_upload(0, 400, 126) == (
        "stopped: 0 of 400 images confirmed; one request of 126 images was on its way and may have been stored; "
        + open_for
    )
    # What the server has is not known before it was asked, and all of it may be there.
    assert wording.of_interrupted_upload(0, 0) == (
        "stopped: nothing was sent yet, and the server has not said which images it has; "
        "the same command asks, and sends the others"
    )
    assert wording.of_interrupted_upload(11, 11) == "stopped: the server has all 11 images, none left"
    assert wording.of_interrupted_upload(1, 1) == "stopped: the server has it, none left"
    assert wording.of_interrupted_send(4, 11) == (
        "stopped: 4 of 11 images answered, 7 left; the same command sends all of them, and none is stored twice"
    )
    assert wording.of_interrupted_send(0, 0) == "stopped: nothing was sent"


def test_long_lists_are_cut_and_counted() -> None:
    named = tuple(SkippedFile(f"{index}.txt", "not DICOM") for index in range(MAX_NAMED))
    failures = tuple(FileStatus(f"{index}.dcm", "1.2", 0xC000, reason_of(0xC000)) for index in range(MAX_NAMED + 3))
    uids = tuple(f"1.2.{index}" for index in range(MAX_NAMED + 2))
    lines = list(wording.of_send(SendReport(failures, 1000, 1, 0, 0.0, named, uids), None))
    more = [line.strip() for line in lines if line.strip().startswith("and ")]
    assert more == [f"and {MAX_NAMED} more", "and 980 more", "and 2 more"]
    assert len(lines) == 3 + 4 + 2 * MAX_NAMED + 3
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


def test_an_address_that_the_settings_do_not_let_in_is_the_reason(tmp_path: Path) -> None:
    refusal = Refusal("no_answer", "closes the connection in the TLS handshake", permanent=False)
    closed = load({}, data_dir=tmp_path, allowed_addresses=("10.20.0.0/24",))
    said = wording.rule_behind(refusal, closed, secured=True, certified=True, address="127.0.0.1")
    assert said.startswith("setting allowed_addresses does not hold 127.0.0.1, from which we call; ")
    assert "10.20.0.9, from which we call, may not be" in wording.rule_behind(refusal, closed, address="10.20.0.9")


def test_whether_the_listener_is_up_is_asked_where_nobody_answers_on_this_machine(tmp_path: Path) -> None:
    settings = load({}, data_dir=tmp_path)
    silent = Refusal("unreachable", "cannot be reached: Connection refused", permanent=False)
    asked = "is the listener up? `heimdallr status` tells"
    assert wording.rule_behind(silent, settings, here=True) == asked
    # A port of this machine that is not the one of the settings.
    assert wording.rule_behind(silent, None, here=True) == asked
    assert wording.rule_behind(silent, None) == ""
    for kind in ("congestion", "local_limit", "no_answer", "called_ae", "rejected"):
        for of in (settings, None):
            answered = Refusal(kind, "rejects the association", permanent=False)
            assert "up?" not in wording.rule_behind(answered, of, here=True)
    assert wording.on_this_machine("localhost", "10.1.1.1") and wording.on_this_machine("10.1.1.1", "10.1.1.1")
    assert not wording.on_this_machine("10.1.1.2", "10.1.1.1")


def test_a_listener_that_speaks_tls_only_is_named_where_nobody_answers(tmp_path: Path) -> None:
    refusal = Refusal("no_answer", "closes the connection without an answer", permanent=False)
    plain = load({}, data_dir=tmp_path)
    assert "allowed_addresses" in wording.rule_behind(refusal, plain)
    assert "max_associations_per_address" in wording.rule_behind(refusal, plain)
    assert "dicom_tls" not in wording.rule_behind(refusal, plain)
    assert "speaks no TLS" in wording.rule_behind(refusal, plain, secured=True)
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "ca")}
    secured = load({}, data_dir=tmp_path, dicom_tls="on", **{f"dicom_tls_{name}": path for name, path in files.items()})
    for word in ("setting dicom_tls", "--tls-ca", "--tls-certificate", "--tls-key", "allowed_addresses"):
        assert word in wording.rule_behind(refusal, secured)
    # What was given is not asked for again.
    known = wording.rule_behind(refusal, secured, secured=True)
    assert "--tls-certificate and --tls-key" in known and "--tls-ca" not in known and "allowed_addresses" in known
    done = wording.rule_behind(refusal, secured, secured=True, certified=True, address="10.1.1.1")
    assert "--tls" not in done
    for word in ("dicom_tls_ca", "10.1.1.1", "allowed_addresses", "max_associations", "heimdallr intake status"):
        assert word in done
    strangers = wording.rule_behind(refusal, None, secured=True)
    assert "--tls-certificate" in strangers
    assert "--tls" not in wording.rule_behind(refusal, None, secured=True, certified=True)
    assert "rules for addresses" in wording.rule_behind(refusal, None)
    assert wording.rule_behind(Refusal("called_ae", "called AE title not recognised", permanent=True), None) == ""
