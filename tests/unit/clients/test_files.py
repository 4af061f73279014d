"""Which files are sent, and why the others are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from heimdallr_ray.clients.files import INDEX_REASON, MAX_NAMED, select
from heimdallr_ray.errors import EmptyInput
from heimdallr_ray.listener import part10
from tests.support.intake import dataset_bytes, file_bytes, write_study

STUDY = "1.2.826.0.1.3680043.9.9.1"


def test_each_file_is_sent_or_left_out_with_a_reason(tmp_path: Path) -> None:
    first, second, third = write_study(tmp_path / "images", 3)
    (tmp_path / "notes.txt").write_text("no DICOM")
    nameless = dcmread(second)
    del nameless.SOPInstanceUID
    (tmp_path / "images" / "nameless.dcm").write_bytes(dataset_bytes(file_bytes(nameless)))
    meta = part10.FileMeta(0, part10.EXPLICIT_LITTLE, part10.DICOMDIR_CLASS, "1.2.3")
    (tmp_path / "DICOMDIR").write_bytes(part10.encode_meta(meta) + bytes(64))
    third.write_bytes(third.read_bytes()[:400])
    selection = select(tmp_path)
    assert [(item.path, item.study_uid) for item in selection.outgoing] == [(first, STUDY), (second, STUDY)]
    reasons = {item.path: item.reason for item in selection.named}
    assert selection.skipped == len(reasons) == 4
    assert reasons["DICOMDIR"] == INDEX_REASON
    assert reasons["notes.txt"] == "neither a Part 10 file nor a data set"
    assert "SOP instance" in reasons["images/nameless.dcm"]
    assert "ends" in reasons["images/0003.dcm"]


def test_only_the_first_are_named(tmp_path: Path) -> None:
    write_study(tmp_path, 1)
    for index in range(MAX_NAMED + 5):
        (tmp_path / f"{index:02d}.txt").write_text("no DICOM")
    selection = select(tmp_path)
    assert (selection.skipped, len(selection.named)) == (MAX_NAMED + 5, MAX_NAMED)


def test_nothing_to_send_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(EmptyInput, match="holds no file"):
        select(tmp_path)
    for index in range(5):
        (tmp_path / f"{index}.txt").write_text("no DICOM")
    with pytest.raises(EmptyInput, match=r"0\.txt: neither.*2\.txt.*and 2 more") as caught:
        select(tmp_path)
    assert "3.txt" not in caught.value.detail
