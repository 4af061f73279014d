"""The upload client against the real HTTP interface."""

from __future__ import annotations

import zipfile
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import pytest

from heimdallr_ray.clients.files import INDEX_REASON, MAX_NAMED, SkippedFile
from heimdallr_ray.clients.upload import upload_zip
from heimdallr_ray.errors import BadArchive, EmptyInput, NotReady, Rejected, TooLarge, TruncatedObject, Unauthorized
from heimdallr_ray.listener import part10
from tests.support.intake import Intake, write_study
from tests.support.server import serving_intake

TOKEN = "a token for this test only"


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return Intake(tmp_path / "data", api_token=TOKEN, max_upload_mib=1)


@pytest.fixture
def url(intake: Intake) -> Generator[str]:
    with serving_intake(intake) as base:
        yield base


def test_a_folder_is_zipped_and_stored(tmp_path: Path, intake: Intake, url: str) -> None:
    write_study(tmp_path / "study" / "deep", 4)
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    told: list[tuple[int, int]] = []
    report = upload_zip(tmp_path / "study", url, TOKEN, on_progress=lambda *now: told.append(now))
    assert (report.accepted, report.rejected) == (4, 1)
    assert report.study_uids == ("1.2.826.0.1.3680043.9.9.1",)
    assert (report.skipped, report.skipped_files) == (1, (SkippedFile("notes.txt", "not DICOM"),))
    whole = sum(path.stat().st_size for path in (tmp_path / "study" / "deep").iterdir())
    assert told[-1] == (whole, whole)
    assert all(before <= now for (before, _), (now, _) in pairwise(told))
    assert report.requests == 1 and 0 < report.bytes_sent < whole + 1000
    assert len(intake.instances()) == 4


@pytest.mark.parametrize("name", ["0001.dcm", "IM0001", "0001"])
def test_one_dicom_file_is_zipped_and_stored(tmp_path: Path, intake: Intake, url: str, name: str) -> None:
    path = write_study(tmp_path, 1)[0].rename(tmp_path / name)
    report = upload_zip(path, url, TOKEN)
    assert (report.accepted, report.skipped, report.study_uids) == (1, 0, ("1.2.826.0.1.3680043.9.9.1",))
    assert len(intake.instances()) == 1


def test_what_a_zip_holds_beside_images_is_named(tmp_path: Path, url: str) -> None:
    meta = part10.FileMeta(0, part10.EXPLICIT_LITTLE, part10.DICOMDIR_CLASS, "1.2.3")
    # A ZIP is one by its content, whatever it is called.
    with zipfile.ZipFile(tmp_path / "study.archive", "w") as archive:
        archive.mkdir("images")
        archive.write(write_study(tmp_path / "study", 1)[0], "images/1.dcm")
        archive.writestr("DICOMDIR", part10.encode_meta(meta) + bytes(64))
        for index in range(MAX_NAMED + 4):
            archive.writestr(f"{index}.txt", "no DICOM")
    report = upload_zip(tmp_path / "study.archive", url, TOKEN)
    assert (report.accepted, report.rejected, report.skipped) == (1, MAX_NAMED + 4, MAX_NAMED + 5)
    assert len(report.skipped_files) == MAX_NAMED
    assert report.skipped_files[:2] == (SkippedFile("DICOMDIR", INDEX_REASON), SkippedFile("0.txt", "not DICOM"))


def test_a_file_that_is_neither_zip_nor_dicom_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("neither")
    with pytest.raises(BadArchive, match=r"notes\.txt is neither a ZIP archive nor a DICOM file"):
        upload_zip(tmp_path / "notes.txt", "http://127.0.0.1:9", TOKEN)
    (tmp_path / "notes.txt").rename(tmp_path / "notes.zip")
    with pytest.raises(BadArchive, match=r"notes\.zip: not a ZIP archive"):
        upload_zip(tmp_path / "notes.zip", "http://127.0.0.1:9", TOKEN)


def _zipped(path: Path, folder: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(write_study(folder, 3), start=1):
            archive.write(image, f"DOE_JANE/{number}.dcm")
    return path.read_bytes()


@pytest.mark.parametrize("name", ["study.zip", "study.archive"])
@pytest.mark.parametrize("cut", [-1, -22, 200])
def test_a_zip_that_was_cut_off_is_told_as_by_the_server(tmp_path: Path, name: str, cut: int) -> None:
    whole = _zipped(tmp_path / "whole", tmp_path / "study")
    (tmp_path / name).write_bytes(whole[:cut])
    with pytest.raises(BadArchive) as refused:
        upload_zip(tmp_path / name, "http://127.0.0.1:9", TOKEN)
    assert refused.value.detail == (
        f"{name}: the ZIP is damaged, cut off or packed in a way that is not read here: "
        "put the DICOM files into a ZIP anew"
    )


def test_a_damaged_entry_is_told_by_its_number_and_not_by_its_name(tmp_path: Path) -> None:
    whole = bytearray(_zipped(tmp_path / "study.zip", tmp_path / "study"))
    with zipfile.ZipFile(tmp_path / "study.zip") as archive:
        whole[archive.infolist()[1].header_offset + 2000] ^= 1
    (tmp_path / "study.zip").write_bytes(whole)
    with pytest.raises(BadArchive) as refused:
        upload_zip(tmp_path / "study.zip", "http://127.0.0.1:9", TOKEN)
    assert refused.value.detail == "study.zip: entry 2 is damaged: put the DICOM files into a ZIP anew"


def test_what_is_no_image_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(EmptyInput, match="no DICOM object there: it holds no file"):
        upload_zip(tmp_path / "folder", "http://127.0.0.1:9")
    for index in range(4):
        (tmp_path / "folder" / f"{index}.txt").write_text("neither")
    with pytest.raises(EmptyInput, match=r"no DICOM object there \(0\.txt: not DICOM; .*; and 1 more\)"):
        upload_zip(tmp_path / "folder", "http://127.0.0.1:9")
    good = write_study(tmp_path / "folder", 2)[0]
    (tmp_path / "folder" / "cut.dcm").write_bytes(good.read_bytes()[:400])
    with pytest.raises(
        TruncatedObject, match=r"1 of 3 DICOM files cannot be taken \(cut\.dcm: .*\(truncated\)\); nothing"
    ):
        upload_zip(tmp_path / "folder", "http://127.0.0.1:9")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_study(tmp_path / "study", 1)
    secret = tmp_path / "study" / "secret.dcm"
    secret.symlink_to("/proc/self/mem")
    with pytest.raises(Rejected, match="cannot be read"):
        upload_zip(tmp_path / "study", "http://127.0.0.1:9", TOKEN)


def test_refusals_are_typed(tmp_path: Path, intake: Intake, url: str) -> None:
    good, text = tmp_path / "good.zip", tmp_path / "text.zip"
    with zipfile.ZipFile(good, "w") as archive:
        archive.write(write_study(tmp_path / "study", 1)[0], "1.dcm")
    with zipfile.ZipFile(text, "w") as archive:
        archive.writestr("notes.txt", "no DICOM")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not a ZIP")
    write_study(tmp_path / "large", 1, size=1024)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unauthorized):
        upload_zip(good, url, "another token, just as long")
    with pytest.raises(Unauthorized):
        upload_zip(good, url)
    with pytest.raises(EmptyInput):
        upload_zip(text, url, TOKEN)
    with pytest.raises(EmptyInput):
        upload_zip(tmp_path / "empty", url, TOKEN)
    with pytest.raises(BadArchive):
        upload_zip(tmp_path / "broken.zip", url, TOKEN)
    with pytest.raises((TooLarge, NotReady)):
        upload_zip(tmp_path / "large", url, TOKEN)
    with pytest.raises(NotReady):
        upload_zip(good, "http://127.0.0.1:9", TOKEN)
    assert intake.instances() == []
    assert upload_zip(good, url, TOKEN).accepted == 1
